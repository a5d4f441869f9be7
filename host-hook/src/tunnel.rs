//! Tunnels: a VXLAN device with one fixed remote, for one vNIC, between the host where the VM runs and a host on the
//! vNIC's LAN.
//!
//! ```text
//!   LAN end                                                    VM end
//!   LAN's bridge -- lsmp<vni> -- lsmt<vni> ~~~ underlay ~~~ lsmt<vni> -- lsmp<vni> -- lsmb<vni> -- tap
//! ```
//!
//! `lsmt` is the VXLAN device, `lsmb` the vNIC's own bridge, `lsmp` a macvlan in passthru mode between the two. It is
//! there for the MTU: a VXLAN device that is itself a bridge port answers full frames with "fragmentation needed" in
//! the receiver's name as soon as they do not fit the underlay (`skb_tunnel_check_pmtu`, seen on 6.18), one that is
//! not a port lets the outer packet be fragmented.
//!
//! Where the underlay is not trusted, the VXLAN packets are inside WireGuard ([`wireguard`]).
//!
//! Everything may be done twice: "already so" and "already gone" are success.

pub mod full_frames;
mod links;
mod underlay;
pub mod wireguard;

use std::{io, net::IpAddr, sync::Arc};

use lsm_protocol::Mac;
use rtnetlink::{
    LinkBridge, LinkMacVlan, LinkMessageBuilder, LinkVxlan,
    packet_route::link::{InfoData, InfoMacVlan, InfoVxlan, LinkMessage, MacVlanMode, VxlanDf},
};

pub use self::underlay::{PathMtu, path_mtu};
use self::{
    links::{Link, Links},
    wireguard::{INTERFACE, Inside},
};
use crate::{
    divert::{DivertError, Fdb},
    filters::{self, Crossing, FilterError, Sender},
    together::Together,
};

/// One tunnel, as one of its two hosts sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelSpec {
    /// VXLAN network identifier, below 2^24, the tunnel's name on both hosts.
    pub vni: u32,
    /// The vNIC.
    pub mac: Mac,
    /// This host's underlay address.
    pub local: IpAddr,
    /// The other host's underlay address.
    pub remote: IpAddr,
    /// UDP port of VXLAN on both hosts.
    pub port: u16,
    /// The LAN's MTU in bytes: the largest IP packet that crosses whole.
    pub mtu: u32,
    /// The ends inside WireGuard, where it is not plain.
    pub inside: Option<Inside>,
}

