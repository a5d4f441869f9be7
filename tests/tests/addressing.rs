//! How a VM without an owner of its cards gets its addresses of a new LAN: each way moves it, says nothing in the new LAN
//! before the VM is there that it need not say, and takes its time, which is printed.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use lsm_tests::{
    capture::{Capture, Frame, Mac, Packet, Recording, Scope},
    connections::{Connections, addresses, move_with_connections},
    demo::timeline,
    family::Family,
    readiness,
    shell::{LabError, Result, chain, wait_for},
    snapshot::Snapshot,
    stage::{Stage, StageOptions, lacking},
    topology::TopologyOptions,
    traffic::Nanos,
};

const LIMIT: Duration = Duration::from_secs(60);

/// Moves it; what the VM says in the new LAN before it runs there is no more than this.
fn moves(addressing: &str, family: Family, allowed: &[&str]) {
    if lacking() {
        return;
    }
    let what = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
        Family::Dual => "both families",
    };
    let mut mode = readiness::Mode::new(&format!("`{addressing}`, {what}: lsm-guest"));
    for _ in 0..readiness::runs() {
        only(&said_before_arrival(addressing, family, &mut mode), allowed);
    }
    mode.print();
}

/// One move; gives what the VM said in the new LAN before it ran there, each thing once.
fn said_before_arrival(addressing: &str, family: Family, mode: &mut readiness::Mode) -> BTreeSet<String> {
    let topology = TopologyOptions { family, ..TopologyOptions::default() };
    let policy = "unprepared = \"refuse\"\nprepare_wait_ms = 20000".into();
    let options = StageOptions { addressing: addressing.into(), policy, topology, ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let moved = (|| {
        // As in every distribution: what a kernel says of IPv6 by itself is to be heard, if it is.
        stage.guest.must("echo 0 >/proc/sys/net/ipv6/conf/eth1/disable_ipv6")?;
        let direct = readiness::on_a_direct_link(&stage, addressing)?;
        let lan = listen(&stage)?;
        let begun = timeline::now();
        move_with_connections(&stage, "dallas")?;
        let of_dallas =
            |address: &IpAddr| ["10.2.0.", "2001:db8:2:"].iter().any(|lan| address.to_string().starts_with(lan));
        // What nobody had moved of the old vNIC's IPv6 goes when that is set down, a moment after the move is over.
        let has = wait_for("the new LAN's addresses alone", LIMIT, || {
            addresses(&stage).ok().filter(|has| has.iter().all(of_dallas))
        })?;
        mode.add(&stage, None, direct)?;
        let arrived = timeline::qemu_event(stage.site("dallas"), "RESUME", begun);
        let arrived = arrived.ok_or_else(|| LabError::Other("QEMU did not say RESUME".into()))?;
        heard(&stage, lan.stop(), arrived, &has)
    })();
    moved.unwrap_or_else(|error| panic!("{addressing}: {}\n{}", chain(&error), stage.story()))
}

/// All that passes between the LAN of dallas and its gateway.
fn listen(stage: &Stage) -> Result<Capture> {
    let (namespace, interface) = (Some(stage.topology.ns("gw-dallas").path()), Some("lan".into()));
    let scope = Scope { namespace, interface, everything: true, ..Scope::default() };
    Capture::start(scope).map_err(|error| LabError::Other(error.to_string()))
}

/// What the vNIC sent before the arrival, in words; and that the VM tells the LAN of itself then.
fn heard(stage: &Stage, lan: Recording, arrived: Nanos, has: &[IpAddr]) -> Result<BTreeSet<String>> {
    let mac: Mac = stage.guest.domain().mac_b.parse::<lsm_protocol::Mac>().unwrap().0;
    let from_vm = |frame: &&Frame| frame.source == mac && !frame.outgoing;
    let (before, after): (Vec<&Frame>, Vec<&Frame>) = lan.frames.iter().filter(from_vm).partition(|f| f.at < arrived);
    for address in has {
        let told = |frame: &&Frame| match (&frame.packet, address) {
            (Packet::Arp(arp), IpAddr::V4(v4)) => arp.sender_address == *v4 && arp.target_address == *v4,
            (Packet::Icmpv6(icmp), IpAddr::V6(v6)) => {
                icmp.kind == 136 && icmp.source == *v6 && icmp.destination.is_multicast()
            }
            _ => false,
        };
        if !after.iter().any(told) {
            return Err(LabError::Other(format!("nobody told the new LAN of {address}: {after:?}")));
        }
        if before.iter().any(told) {
            return Err(LabError::Other(format!(
                "the new LAN was told of {address} before the VM was there: {before:?}"
            )));
        }
    }
    Ok(before.into_iter().map(|frame| word(frame, has)).collect())
}

fn word(frame: &Frame, has: &[IpAddr]) -> String {
    match &frame.packet {
        Packet::Tcp(segment) if has.contains(&segment.source.ip()) => "TCP".into(),
        Packet::Arp(arp) if arp.sender_address == Ipv4Addr::UNSPECIFIED => "ARP probe".into(),
        Packet::Arp(arp) if has.contains(&arp.sender_address.into()) => "ARP".into(),
        Packet::Udp(datagram) => format!("UDP to port {}", datagram.destination.port()),
        Packet::Icmpv6(icmp) => {
            let from = match icmp.source {
                source if source.is_unspecified() => "nobody",
                source if source.is_unicast_link_local() => "its link-local address",
                source if has.contains(&source.into()) => "its address",
                _ => "another address",
            };
            format!("ICMPv6 {} from {from}", icmp.kind)
        }
        other => format!("{other:?}"),
    }
}

fn only(said: &BTreeSet<String>, allowed: &[&str]) {
    let more: Vec<_> = said.iter().filter(|word| !allowed.contains(&word.as_str())).collect();
    assert!(more.is_empty(), "the VM said in the new LAN before it was there: {more:?}, of {said:?}");
    assert!(said.contains("TCP"), "its clients joined: {said:?}");
}

/// Whoever asks for the VM is answered, and so is who asks whether it is still there; the gateway is asked for.
const FOUND: [&str; 5] = [
    "TCP",
    "ARP",
    "ICMPv6 135 from its address",
    "ICMPv6 136 from its address",
    "ICMPv6 136 from its link-local address",
];

#[test]
fn addresses_of_a_pool_of_both_families() {
    moves("static", Family::Dual, &FOUND);
}

#[test]
fn an_address_of_a_pool_of_ipv4_alone() {
    moves("static", Family::V4, &["TCP", "ARP"]);
}

#[test]
fn dhcp() {
    moves("dhcp", Family::V4, &["TCP", "ARP", "ARP probe", "UDP to port 67"]);
}

/// Routers are asked, the address is tried, and its group joined; what else multicast DNS and the like would say is not.
const AUTOCONFIGURES: [&str; 7] = [
    "ICMPv6 133 from its link-local address",
    "ICMPv6 135 from nobody",
    "ICMPv6 135 from its link-local address",
    "ICMPv6 143 from nobody",
    "ICMPv6 143 from its link-local address",
    "ICMPv6 133 from nobody",
    "ICMPv6 133 from its address",
];

#[test]
fn slaac() {
    moves("slaac", Family::V6, &[&FOUND[..], &AUTOCONFIGURES].concat());
}

#[test]
fn dhcp_and_slaac() {
    let dhcp = ["ARP probe", "UDP to port 67"];
    moves("dhcp+slaac", Family::Dual, &[&FOUND[..], &AUTOCONFIGURES, &dhcp].concat());
}

/// At the LAN, and in what the destination's operator wrote of it: the move is refused, and the VM is as it was before.
#[test]
fn a_lan_that_gives_no_address_or_a_wrong_one() {
    if lacking() {
        return;
    }
    let policy = "unprepared = \"refuse\"\nprepare_wait_ms = 20000".into();
    let options = StageOptions { addressing: "dhcp".into(), policy, ..StageOptions::default() };
    let mut stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    let before = Snapshot::take(&stage).unwrap();
    let mut refused = |stage: &Stage, words: &[&str]| {
        let said = chain(&stage.migrate("dallas").unwrap_err());
        eprintln!("{said}");
        assert!(words.iter().all(|words| said.contains(words)), "{said}\n{}", stage.story());
        stage.settled(LIMIT).unwrap();
        before.restored(stage, LIMIT, "").unwrap();
        connections.alive().unwrap();
    };
    stage.reconfigure("dallas", "prefix = \"10.2.0.0/24\"", "prefix = \"10.2.0.0/25\"").unwrap();
    stage.restart_service("dallas").unwrap();
    refused(
        &stage,
        &["is not of the LAN's subnet 10.2.0.0/25; correct its DHCP server or router, or prefix in host.toml"],
    );
    stage.reconfigure("dallas", "10.2.0.0/25", "10.2.0.0/24").unwrap();
    stage.restart_service("dallas").unwrap();
    drop(stage.lans.pop()); // dallas'
    refused(&stage, &["no DHCP server answered within 3.5 s"]);
    connections.end().unwrap();
}
