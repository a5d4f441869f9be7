//! What makes it worth counting the connections: the kernel's word that subflows came or went, or connections ended; and
//! worth looking at the routes, that they changed. However many such words come at once, they are one count, or one look.

use std::{cell::Cell, net::IpAddr, rc::Rc, time::Duration};

use lsm_protocol::guest::Event;
use tokio::sync::{Notify, mpsc};

use crate::{
    closures::Closures,
    mptcp::{Event as Told, Events, Notice},
    netlink::Error,
    path::chain,
    routing::Watch,
};

/// Changes of subflows within this time are counted once: a dump is not made per event.
const COALESCE: Duration = Duration::from_millis(5);
/// So are those within this many times what the last count took: among many connections, counting takes at most a third
/// of the agent's time while they join, and leaves the kernel to the joins.
const COALESCE_COUNTS: u32 = 2;
/// Ends of connections within this time are counted once: a busy server's are many.
const CLOSURES: Duration = Duration::from_millis(100);

/// Whoever rewrites rules or routes changes several: looked at once.
const ROUTES: Duration = Duration::from_millis(50);

/// A subflow that ended with an error: its connection's token, and the errno.
pub type Failed = (u32, u8);

/// What the path manager tells, until it cannot be heard any more. `counting`: how long the last count took.
pub async fn watch_subflows(
    mut events: Events,
    facts: mpsc::UnboundedSender<Event>,
    failures: mpsc::UnboundedSender<Failed>,
    counting: Rc<Cell<Duration>>,
) {
    let changed = Rc::new(Notify::new());
    let wake = changed.clone();
    let listen = async move {
        loop {
            match events.next().await {
                Ok(told) => {
                    if let Notice::Event(Told { token, error: Some(errno @ 1..), .. }) = told {
                        let _ = failures.send((token, errno));
                    }
                    wake.notify_one(); // an overrun too is worth a count
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "no word from the path manager; counting on schedule only");
                    return;
                }
            }
        }
    };
    let count = async {
        loop {
            changed.notified().await;
            if facts.send(Event::SubflowsChanged).is_err() {
                return;
            }
            tokio::time::sleep(COALESCE).await;
            // By now it has been counted: this runs on the thread that counts.
            tokio::time::sleep(counting.get() * COALESCE_COUNTS).await;
        }
    };
    tokio::join!(listen, count);
}

/// Rules and routes that change, until nobody is told any more.
pub(crate) async fn tell_routes(mut watch: Watch, changed: Rc<Notify>) {
    loop {
        if let Err(error) = watch.changed().await {
            tracing::warn!(error = %chain(&error), "not told of changed rules and routes any more; nobody repairs them");
            return;
        }
        tokio::time::sleep(ROUTES).await;
        changed.notify_one();
    }
}

/// Connections of the old addresses that end, as changes of subflows.
pub(crate) async fn tell_closures(old: &[IpAddr], facts: &mpsc::UnboundedSender<Event>) -> Result<(), Error> {
    let mut closures = Closures::open()?;
    loop {
        closures.of(old).await?;
        let _ = facts.send(Event::SubflowsChanged);
        tokio::time::sleep(CLOSURES).await;
    }
}
