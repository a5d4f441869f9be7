//! This host's ends of the tunnels: built, answered for and removed.

use lsm_protocol::{Decline, Join, Offer, TunnelId};

use super::Departure;
use crate::{
    host::SPARE_BRIDGE,
    inventory::Vnic,
    story,
    tunnel::{
        self, TunnelError,
        full_frames::{Answering, End},
    },
};

impl Departure {
    pub(super) async fn build(&self, offer: &Offer) -> Result<(), Decline> {
        let vm = &self.saved.vm;
        let old = vm.vnic(offer.home.mac).ok_or(Decline::NotRunning)?;
        let new = vm.vnic(offer.advance.mac).ok_or(Decline::NotRunning)?;
        let lan = old.lan.as_ref().and_then(|lan| self.host.config.lans.get(lan));
        let lan = lan.ok_or_else(|| {
            let lan = old.lan.as_deref().unwrap_or("(none)");
            Decline::Tunnel(format!(
                "host.toml there has no [lan.{lan}], the LAN of vNIC {}; add it, or correct the VM's metadata",
                old.mac
            ))
        })?;
        self.host.connect(offer, offer.underlay).await?;
        let home = self.host.spec_to_build(offer.home, offer, offer.underlay, lan.mtu as u16)?;
        let failed = |error: TunnelError| Decline::Tunnel(story(&error));
        let alone = self.host.claims.alone(home.vni).await;
        self.host.tunnels.build_lan_end(&home, &lan.bridge, false, lan.addressing.crossing()).await.map_err(failed)?;
        drop(alone);
        if offer.join == Join::Before {
            let advance = self.host.spec_to_build(offer.advance, offer, offer.underlay, offer.mtu)?;
            let _alone = self.host.claims.alone(advance.vni).await;
            self.host.tunnels.build_vm_end(&advance).await.map_err(failed)?;
            let tap = new.tap.as_ref().ok_or_else(|| Decline::Tunnel(format!("vNIC {} has no tap", new.mac)))?;
            self.host.tunnels.plug(tap, &tunnel::bridge(offer.advance.vni)).await.map_err(failed)?;
        }
        Ok(())
    }

    pub(super) fn answer_trials(&mut self, offer: &Offer) {
        let home_mtu =
            self.saved.vm.vnic(offer.home.mac).and_then(|vnic| self.host.config.lans.get(vnic.lan.as_ref()?));
        let mut tunnels = vec![(offer.home, home_mtu.map_or(offer.mtu, |lan| lan.mtu as u16), End::Vm)];
        if offer.join == Join::Before {
            tunnels.push((offer.advance, offer.mtu, End::Lan));
        }
        self.answering.clear();
        for (tunnel, mtu, asker) in tunnels {
            let answering = self.host.spec(tunnel, offer, offer.underlay, mtu).map_err(|why| why.to_string());
            let answering = answering
                .and_then(|spec| Answering::start(&spec, asker, offer.migration).map_err(|error| error.to_string()));
            match answering {
                Ok(answering) => self.answering.push(answering),
                Err(error) => {
                    tracing::warn!(migration = %offer.migration, error, "the destination cannot try the tunnels")
                }
            }
        }
    }

    /// From the advance tunnel, unless that is done.
    pub(super) async fn part(&mut self, offer: &Offer) {
        if self.parting.take() {
            self.unplug_spare(offer).await;
            self.remove(offer.advance, offer).await;
        }
    }

    /// The spare's tap goes back to where it was before [`Departure::build`]. Gone with the VM, it needs nothing.
    pub(super) async fn unplug_spare(&self, offer: &Offer) {
        let Some(saved @ Vnic { tap: Some(tap), .. }) = self.saved.vm.vnic(offer.advance.mac) else { return };
        // What the inventory knows is newer: an old path may have been left meanwhile, whose vNIC is a spare since.
        let known = self.host.inventory.borrow().get(offer.vm).and_then(|vm| vm.vnic(saved.mac).cloned());
        let known = known.unwrap_or_else(|| saved.clone());
        if known.tap.as_ref() != Some(tap) {
            return; // the VM has come back, with other taps
        }
        let bridge = known.bridge.unwrap_or_else(|| SPARE_BRIDGE.to_owned());
        match self.host.tunnels.link_exists(tap).await {
            Ok(true) if offer.join == Join::Before => {
                let plugged = async {
                    if bridge == SPARE_BRIDGE {
                        self.host.tunnels.ensure_bridge(SPARE_BRIDGE).await?;
                    }
                    self.host.tunnels.plug(tap, &bridge).await.map(drop)
                };
                if let Err(error) = plugged.await {
                    tracing::warn!(error = story(&error), tap, bridge, "the spare vNIC is left without a bridge");
                }
            }
            _ => {}
        }
    }

    /// Unless another migration of the VM goes on with it.
    pub(super) async fn remove(&self, tunnel: TunnelId, offer: &Offer) {
        let _alone = self.host.claims.alone(tunnel.vni).await;
        if self.host.claims.give_up(offer.migration, tunnel.vni) {
            return;
        }
        if let Err(error) = self.host.tunnels.remove(tunnel.vni).await {
            tracing::warn!(migration = %offer.migration, error = story(&error), "left behind");
        }
    }
}
