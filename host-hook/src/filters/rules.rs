//! The text of the rules. Only matches that every kernel's bridge family has: interface names, Ethernet, ARP, IP.

use std::fmt::Write;

use lsm_protocol::{Addresses, Mac};

use super::Crossing;

pub(super) const TABLE: &str = "lsm";

/// Sent, sent and dropped, received, received and dropped; of what is sent to many: ARP, DHCP, router advertisements.
pub(super) fn counters(vni: u32) -> [String; 7] {
    ["sent", "sent_dropped", "received", "received_dropped", "arp", "dhcp", "ra"].map(|what| format!("{what}_{vni:x}"))
}

/// Every tunnel has a chain by this name, at either end.
fn into(vni: u32) -> String {
    format!("into_{vni:x}")
}

fn out_of(vni: u32) -> String {
    format!("out_of_{vni:x}")
}

pub(super) fn vni_of_chain(name: &str) -> Option<u32> {
    u32::from_str_radix(name.strip_prefix("into_")?, 16).ok()
}

pub(super) fn lan_end(vni: u32, mac: Mac, crossing: Crossing) -> String {
    let [sent, sent_dropped, received, received_dropped, arp, dhcp, ra] = counters(vni);
    let (into, out_of) = (into(vni), out_of(vni));
    let mut text = frame(vni);
    let mut rule = |chain: &str, rule: String| _ = writeln!(text, "add rule bridge {TABLE} {chain} {rule}");
    for kept in kept_quiet(crossing) {
        rule(&out_of, format!("{kept} counter name {received_dropped} drop"));
    }
    for spoken in spoken(crossing.addresses) {
        rule(&out_of, format!("ether saddr {mac} {spoken} counter name {received} accept"));
    }
    rule(&out_of, format!("counter name {received_dropped} drop"));
    rule(&into, format!("ether saddr {mac} counter name {sent_dropped} drop"));
    rule(&into, format!("ether daddr {mac} counter name {sent} accept"));
    // Of unicast frames a bridge floods whatever it does not know; below this line only what is sent to many.
    rule(&into, format!("ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 counter name {sent_dropped} drop"));
    let mut crosses = |what: &str, kind: &str| {
        rule(&into, format!("{what} counter name {sent} counter name {kind} accept"));
    };
    if crossing.arp {
        // Replies too: a gateway that has failed over announces itself with either.
        crosses("ether type arp", &arp);
        crosses("ether type ip6 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert }", &arp);
    }
    if crossing.ra {
        crosses("ether type ip6 icmpv6 type nd-router-advert", &ra);
    }
    if crossing.dhcp {
        // Whose reply it is stands behind 8 bytes of UDP and 28 of BOOTP (RFC 951: chaddr).
        let [a, b, c, d, e, f] = mac.0;
        let whose = format!("@th,288,48 0x{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}");
        crosses(&format!("ether type ip udp sport 67 udp dport 68 {whose}"), &dhcp);
    }
    rule(&into, format!("counter name {sent_dropped} drop"));
    text
}

/// What a VM's kernel says by itself as soon as a vNIC comes up, and what the LAN need not hear before the VM is there. Where
/// the LAN's routers make its address, it has to ask them; elsewhere it asks for no router, tries no address, and joins no
/// group: the gateway knows it by its own solicitation, and QEMU's announcement at arrival makes the VM's kernel report its
/// groups again (NETDEV_RESEND_IGMP).
fn kept_quiet(crossing: Crossing) -> Vec<&'static str> {
    match (crossing.ra, crossing.addresses) {
        _ if !crossing.arriving => Vec::new(),
        (true, _) => Vec::new(),
        (false, Some(Addresses { v6: Some(_), .. })) => vec![
            "ether type ip6 ip6 saddr ::",
            "ether type ip6 icmpv6 type { nd-router-solicit, mld-listener-report, mld-listener-done, mld2-listener-report }",
        ],
        (false, _) => vec!["ether type ip6"],
    }
}