/// What went wrong with a tunnel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    #[error("cannot {what}")]
    Kernel {
        what: String,
        #[source]
        source: rtnetlink::Error,
    },
    #[error("cannot {what}")]
    Io {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("there is no interface {0}: see \"ip link\" and the bridge names in host.toml")]
    Missing(String),
    #[error("{0} is not a bridge: see the bridge names in host.toml")]
    NotABridge(String),
    #[error("{0} is there and no WireGuard interface; its name is needed: rename or remove it with \"ip link\"")]
    NotWireguard(String),
    #[error("VNI {0} is out of range: 1 to 16777215")]
    BadVni(u32),
    #[error("the tunnel's ends {local} and {remote} are not of one address family")]
    Families { local: IpAddr, remote: IpAddr },
    #[error(transparent)]
    Filters(#[from] FilterError),
    #[error(transparent)]
    Fdb(#[from] DivertError),
    #[error("tunnel {vni} was taken down only in part: {}", .errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    LeftBehind { vni: u32, errors: Vec<TunnelError> },
}

/// Name of the tunnel's VXLAN device.
pub fn device(vni: u32) -> String {
    format!("lsmt{vni:x}")
}

/// Name of the tunnel's port in a bridge.
pub fn port(vni: u32) -> String {
    format!("lsmp{vni:x}")
}

/// Name of the bridge that a vNIC has for itself at the tunnel's VM end.
pub fn bridge(vni: u32) -> String {
    format!("lsmb{vni:x}")
}

/// All tunnels of this host.
#[derive(Clone)]
pub struct Tunnels {
    links: Links,
    /// By VNI.
    removals: Arc<Together<u32>>,
}

impl Tunnels {
    /// Opens the way to the kernel, in the network namespace of the calling thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self, TunnelError> {
        Ok(Self { links: Links::open()?, removals: Arc::new(Together::new()) })
    }

    /// Builds the end on the vNIC's LAN: the tunnel becomes a port of `lan_bridge`. `toward_tunnel` says that the VM
    /// is at the far end now, so that the LAN's frames for the vNIC go there.
    ///
    /// # Errors
    /// What the kernel refused; what was built until then stays and is taken down by [`Tunnels::remove`].
    pub async fn build_lan_end(
        &self,
        spec: &TunnelSpec,
        lan_bridge: &str,
        toward_tunnel: bool,
        crossing: Crossing,
    ) -> Result<(), TunnelError> {
        let lan = self.links.need(lan_bridge).await?;
        if !lan.is_bridge() {
            return Err(TunnelError::NotABridge(lan_bridge.to_owned()));
        }
        // Filters first: they match by name, so no frame ever crosses unfiltered.
        filters::guard_lan_end(spec.vni, spec.mac, crossing).await?;
        let port = self.build_port(spec).await?;
        let name = self::port(spec.vni);
        self.links.set(&name, port.index(), |link| link.controller(lan.index())).await?;
        // No unicast flooding: before the VM's CPUs stop, an unknown vNIC's frames would pile up at the far end.
        self.links.set_port(&name, port.index(), |p| p.learning(false).flood(false)).await?;
        if toward_tunnel {
            let fdb = Fdb::open()?;
            fdb.divert(&fdb.prepare(lan_bridge, spec.mac, &name, None)?)?;
        }
        self.links.set(&name, port.index(), LinkMessageBuilder::up).await
    }

    /// Builds the end at the VM: the vNIC's own bridge with the tunnel in it. The tap is put there by libvirt
    /// (destination) or by [`Tunnels::plug`] (source).
    ///
    /// # Errors
    /// As [`Tunnels::build_lan_end`].
    pub async fn build_vm_end(&self, spec: &TunnelSpec) -> Result<(), TunnelError> {
        filters::guard_vm_end(spec.vni, spec.mac).await?;
        let own = self.build_bridge(spec).await?;
        let port = self.build_port(spec).await?;
        let name = self::port(spec.vni);
        self.links.set(&name, port.index(), |link| link.controller(own)).await?;
        // Learning on the tunnel's port would point the vNIC's MAC away from the tap where frames wait for the CPUs.
        self.links.set_port(&name, port.index(), |p| p.learning(false)).await?;
        self.links.set(&name, port.index(), LinkMessageBuilder::up).await
    }

    /// Plugs a tap into a bridge and tells which bridge it was in before.
    ///
    /// # Errors
    /// When either does not exist or the kernel refuses.
    pub async fn plug(&self, tap: &str, bridge: &str) -> Result<Option<String>, TunnelError> {
        let link = self.links.need(tap).await?;
        let target = self.links.need(bridge).await?;
        let former = match link.master() {
            Some(index) => self.links.find_index(index).await?.and_then(|l| l.name().map(str::to_owned)),
            None => None,
        };
        if link.master() != Some(target.index()) {
            self.links.set(tap, link.index(), |l| l.controller(target.index())).await?;
        }
        Ok(former)
    }

    /// Takes a tap out of its bridge. A tap that is gone is success.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn unplug(&self, tap: &str) -> Result<(), TunnelError> {
        match self.links.find(tap).await? {
            Some(link) if link.master().is_some() => {
                self.links.set(tap, link.index(), LinkMessageBuilder::nocontroller).await
            }
            _ => Ok(()),
        }
    }

    /// Whether broadcasts, multicasts and frames for unknown addresses are flooded to a bridge port. A tap that waits
    /// for its VM is better off without: what the LAN broadcasts meanwhile would fill the queue that the VM's own
    /// frames need.
    ///
    /// # Errors
    /// When there is no such port.
    pub async fn set_flooding(&self, port: &str, flood: bool) -> Result<(), TunnelError> {
        let link = self.links.need(port).await?;
        self.links.set_port(port, link.index(), |p| p.flood(flood).mcast_flood(flood).bcast_flood(flood)).await
    }

    /// Takes this host's end down: filters, devices, the vNIC's bridge. A tap still in that bridge is left without one.
    ///
    /// # Errors
    /// All that could not be removed; the rest is gone.
    pub async fn remove(&self, vni: u32) -> Result<(), TunnelError> {
        let removed = self.removals.make(vni, async |all: &[u32]| self.remove_links(all).await).await;
        let mut errors: Vec<_> = removed.err().into_iter().collect();
        // Last: as long as a device stands, so does its guard.
        errors.extend(filters::remove(vni).await.err().map(TunnelError::from));
        if errors.is_empty() { Ok(()) } else { Err(TunnelError::LeftBehind { vni, errors }) }
    }

    async fn remove_links(&self, all: &[u32]) -> Result<(), TunnelError> {
        let names: Vec<_> = all.iter().flat_map(|vni| [port(*vni), device(*vni), bridge(*vni)]).collect();
        self.links.delete_together(&names).await
    }

    /// The VNIs of all tunnels of which anything is left on this host, in ascending order.
    ///
    /// # Errors
    /// When the kernel does not list its interfaces.
    pub async fn list_ours(&self) -> Result<Vec<u32>, TunnelError> {
        let links = self.links.all().await?;
        let mut ours: Vec<u32> = links.iter().filter_map(|link| vni_of(link.name()?)).collect();
        ours.extend(filters::list().await?);
        ours.sort_unstable();
        ours.dedup();
        Ok(ours)
    }

    /// How many packets have come from the other host's end of a tunnel since it was built here.
    ///
    /// # Errors
    /// When there is no such tunnel.
    pub async fn received(&self, vni: u32) -> Result<u64, TunnelError> {
        Ok(self.links.need(&device(vni)).await?.received().unwrap_or_default())
    }

    /// # Errors
    /// When the kernel does not answer.
    pub async fn link_exists(&self, name: &str) -> Result<bool, TunnelError> {
        Ok(self.links.find(name).await?.is_some())
    }

    /// # Errors
    /// When the kernel does not answer.
    pub async fn bridge_exists(&self, name: &str) -> Result<bool, TunnelError> {
        Ok(self.links.find(name).await?.is_some_and(|link| link.is_bridge()))
    }

    /// How many frames a tap holds for a VM that does not read.
    ///
    /// # Errors
    /// When there is no such tap.
    pub async fn set_queue_length(&self, tap: &str, frames: u32) -> Result<(), TunnelError> {
        let link = self.links.need(tap).await?;
        self.links.set(tap, link.index(), |l| l.txqueuelen(frames)).await
    }

    /// Sets an interface's MTU, in bytes.
    ///
    /// # Errors
    /// When there is no such interface or the kernel refuses the number.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), TunnelError> {
        let link = self.links.need(name).await?;
        self.links.set(name, link.index(), |l| l.mtu(mtu)).await
    }

    /// A bridge of this name that the host's own IP stack has no part in.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn ensure_bridge(&self, name: &str) -> Result<u32, TunnelError> {
        let link = match self.links.find(name).await? {
            Some(link) => link,
            // Down until IP is off: a bridge that comes up as it is made greets its VM in the host's name.
            None => {
                let quiet = LinkBridge::new(name).down().forward_delay(0).mcast_snooping(false);
                self.links.create(name, quiet.build()).await?
            }
        };
        self.links.keep_ip_off(name, link.index()).await?;
        self.links.set(name, link.index(), |l| l.arp(false).up()).await?;
        Ok(link.index())
    }

    async fn build_bridge(&self, spec: &TunnelSpec) -> Result<u32, TunnelError> {
        let name = bridge(spec.vni);
        let index = self.ensure_bridge(&name).await?;
        self.links.set(&name, index, |l| l.mtu(spec.mtu)).await?;
        Ok(index)
    }

    /// The index of the WireGuard interface, which takes the tunnel's full frames from now on.
    async fn make_room(&self, spec: &TunnelSpec) -> Result<u32, TunnelError> {
        let interface = self.links.need(INTERFACE).await?;
        let needed = spec.mtu + underlay::OVERHEAD_V6;
        if interface.mtu().is_none_or(|mtu| mtu < needed) {
            self.links.set(INTERFACE, interface.index(), |link| link.mtu(needed)).await?;
        }
        Ok(interface.index())
    }

    /// The VXLAN device, up, and its port, down.
    async fn build_port(&self, spec: &TunnelSpec) -> Result<Link, TunnelError> {
        let (device, port) = (device(spec.vni), port(spec.vni));
        let by = match spec.inside {
            Some(_) => Some(self.make_room(spec).await?),
            None => None,
        };
        let vxlan = vxlan(spec, by)?;
        let sender = match spec.inside {
            Some(inside) => Sender { address: inside.remote.into(), interface: Some(INTERFACE) },
            None => Sender { address: spec.remote, interface: None },
        };
        filters::guard_underlay(spec.vni, spec.port, sender).await?;
        let lower = match self.links.find(&device).await? {
            Some(link) if leads_to(&link, spec, by) => link,
            // Of another migration, to another host.
            Some(_) => {
                self.links.delete(&device).await?;
                self.links.create(&device, vxlan).await?
            }
            None => self.links.create(&device, vxlan).await?,
        };
        self.links.keep_ip_off(&device, lower.index()).await?;
        self.links.set(&device, lower.index(), |l| l.mtu(spec.mtu).arp(false).up()).await?;
        let upper = match self.links.find(&port).await? {
            Some(link) => link,
            None => {
                let macvlan = LinkMacVlan::new(&port, lower.index(), MacVlanMode::Passthrough)
                    // Broadcasts are handed on at once, not by a kernel thread (6.4 and later; before, that stays).
                    .append_info_data(InfoMacVlan::BcCutoff(-1));
                self.links.create(&port, macvlan.build()).await?
            }
        };
        self.links.keep_ip_off(&port, upper.index()).await?;
        self.links.set(&port, upper.index(), |l| l.mtu(spec.mtu).arp(false)).await?;
        Ok(upper)
    }
}

