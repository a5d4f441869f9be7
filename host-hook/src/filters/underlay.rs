//! Who may send into a tunnel from the underlay. A VXLAN device takes whatever bears its VNI, whoever sent it (vxlan_rcv
//! in drivers/net/vxlan/vxlan_core.c looks at the VNI alone, seen with 6.18): only the other end may.
//!
//! A base chain for each tunnel, behind the reassembly of fragments.

use std::{fmt::Write, net::IpAddr};

use super::rules::TABLE;

/// Frames that somebody else sent.
pub(super) fn counter(vni: u32) -> String {
    format!("foreign_{vni:x}")
}

fn chain(vni: u32) -> String {
    format!("from_underlay_{vni:x}")
}

pub(super) fn vni_of_chain(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("from_underlay_")?, 16).ok()
}

pub(super) fn guard(vni: u32, port: u16, remote: IpAddr) -> String {
    let (chain, counter) = (chain(vni), counter(vni));
    // RFC 7348, section 5: the VNI is the 24 bits behind flags and reserved bits, and those behind the UDP header's 64.
    let tunnel = format!("udp dport {port} @th,96,24 {vni:#x}");
    let (other_family, source) = match remote {
        IpAddr::V4(_) => ("ipv6", "ip"),
        IpAddr::V6(_) => ("ipv4", "ip6"),
    };
    let mut text = format!(
        "add table inet {TABLE}\n\
         add counter inet {TABLE} {counter}\n\
         add chain inet {TABLE} {chain} {{ type filter hook input priority -200; policy accept; }}\n\
         flush chain inet {TABLE} {chain}\n"
    );
    for whoever in [format!("meta nfproto {other_family}"), format!("{source} saddr != {remote}")] {
        _ = writeln!(text, "add rule inet {TABLE} {chain} {whoever} {tunnel} counter name {counter} drop");
    }
    text
}

pub(super) fn remove(vni: u32) -> String {
    let (chain, counter) = (chain(vni), counter(vni));
    format!(
        "flush chain inet {TABLE} {chain}\ndelete chain inet {TABLE} {chain}\ndelete counter inet {TABLE} {counter}\n"
    )
}

pub(super) fn remove_all() -> String {
    format!("delete table inet {TABLE}\n")
}
