//! A service goes, and the next one goes on: with what is under way, and without what nobody needs.

use std::collections::BTreeSet;

use lsm_protocol::{Offer, Uuid, destination, source};
use tokio::sync::oneshot;

use super::{LEAVE, Service};
use crate::{admission, arrival, clock::now, departure, inventory::read_json, peer_line, story};

impl Service {
    /// What is under way goes on with the next start.
    pub(super) async fn leave(&self) {
        let mut leaving = Vec::new();
        for (_, inbox) in self.departures.values() {
            let (done, left) = oneshot::channel();
            let _ = inbox.send(departure::News::Leave(done));
            leaving.push(left);
        }
        for (_, inbox) in self.arrivals.values() {
            let (done, left) = oneshot::channel();
            let _ = inbox.send(arrival::News::Leave(done));
            leaving.push(left);
        }
        let _ = tokio::time::timeout(LEAVE, futures_util::future::join_all(leaving)).await;
    }

    /// Goes on with what an earlier run left, and removes what none of its migrations needs: before anybody can ask for a
    /// tunnel of the same name.
    pub(super) async fn resume(&mut self) {
        if let Err(error) = self.host.wireguard.take_up().await {
            tracing::warn!(error = story(&error), "cannot take up WireGuard where an earlier run left it");
        }
        let (mut needed, mut moving) = (BTreeSet::new(), BTreeSet::new());
        for file in std::fs::read_dir(&self.host.state).into_iter().flatten().flatten() {
            let path = file.path();
            let name = file.file_name().to_string_lossy().into_owned();
            let mut offer = None;
            if name.starts_with("departure-") {
                if let Ok(Some(saved)) = read_json::<departure::Saved>(&path) {
                    offer = self.resume_departure(saved);
                }
            } else if name.starts_with("arrival-")
                && let Ok(Some(saved)) = read_json::<arrival::Saved>(&path)
            {
                offer = self.resume_arrival(saved);
            }
            if let Some(offer) = offer {
                needed.extend([offer.home.vni, offer.advance.vni]);
                moving.insert(offer.vm);
            }
        }
        // A way back that was over before it could be said.
        let departing: BTreeSet<Uuid> = self.departures.values().map(|(vm, _)| *vm).collect();
        for (_, inbox) in self.arrivals.values().filter(|(vm, _)| !departing.contains(vm)) {
            let _ = inbox.send(arrival::News::Stays);
        }
        self.host.inventory.borrow_mut().release_all_but(&moving);
        if moving.is_empty() {
            self.host.streams.tidy().await;
        }
        if let Err(error) = self.host.wireguard.tidy().await {
            tracing::warn!(error = story(&error), "cannot remove what an earlier run left of WireGuard");
        }
        let ours = self.host.tunnels.list_ours().await.unwrap_or_else(|error| {
            tracing::warn!(error = story(&error), "cannot look for what an earlier run left");
            Vec::new()
        });
        for vni in ours.into_iter().filter(|vni| !needed.contains(vni)) {
            tracing::info!(vni, "removing a tunnel that an earlier run left");
            if let Err(error) = self.host.tunnels.remove(vni).await {
                tracing::warn!(error = story(&error), "left behind");
            }
        }
    }

    fn resume_departure(&mut self, mut saved: departure::Saved) -> Option<Offer> {
        let offer = saved.machine.offer().cloned()?;
        tracing::info!(vm = saved.vm.name, migration = %offer.migration, state = saved.machine.name(), "going on with a departure");
        if let Some(theirs) = saved.wireguard {
            self.host.wireguard.remember(&offer, &saved.peer, theirs, offer.underlay);
        }
        let (machine, orders) = saved.machine.handle(now(), source::Event::Restarted);
        saved.machine = machine;
        self.depart(&offer, saved, None, orders, None);
        Some(offer)
    }

    fn resume_arrival(&mut self, mut saved: arrival::Saved) -> Option<Offer> {
        let offer = saved.machine.offer().cloned()?;
        tracing::info!(vm = saved.name, migration = %offer.migration, state = saved.machine.name(), "going on with an arrival");
        if let Some(theirs) = saved.wireguard {
            self.host.wireguard.remember(&offer, &saved.peer, theirs, saved.remote);
        }
        let (machine, orders) = saved.machine.handle(now(), destination::Event::Restarted);
        saved.machine = machine;
        let (peer, news) = peer_line::call(self.host.clone(), saved.peer.clone());
        let admitted = admission::Admitted {
            saved,
            orders,
            waiting_xml: String::new(),
            answer: None,
            peer,
            news,
            turn: None,
            expected: None,
        };
        self.admitted(admitted);
        Some(offer)
    }
}
