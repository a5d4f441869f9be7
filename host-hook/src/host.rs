//! What every migration on this host shares.

use std::{cell::RefCell, net::IpAddr, path::PathBuf, rc::Rc};

use lsm_protocol::{Decline, Mac, MigrationId, Offer, TunnelId, Uuid};

use crate::{
    admission::Door,
    claims::Claims,
    config::{Config, Underlay},
    departure::Followed,
    divert::Fdb,
    inventory::Inventory,
    moved::Moves,
    peer::Identity,
    report::Reports,
    story,
    stream::Streams,
    tunnel::{TunnelSpec, Tunnels, path_mtu, wireguard::Wireguard},
};

/// Where a spare vNIC is plugged: a bridge with nothing else in it.
pub const SPARE_BRIDGE: &str = "lsm-spare";
/// Frames that wait at a tap for the CPUs: 1000 lost 855 at 4,000/s over 457 ms, 10000 none.
pub const QUEUE: u32 = 10_000;
/// No IP stack accepts less (RFC 791, section 3.2): where a fragment of an outer packet cannot even be this long, there
/// is no path.
const LEAST_MTU: u32 = 576;

/// The host.
pub struct Host {
    pub config: Config,
    pub identity: Identity,
    pub tunnels: Tunnels,
    pub wireguard: Wireguard,
    pub fdb: Fdb,
    pub inventory: RefCell<Inventory>,
    pub claims: Claims,
    pub door: Door,
    pub moves: Rc<Moves>,
    pub reports: Rc<Reports>,
    /// Of migrations themselves: memory and disks.
    pub streams: Rc<Streams>,
    /// Copies of VMs that leave.
    pub followed: Followed,
    /// Sockets and state.
    pub directory: PathBuf,
    /// State files of migrations.
    pub state: PathBuf,
}

impl Host {
    /// A VM's migration is over: what it was given here is free, unless it is here or comes back.
    pub fn release_addresses(&self, vm: Uuid) {
        if self.inventory.borrow().get(vm).is_none() && !self.claims.concern(vm) {
            self.inventory.borrow_mut().release(vm);
        }
    }

    /// [`Host::spec`] of a tunnel that is to be built, which is when the operator hears of its fragments.
    pub fn spec_to_build(
        &self,
        tunnel: TunnelId,
        offer: &Offer,
        remote: IpAddr,
        mtu: u16,
    ) -> Result<TunnelSpec, Decline> {
        let (spec, needed, available) = self.fit(tunnel, offer, remote, mtu)?;
        if needed > available {
            tracing::warn!(
                migration = %offer.migration,
                needed,
                available,
                "the LAN's full frames cross the underlay in fragments; raise its MTU for full speed"
            );
        }
        Ok(spec)
    }

    /// One tunnel of an offer as this host has it; `remote` is the other host's end.
    pub fn spec(&self, tunnel: TunnelId, offer: &Offer, remote: IpAddr, mtu: u16) -> Result<TunnelSpec, Decline> {
        self.fit(tunnel, offer, remote, mtu).map(|(spec, ..)| spec)
    }

    /// The tunnel, and the bytes that its full frames need on the underlay and have there.
    fn fit(
        &self,
        tunnel: TunnelId,
        offer: &Offer,
        remote: IpAddr,
        mtu: u16,
    ) -> Result<(TunnelSpec, u32, u32), Decline> {
        let Underlay { address, .. } = self.underlay()?;
        let spec = TunnelSpec {
            vni: tunnel.vni,
            mac: tunnel.mac,
            local: address,
            remote,
            port: offer.port,
            mtu: u32::from(mtu),
            inside: self.wireguard.inside(offer.migration).map_err(|error| Decline::Tunnel(story(&error)))?,
        };
        let path = path_mtu(&spec).map_err(|error| Decline::Tunnel(story(&error)))?;
        let available = self.underlay()?.mtu.unwrap_or(path.underlay);
        if available < LEAST_MTU || !path.carries_full_frames() {
            return Err(Decline::Mtu { needed: path.needed, available });
        }
        Ok((spec, path.needed, available))
    }

    /// Before a migration's tunnels are built. `remote` is the other host's end.
    pub async fn connect(&self, offer: &Offer, remote: IpAddr) -> Result<(), Decline> {
        self.wireguard.connect(offer, remote).await.map_err(|error| Decline::Tunnel(story(&error)))
    }

    /// After a migration's tunnels are gone.
    pub async fn disconnect(&self, migration: MigrationId) {
        if let Err(error) = self.wireguard.over(migration).await {
            tracing::warn!(%migration, error = story(&error), "left behind");
        }
    }

    pub fn underlay(&self) -> Result<Underlay, Decline> {
        self.config.tunnel.ok_or_else(|| Decline::Tunnel("host.toml has no [tunnel] address".to_owned()))
    }
}

/// The network identifier of a vNIC's tunnel: the same on both hosts, and the same each time, so that building it twice
/// is building it once. FNV-1a over UUID and MAC, folded to VXLAN's 24 bits; 0 is left out.
pub fn vni(vm: Uuid, mac: Mac) -> u32 {
    let hash =
        vm.0.iter()
            .chain(&mac.0)
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (((hash >> 24) ^ hash) & 0x00ff_ffff).max(1)
}