/// What the vNIC may put into the LAN. Of IPv6 it has a link-local address in every LAN, and before that none.
fn spoken(addresses: Option<Addresses>) -> Vec<String> {
    let Some(Addresses { v4, v6 }) = addresses else { return vec![String::new()] };
    let v6 = v6.map_or_else(String::new, |address| format!(", {address}"));
    let mut spoken = vec![format!("ether type ip6 ip6 saddr {{ ::, fe80::/10{v6} }}")];
    if let Some(address) = v4 {
        spoken.push(format!("ether type arp arp saddr ip {{ {address}, 0.0.0.0 }}")); // RFC 5227: a probe has none yet
        spoken.push(format!("ether type ip ip saddr {address}"));
    }
    spoken
}

pub(super) fn vm_end(vni: u32, mac: Mac) -> String {
    let [sent, sent_dropped, received, received_dropped, ..] = counters(vni);
    let (into, out_of) = (into(vni), out_of(vni));
    let mut text = frame(vni);
    let mut rule = |chain: &str, rule: String| _ = writeln!(text, "add rule bridge {TABLE} {chain} {rule}");
    rule(&into, format!("ether saddr {mac} counter name {sent} accept"));
    rule(&into, format!("counter name {sent_dropped} drop"));
    rule(&out_of, format!("ether saddr {mac} counter name {received_dropped} drop"));
    rule(&out_of, format!("counter name {received} accept"));
    text
}

/// The table, what all tunnels share, and this tunnel's two chains, empty. Whatever of it stands already stays, so
/// that the counters go on.
fn frame(vni: u32) -> String {
    let (into, out_of) = (into(vni), out_of(vni));
    let port = crate::tunnel::port(vni);
    let mut text = format!(
        "add table bridge {TABLE}\n\
         add map bridge {TABLE} ports_in {{ type ifname : verdict; }}\n\
         add map bridge {TABLE} ports_out {{ type ifname : verdict; }}\n\
         add chain bridge {TABLE} arriving {{ type filter hook prerouting priority -200; policy accept; }}\n\
         add chain bridge {TABLE} crossing {{ type filter hook forward priority -200; policy accept; }}\n\
         add chain bridge {TABLE} leaving {{ type filter hook postrouting priority 200; policy accept; }}\n\
         flush chain bridge {TABLE} arriving\n\
         flush chain bridge {TABLE} crossing\n\
         flush chain bridge {TABLE} leaving\n\
         add rule bridge {TABLE} arriving iifname vmap @ports_in\n\
         add rule bridge {TABLE} crossing iifname \"lsmp*\" oifname \"lsmp*\" drop\n\
         add rule bridge {TABLE} leaving oifname vmap @ports_out\n"
    );
    for counter in counters(vni) {
        _ = writeln!(text, "add counter bridge {TABLE} {counter}");
    }
    for (map, chain) in [("ports_out", &into), ("ports_in", &out_of)] {
        _ = writeln!(text, "add chain bridge {TABLE} {chain}\nflush chain bridge {TABLE} {chain}");
        _ = writeln!(text, "add element bridge {TABLE} {map} {{ \"{port}\" : jump {chain} }}");
    }
    text
}

pub(super) fn remove(vni: u32) -> String {
    let port = crate::tunnel::port(vni);
    let mut text = format!(
        "delete element bridge {TABLE} ports_out {{ \"{port}\" }}\n\
         delete element bridge {TABLE} ports_in {{ \"{port}\" }}\n"
    );
    for chain in [into(vni), out_of(vni)] {
        _ = writeln!(text, "flush chain bridge {TABLE} {chain}\ndelete chain bridge {TABLE} {chain}");
    }
    for counter in counters(vni) {
        _ = writeln!(text, "delete counter bridge {TABLE} {counter}");
    }
    text
}

pub(super) fn remove_all() -> String {
    format!("delete table bridge {TABLE}\n")
}
