//! What goes on beside the machine's work.

use std::time::Duration;

use lsm_protocol::{
    Refusal,
    guest::{Event, Step},
};

use super::Daemon;
use crate::{changes, neighbours, path::chain};

/// A gratuitous ARP or unsolicited NA may be lost; it is said again after these.
const ANNOUNCE_AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

impl Daemon {
    /// In the background: an abort must not wait for a silent gateway.
    pub(super) fn probe_gateway(&mut self) {
        let Some(paths) = self.record.paths else { return };
        let facts = self.facts.clone();
        self.stop_probe();
        let probe = tokio::task::spawn_local(async move {
            let (mac, exit) = (paths.new.mac, paths.new.exit);
            match neighbours::probe(exit.ifindex, mac, exit.source, exit.gateway).await {
                Ok(_) => drop(facts.send(Event::Done(Step::ProbeGateway))),
                Err(error) => {
                    let detail = chain(&error);
                    drop(facts.send(Event::Failed(Step::ProbeGateway, Refusal::Path { mac, detail })));
                }
            }
        });
        self.probe = Some(probe.abort_handle());
    }

    /// An answer that comes late must not count for the next migration.
    pub(super) fn stop_probe(&mut self) {
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
    }

    /// While the old path is being left, each end of a connection to its address is worth a count.
    pub(super) fn watch_closures(&mut self) {
        let old =
            self.record.paths.filter(|_| self.record.guest.holding().is_some()).map(|paths| paths.old.exit.source);
        match (old, &self.closures) {
            (Some(old), None) => {
                let facts = self.facts.clone();
                let task = tokio::task::spawn_local(async move {
                    if let Err(error) = changes::tell_closures(old, &facts).await {
                        tracing::warn!(error = %chain(&error), "counting on schedule only");
                    }
                });
                self.closures = Some(task.abort_handle());
            }
            (None, Some(task)) => {
                task.abort();
                self.closures = None;
            }
            _ => {}
        }
    }

    pub(super) fn announce_again_later(&self) {
        let Some(paths) = self.record.paths else { return };
        tokio::task::spawn_local(async move {
            let (mac, exit) = (paths.new.mac, paths.new.exit);
            for wait in ANNOUNCE_AGAIN {
                tokio::time::sleep(wait).await;
                let _ = neighbours::announce(exit.ifindex, mac, exit.source);
            }
        });
    }
}
