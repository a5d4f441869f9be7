//! What the underlay between two hosts carries.

use std::{io, net::IpAddr};

use nix::errno::Errno;

use super::{TunnelError, TunnelSpec};
use crate::divert::Rtnl;

// Around the LAN's packet: its Ethernet header 14, VXLAN 8, UDP 8, and the outer IP header (RFC 7348, section 5).
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
pub(super) const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;
// Around that, inside WireGuard: its header 16 and its tag 16, UDP 8, and the outer IP header.
const WIREGUARD_V4: u32 = 16 + 16 + 8 + 20;
const WIREGUARD_V6: u32 = 16 + 16 + 8 + 40;

/// Whether full frames of the LAN pass between two hosts, with the numbers. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// Largest packet that the underlay takes whole, as far as this host knows now.
    pub underlay: u32,
    /// What a full frame of the LAN becomes inside the tunnel.
    pub needed: u32,
    /// The kernel cuts an outer packet of VXLAN's that is too large only in IPv4 (`ip6_fragment` wants `ignore_df`, which
    /// VXLAN does not set; seen on 6.18), one of WireGuard's in both (`send6` in drivers/net/wireguard/socket.c sets it).
    may_fragment: bool,
}

impl PathMtu {
    /// Full frames would have to cross in pieces. In IPv4 that works where nothing between the hosts drops fragments,
    /// and costs throughput; in IPv6 it does not.
    pub fn fragments(&self) -> bool {
        self.needed > self.underlay
    }

    /// Whether full frames cross at all. Where not, a tunnel must not be used: large frames would vanish silently.
    pub fn carries_full_frames(&self) -> bool {
        self.may_fragment || !self.fragments()
    }
}

/// The numbers for one tunnel. Counts what the kernel has learned of the path so far; sends nothing.
///
/// # Errors
/// When this host has no such address or no route to the other one.
pub fn path_mtu(spec: &TunnelSpec) -> Result<PathMtu, TunnelError> {
    let io = |what: String| move |source: io::Error| TunnelError::Io { what, source };
    let TunnelSpec { local, remote, inside, .. } = *spec;
    let kernel = Rtnl::open().map_err(io("ask the kernel for routes".to_owned()))?;
    let own = kernel.is_own(local).and_then(|own| own.then_some(()).ok_or_else(|| Errno::EADDRNOTAVAIL.into()));
    own.map_err(io(format!("use the tunnel address {local}: see [tunnel] address in host.toml")))?;
    let underlay = kernel.mtu_to(remote, local).map_err(io(format!("reach {remote} from {local}")))?;
    let overhead = match (inside, remote) {
        (None, IpAddr::V4(_)) => OVERHEAD_V4,
        (None, IpAddr::V6(_)) => OVERHEAD_V6,
        (Some(_), IpAddr::V4(_)) => OVERHEAD_V6 + WIREGUARD_V4,
        (Some(_), IpAddr::V6(_)) => OVERHEAD_V6 + WIREGUARD_V6,
    };
    Ok(PathMtu { underlay, needed: spec.mtu + overhead, may_fragment: remote.is_ipv4() || inside.is_some() })
}
