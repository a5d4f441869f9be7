//! What the underlay between two hosts carries.

use std::{
    io,
    net::{IpAddr, UdpSocket},
};

use nix::{
    getsockopt_impl, libc, sockopt_impl,
    sys::socket::{getsockopt, sockopt::IpMtu},
};

use super::{TunnelError, TunnelSpec};

// Around the LAN's packet: its Ethernet header 14, VXLAN 8, UDP 8, and the outer IP header (RFC 7348, section 5).
const OVERHEAD_V4: u32 = 14 + 8 + 8 + 20;
const OVERHEAD_V6: u32 = 14 + 8 + 8 + 40;

/// Whether full frames of the LAN pass between two hosts, with the numbers. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathMtu {
    /// Largest packet that the underlay takes whole, as far as this host knows now.
    pub underlay: u32,
    /// What a full frame of the LAN becomes inside the tunnel.
    pub needed: u32,
    /// The kernel cuts an outer packet that is too large only in IPv4 (`ip6_fragment` wants `ignore_df`, which VXLAN
    /// does not set; seen on 6.18).
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

sockopt_impl!(
    /// Like `IpMtu`; nix has only the IPv4 one.
    Ipv6Mtu,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    i32
);

/// The numbers for one tunnel. Counts what the kernel has learned of the path so far; sends nothing.
///
/// # Errors
/// When this host has no such address or no route to the other one.
pub fn path_mtu(spec: &TunnelSpec) -> Result<PathMtu, TunnelError> {
    let (underlay, overhead) = match spec.remote {
        IpAddr::V4(_) => (ask(spec, |socket| getsockopt(socket, IpMtu))?, OVERHEAD_V4),
        IpAddr::V6(_) => (ask(spec, |socket| getsockopt(socket, Ipv6Mtu))?, OVERHEAD_V6),
    };
    Ok(PathMtu { underlay, needed: spec.mtu + overhead, may_fragment: spec.remote.is_ipv4() })
}

fn ask(spec: &TunnelSpec, mtu: impl FnOnce(&UdpSocket) -> nix::Result<i32>) -> Result<u32, TunnelError> {
    let io = |what: String| move |source: io::Error| TunnelError::Io { what, source };
    let socket = UdpSocket::bind((spec.local, 0))
        .map_err(io(format!("use the tunnel address {}: see [tunnel] address in host.toml", spec.local)))?;
    socket.connect((spec.remote, spec.port)).map_err(io(format!("reach {} from {}", spec.remote, spec.local)))?;
    let mtu = mtu(&socket).map_err(io::Error::from);
    let mtu = mtu.map_err(io(format!("read the MTU of the path from {} to {}", spec.local, spec.remote)))?;
    Ok(u32::try_from(mtu).unwrap_or(0))
}
