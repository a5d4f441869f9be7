//! Who may send into a tunnel from the underlay. A VXLAN device takes whatever bears its VNI, whoever sent it (vxlan_rcv
//! in drivers/net/vxlan/vxlan_core.c looks at the VNI alone, seen with 6.18): only the other end may.
//!
//! Of a tunnel inside WireGuard the other end is an address there, and by no other interface.
//!
//! A base chain for each tunnel, behind the reassembly of fragments.

use std::{fmt::Write, net::IpAddr};

use super::rules::TABLE;

/// The other end of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    pub address: IpAddr,
    /// What its packets come by; `None`: whatever.
    pub interface: Option<&'static str>,
}

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

pub(super) fn guard(vni: u32, port: u16, sender: Sender) -> String {
    let (chain, counter) = (chain(vni), counter(vni));
    // RFC 7348, section 5: the VNI is the 24 bits behind flags and reserved bits, and those behind the UDP header's 64.
    let tunnel = format!("udp dport {port} @th,96,24 {vni:#x}");
    let remote = sender.address;
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
    let by_another = sender.interface.map(|interface| format!("iifname != \"{interface}\""));
    let strangers = [format!("meta nfproto {other_family}"), format!("{source} saddr != {remote}")];
    for whoever in strangers.into_iter().chain(by_another) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inside_wireguard_the_address_alone_is_not_enough() {
        let address: IpAddr = "fe80::1".parse().unwrap();
        let rules = |interface| {
            let text = guard(0x1f, 4789, Sender { address, interface });
            text.lines().filter(|line| line.ends_with("drop")).map(str::to_owned).collect::<Vec<_>>()
        };
        let plain = rules(None);
        assert!(
            plain.len() == 2 && plain[0].contains("meta nfproto ipv4") && plain[1].contains("ip6 saddr != fe80::1")
        );
        let inside = rules(Some("lsmw"));
        assert_eq!(inside[..2], plain);
        assert!(
            inside.len() == 3 && inside[2].contains("iifname != \"lsmw\" udp dport 4789 @th,96,24 0x1f"),
            "{inside:?}"
        );
    }
}
