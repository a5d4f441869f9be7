//! Who may send to WireGuard, and what may come out of it: a peer's key says who it is, but the interface would give it
//! all of this host that listens on IPv6, past what guards the underlay.

use std::{
    collections::BTreeSet,
    fmt::Write,
    net::{IpAddr, Ipv6Addr},
};

use crate::tunnel::wireguard::INTERFACE;

pub(super) const TABLE: &str = "lsm_wireguard";

/// A host that this one has tunnels with inside WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entrance {
    /// Its underlay address.
    pub outside: IpAddr,
    pub inside: Ipv6Addr,
    /// UDP port of the tunnels.
    pub port: u16,
}

/// The whole table, in place of what there is.
pub(super) fn guard(port: u16, entrances: &BTreeSet<Entrance>) -> String {
    let mut text = remove();
    _ = writeln!(
        text,
        "add table inet {TABLE}\nadd chain inet {TABLE} arriving {{ type filter hook input priority -200; policy accept; }}"
    );
    let mut rule = |rule: String| _ = writeln!(text, "add rule inet {TABLE} arriving {rule}");
    let outside: BTreeSet<_> = entrances.iter().map(|entrance| entrance.outside).collect();
    for address in outside {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        rule(format!("{family} saddr {address} udp dport {port} accept"));
    }
    rule(format!("udp dport {port} drop"));
    let inside: BTreeSet<_> = entrances.iter().map(|entrance| (entrance.inside, entrance.port)).collect();
    for (address, port) in inside {
        rule(format!("iifname \"{INTERFACE}\" ip6 saddr {address} udp dport {port} accept"));
    }
    rule(format!("iifname \"{INTERFACE}\" drop"));
    text
}

pub(super) fn remove() -> String {
    // Added first, since what is not there cannot be deleted.
    format!("add table inet {TABLE}\ndelete table inet {TABLE}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_is_let_in_by_its_address_and_only_to_the_tunnels() {
        let entrance = |n: u8, outside: &str| Entrance {
            outside: outside.parse().unwrap(),
            inside: Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]),
            port: 4789,
        };
        let both = BTreeSet::from([entrance(1, "192.0.2.1"), entrance(2, "2001:db8::2")]);
        let text = guard(16_520, &both);
        let rules: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("add rule inet lsm_wireguard arriving ")).collect();
        assert_eq!(
            rules,
            [
                "ip saddr 192.0.2.1 udp dport 16520 accept",
                "ip6 saddr 2001:db8::2 udp dport 16520 accept",
                "udp dport 16520 drop",
                "iifname \"lsmw\" ip6 saddr fe80::1 udp dport 4789 accept",
                "iifname \"lsmw\" ip6 saddr fe80::2 udp dport 4789 accept",
                "iifname \"lsmw\" drop",
            ]
        );
        assert!(text.starts_with(&remove()), "what there was is replaced in one transaction");
    }
}
