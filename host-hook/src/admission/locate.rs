//! Who runs a VM that is to come here.

use std::{rc::Rc, time::Duration};

use lsm_protocol::{Peer, Running, Uuid};
use tokio::sync::mpsc;

use super::Refused;
use crate::{
    host::Host,
    peer_line::{self, PeerHandle, PeerNews},
};

/// A peer says whether it runs the VM within this: a handshake of three round trips and the question.
pub(super) const LOCATE: Duration = Duration::from_secs(3);

/// Where it runs, and the way there.
pub(super) struct Located {
    pub name: String,
    pub running: Running,
    pub round_trip: Duration,
    pub peer: PeerHandle,
    pub news: mpsc::UnboundedReceiver<PeerNews>,
}

/// Asks every peer at once who runs the VM.
pub(super) async fn locate(host: &Rc<Host>, vm: Uuid) -> Result<Located, Refused> {
    if host.config.peers.is_empty() {
        return Err(Refused::NoPeer);
    }
    let (found, mut answers) = mpsc::unbounded_channel();
    for name in host.config.peers.keys().cloned() {
        let (host, found) = (host.clone(), found.clone());
        tokio::task::spawn_local(async move {
            let _ = found.send(ask(host, name, vm).await);
        });
    }
    drop(found);
    let mut refusals = Vec::new();
    while let Some(answer) = answers.recv().await {
        match answer {
            Ok(located) => return Ok(located),
            Err(why) => refusals.push(why),
        }
    }
    Err(Refused::NotFound(refusals.join("; ")))
}

async fn ask(host: Rc<Host>, name: String, vm: Uuid) -> Result<Located, String> {
    let (peer, mut news) = peer_line::call(host, name.clone());
    peer.tell(Peer::Locate { vm });
    let mut round_trip = LOCATE;
    let answer = async {
        loop {
            match news.recv().await {
                Some(PeerNews::RoundTrip(time)) => round_trip = time,
                Some(PeerNews::Said(Peer::Located { running: Some(running), .. })) => return Ok(running),
                Some(PeerNews::Said(Peer::Located { running: None, .. })) => {
                    return Err(format!("{name}: it does not run it"));
                }
                Some(PeerNews::Said(_)) => {}
                Some(PeerNews::Failed(why)) => return Err(format!("{name}: {why}")),
                None => return Err(format!("{name}: no line")),
            }
        }
    };
    let answer = tokio::time::timeout(LOCATE, answer).await;
    let running = answer.unwrap_or_else(|_| Err(format!("{name}: no answer within {} s", LOCATE.as_secs())))?;
    Ok(Located { name, running, round_trip, peer, news })
}