fn vni_of(name: &str) -> Option<u32> {
    let digits = ["lsmt", "lsmp", "lsmb"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
    let vni = u32::from_str_radix(digits, 16).ok()?;
    // Only names we would have given.
    (format!("{vni:x}") == digits).then_some(vni)
}

/// `by`: the index of the one interface that its packets may take.
fn vxlan(spec: &TunnelSpec, by: Option<u32>) -> Result<LinkMessage, TunnelError> {
    if !(1..1 << 24).contains(&spec.vni) {
        return Err(TunnelError::BadVni(spec.vni));
    }
    let builder = LinkVxlan::new(&device(spec.vni), spec.vni);
    let builder = by.into_iter().fold(builder, |builder, index| builder.dev(index));
    let builder = match ends(spec) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => builder.local(local).remote(remote),
        (IpAddr::V6(local), IpAddr::V6(remote)) => builder.local6(local).remote6(remote),
        (local, remote) => return Err(TunnelError::Families { local, remote }),
    };
    // No "don't fragment" outside: full frames of the LAN cross an underlay that is no larger than the LAN.
    Ok(builder.port(spec.port).learning(false).df(VxlanDf::Unset).mtu(spec.mtu).build())
}

/// Between which addresses its packets go.
fn ends(spec: &TunnelSpec) -> (IpAddr, IpAddr) {
    spec.inside.map_or((spec.local, spec.remote), |inside| (inside.local.into(), inside.remote.into()))
}

fn leads_to(link: &Link, spec: &TunnelSpec, by: Option<u32>) -> bool {
    let Some(InfoData::Vxlan(infos)) = link.data() else { return false };
    let (local, remote) = match ends(spec) {
        (IpAddr::V4(local), IpAddr::V4(remote)) => (InfoVxlan::Local(local), InfoVxlan::Group(remote)),
        (IpAddr::V6(local), IpAddr::V6(remote)) => (InfoVxlan::Local6(local), InfoVxlan::Group6(remote)),
        _ => return false,
    };
    let wanted = [InfoVxlan::Id(spec.vni), InfoVxlan::Port(spec.port), local, remote];
    wanted.into_iter().chain(by.map(InfoVxlan::Link)).all(|info| infos.contains(&info))
}
