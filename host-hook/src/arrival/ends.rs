//! This host's ends of the tunnels: built, tried and removed.

use lsm_protocol::{
    Decline, Join, Offer, TunnelId,
    destination::{Event, Impassable, TRIAL},
};

use super::Arrival;
use crate::{
    filters::Crossing,
    replay::Recorder,
    story,
    tunnel::{
        self, TunnelError,
        full_frames::{self, End},
    },
};

impl Arrival {
    pub(super) async fn build(&mut self, offer: &Offer) -> Result<(), Decline> {
        let failed = |error: TunnelError| Decline::Tunnel(story(&error));
        self.host.connect(offer, self.saved.remote).await?;
        let home = self.host.spec_to_build(offer.home, offer, self.saved.remote, self.saved.home_mtu)?;
        let alone = self.host.claims.alone(home.vni).await;
        self.host.tunnels.build_vm_end(&home).await.map_err(failed)?;
        drop(alone);
        if offer.join == Join::Before {
            let lan = self.host.config.lans.get(&offer.lan);
            let lan = lan.ok_or_else(|| Decline::Tunnel(format!("host.toml has no [lan.{}]", offer.lan)))?;
            let advance = self.host.spec_to_build(offer.advance, offer, self.saved.remote, offer.mtu)?;
            let _alone = self.host.claims.alone(advance.vni).await;
            // Until it arrives, the VM speaks in this LAN with what it was given alone; what it gets itself is not known, nor
            // what it has held here since before, and speaks with all the time.
            let held = self.host.claims.is_shared(offer.migration, offer.advance.vni);
            let known = !offer.addressing.is_obtained() && !held;
            let addresses = known.then(|| offer.addressing.addresses());
            let crossing = Crossing { addresses, arriving: !held, ..lan.addressing.crossing() };
            self.host.tunnels.build_lan_end(&advance, &lan.bridge, true, crossing).await.map_err(failed)?;
            match Recorder::start(&tunnel::port(offer.advance.vni), offer.advance.mac) {
                Ok(recorder) => self.recorder = Some(recorder),
                Err(error) => {
                    tracing::warn!(error = story(&error), "frames on their way to the source at the stop will be lost")
                }
            }
        }
        Ok(())
    }

    pub(super) fn try_tunnels(&self, offer: &Offer) {
        let mut tunnels = vec![(offer.home, self.saved.home_mtu, End::Lan)];
        if offer.join == Join::Before {
            tunnels.push((offer.advance, offer.mtu, End::Vm));
        }
        let specs: Result<Vec<_>, Decline> = tunnels
            .into_iter()
            .map(|(tunnel, mtu, far)| Ok((self.host.spec(tunnel, offer, self.saved.remote, mtu)?, far)))
            .collect();
        let (facts, migration, host) = (self.facts.0.clone(), offer.migration, self.host.clone());
        tokio::task::spawn_local(async move {
            let meet = async {
                if let Err(error) = host.wireguard.meet(migration).await {
                    tracing::warn!(%migration, error = story(&error), "the hosts may not hear each other through WireGuard");
                }
                std::future::pending().await
            };
            let tried = match specs {
                Ok(specs) => {
                    let trials = specs.iter().map(|(spec, far)| full_frames::cross(spec, *far, migration));
                    tokio::select! {
                        tried = futures_util::future::try_join_all(trials) => tried.map(drop),
                        never = meet => never,
                    }
                }
                Err(why) => {
                    tracing::warn!(%migration, %why, "the tunnels cannot be tried");
                    Err(Impassable::Unknown(TRIAL))
                }
            };
            let _ = facts.send(tried.map_or_else(Event::Impassable, |()| Event::Carries));
        });
    }

    /// From the advance tunnel, unless that is done.
    pub(super) async fn part(&mut self, offer: &Offer) {
        if self.parting.take() {
            self.keep_pointing(offer).await;
            self.recorder = None;
            self.remove(offer.advance, offer).await;
            self.saved.account.steps.mark("advance tunnel removed");
        }
    }

    /// Unless another migration of the VM goes on with it.
    pub(super) async fn remove(&self, tunnel: TunnelId, offer: &Offer) {
        let here = self.saved.vm.as_ref().and_then(|vm| vm.vnic(tunnel.mac)?.tap.clone());
        let _alone = self.host.claims.alone(tunnel.vni).await;
        if self.host.claims.give_up(offer.migration, tunnel.vni) {
            if tunnel == offer.home && self.settled() {
                self.host.inventory.borrow_mut().replugged(offer.vm, tunnel.mac, crate::host::SPARE_BRIDGE);
            }
            return;
        }
        if let Err(error) = self.host.tunnels.remove(tunnel.vni).await {
            tracing::warn!(migration = %offer.migration, error = story(&error), "left behind");
        }
        // The old vNIC is a spare now, and a spare is plugged into the bridge of spares.
        if let Some(tap) = here.filter(|_| tunnel == offer.home && self.settled()) {
            let plugged = async {
                if !self.host.tunnels.link_exists(&tap).await? {
                    return Ok(()); // gone with its VM
                }
                self.host.tunnels.ensure_bridge(crate::host::SPARE_BRIDGE).await?;
                self.host.tunnels.plug(&tap, crate::host::SPARE_BRIDGE).await.map(drop)
            };
            // What the next move puts the spare back into, if it is called off.
            self.host.inventory.borrow_mut().replugged(offer.vm, tunnel.mac, crate::host::SPARE_BRIDGE);
            if let Err(error) = plugged.await {
                tracing::warn!(tap, error = story(&error), "the spare vNIC is left without a bridge");
            }
        }
    }
}
