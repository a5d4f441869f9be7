//! Where frames for the VM go while it is on its way.

use std::time::SystemTime;

use lsm_protocol::{
    Join, Offer,
    destination::{Destination, Event},
};

use super::{Arrival, NOTICE};
use crate::{divert::LearningWatch, host::QUEUE, inventory::Vm, replay::Outlet, story, tunnel};

impl Arrival {
    /// The taps are there: long queues, no broadcasts into the new one before the VM reads, and eyes on their ports.
    pub(super) async fn watch(&mut self, vm: &Vm, offer: &Offer) {
        for mac in [offer.home.mac, offer.advance.mac] {
            let Some((tap, bridge)) = vm.vnic(mac).and_then(|v| Some((v.tap.as_deref()?, v.bridge.as_deref()?))) else {
                continue;
            };
            if let Err(error) = self.host.tunnels.set_queue_length(tap, QUEUE).await {
                tracing::warn!(tap, error = story(&error), "the tap keeps its short queue");
            }
            match LearningWatch::start(bridge, tap, mac) {
                Ok(mut watch) => {
                    let facts = self.facts.0.clone();
                    tokio::task::spawn_local(async move {
                        if watch.heard().await.is_ok() {
                            let _ = facts.send(Event::Arrived);
                        }
                    });
                }
                Err(error) => tracing::warn!(tap, error = story(&error), "arrival will be known from libvirt only"),
            }
            if mac == offer.advance.mac {
                // After a restart it may be here already, and its tunnel gone.
                if self.copies()
                    && let Err(error) = self.host.tunnels.set_flooding(tap, false).await
                {
                    tracing::warn!(tap, error = story(&error), "broadcasts will wait in the tap's queue too");
                }
                let from = tunnel::port(offer.advance.vni);
                let tunnelled =
                    offer.join == Join::Before && self.host.tunnels.link_exists(&from).await.unwrap_or(true);
                let home = tunnelled.then_some(from.as_str());
                let divert = self.host.fdb.prepare(bridge, mac, tap, home).map_err(|e| story(&e));
                match divert.and_then(|d| Ok((d, Outlet::open(tap).map_err(|e| story(&e))?))) {
                    Ok(divert) => self.divert = Some(divert),
                    Err(error) => tracing::warn!(tap, error, "frames for the new vNIC will be lost until it is learnt"),
                }
            }
        }
    }

    pub(super) fn point_at_tap(&mut self, offer: &Offer) {
        let Some((diversion, outlet)) = &self.divert else { return };
        if let Err(error) = self.host.fdb.divert(diversion) {
            tracing::warn!(migration = %offer.migration, error = story(&error), "cannot point the new vNIC's frames at its tap");
        }
        let Some(recorder) = &self.recorder else { return };
        match recorder.replay(SystemTime::now() - self.saved.round_trip - NOTICE, outlet) {
            Ok(replayed) => {
                self.saved.account.frames_replayed += replayed.sent;
                tracing::info!(migration = %offer.migration, frames = replayed.sent, "new vNIC's frames wait at its tap, with those of the last round trip")
            }
            Err(error) => {
                tracing::warn!(migration = %offer.migration, error = story(&error), "cannot replay what was on its way to the source")
            }
        }
    }

    /// As when it was built: an entry that does not age, whatever became of the tap.
    pub(super) fn point_at_tunnel(&self, offer: &Offer) {
        if offer.join != Join::Before {
            return;
        }
        let Some(lan) = self.host.config.lans.get(&offer.lan) else { return };
        let (port, fdb) = (tunnel::port(offer.advance.vni), &self.host.fdb);
        let pointed = fdb.prepare(&lan.bridge, offer.advance.mac, &port, None).and_then(|to| fdb.divert(&to));
        if let Err(error) = pointed {
            tracing::warn!(migration = %offer.migration, error = story(&error), "the new vNIC's frames do not go back into the tunnel");
        }
    }

    /// The VM is here: what pointed at its tap for the move becomes what the bridge would have learnt.
    pub(super) async fn keep_pointing(&mut self, offer: &Offer) {
        let diversion = self.divert.take();
        let Some(tap) = self.saved.vm.as_ref().and_then(|vm| vm.vnic(offer.advance.mac)?.tap.clone()) else { return };
        if !matches!(self.saved.machine, Destination::Arrived { .. } | Destination::TakingDown { .. }) {
            return; // undone: the tap goes with its QEMU
        }
        if let Some((diversion, _)) = diversion
            && let Err(error) = self.host.fdb.keep(&diversion)
        {
            tracing::warn!(tap, error = story(&error), "the bridge will have to learn the new vNIC by itself");
        }
        if let Err(error) = self.host.tunnels.set_flooding(&tap, true).await {
            tracing::warn!(tap, error = story(&error), "the vNIC hears no broadcasts");
        }
    }
}
