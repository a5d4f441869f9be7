//! What goes on beside the machine's work.

use lsm_protocol::{
    Refusal,
    guest::{Event, Guest, Step},
};

use super::Daemon;
use crate::{
    changes, neighbours,
    path::{self, chain},
};

impl Daemon {
    /// In the background: an abort must not wait for a silent gateway. Of two, both must answer.
    pub(super) fn probe_gateway(&mut self) {
        let Some(paths) = self.record.paths() else { return };
        let facts = self.facts.clone();
        self.stop_probe();
        let probe = tokio::task::spawn_local(async move {
            let silent = |gateway| drop(facts.send(Event::Silent(gateway)));
            let new = paths.new;
            let fact = match neighbours::all_answer(new.mac, new.exits().collect(), silent).await {
                Ok(()) => Event::Done(Step::ProbeGateway),
                Err(error) => {
                    let why = Refusal::Path { mac: new.mac, detail: chain(&error) };
                    Event::Failed(Step::ProbeGateway, why)
                }
            };
            let _ = facts.send(fact);
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
        let old = self.record.paths().filter(|_| self.record.guest.holding().is_some()).map(|paths| paths.old);
        match (old, &self.closures) {
            (Some(old), None) => {
                let facts = self.facts.clone();
                let task = tokio::task::spawn_local(async move {
                    if let Err(error) = changes::tell_closures(&old.addresses().all(), &facts).await {
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

    /// Another program may have taken away what the paths need.
    pub(super) async fn look_after_paths(&mut self) {
        match path::upkeep::gone(&self.kernel, &self.record).await {
            Ok(None) => self.repair_routes(), // they name the addresses
            Ok(Some(why)) => self.feed(Event::Lost(why)).await,
            Err(error) => tracing::warn!(error = %chain(&error), "an address of the new vNIC may be gone unnoticed"),
        }
    }

    fn repair_routes(&mut self) {
        match path::upkeep::repair(&mut self.kernel, &self.record) {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => tracing::warn!(
                put_back = missing.join("; "),
                "another program removes our rules or routes; have it leave this vNIC and priority 19500 alone"
            ),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "rules or routes of ours may be missing; see \"ip rule\"");
            }
        }
        self.prove_routes();
    }

    /// Said once, and again when it is another. While prepared: the proof lists every connection, and from the switch on that
    /// time is the clients'.
    fn prove_routes(&mut self) {
        let Some(paths) = self.record.paths().filter(|_| matches!(self.record.guest, Guest::Prepared(_))) else {
            return;
        };
        match path::proof::misled(&mut self.kernel, &paths) {
            Ok(misled) => {
                if let Some(detail) = misled.as_ref().filter(|_| misled != self.misled) {
                    tracing::warn!(detail, "a path does not lead where it should");
                }
                self.misled = misled;
            }
            Err(error) => tracing::warn!(error = %chain(&error), "where packets leave cannot be told"),
        }
    }

    pub(super) fn announce_again_later(&self) {
        let Some(paths) = self.record.paths() else { return };
        for exit in paths.new.exits() {
            tokio::task::spawn_local(neighbours::announce_again(exit.ifindex, paths.new.mac, exit.source));
        }
    }
}
