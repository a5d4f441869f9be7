//! Full packets after a move: on the direct path as long as the LAN takes them, on the old one through a tunnel that needs
//! more than the network between the hosts has; and what is too long for somebody further on is told so through it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{net::IpAddr, time::Duration};

use lsm_tests::{
    capture::{Capture, Packet, Scope},
    connections::{Connections, address},
    family::Family,
    shell::{LabError, Result, chain, run, wait_for},
    stage::{Stage, StageOptions, lacking},
    topology::{CLIENT_INTERFACE, TopologyOptions},
};

const LIMIT: Duration = Duration::from_secs(60);
/// So long is listened at a time.
const SLICE: Duration = Duration::from_millis(500);
/// Of the LANs, and of the client's link.
const FULL: u32 = 1_500;
/// What a VM sends into its home tunnel: a tunnel over IPv6 would have room for it on a network of the LAN's own MTU.
const LOWERED: u32 = FULL - 70;

fn set(kernel: &str, family: Family, wan_mtu: u32, wan_v6: bool) -> (Stage, Connections) {
    let topology = TopologyOptions { family, wan_mtu, wan_v6, ..TopologyOptions::default() };
    let policy = "unprepared = \"refuse\"\nprepare_wait_ms = 20000".into();
    let options = StageOptions { kernel: kernel.into(), policy, topology, ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let connections = Connections::open_large(&stage).unwrap();
    (stage, connections)
}

fn told<T>(stage: &Stage, case: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{case}: {}\n{}", chain(&error), stage.story()))
}

/// What passes the client's interface for some time: bytes of the longest TCP packet to this address, and from it.
fn listen(stage: &Stage, address: IpAddr) -> Result<[u32; 2]> {
    let (namespace, interface) = (Some(stage.topology.ns("client").path()), Some(CLIENT_INTERFACE.into()));
    let capture = Capture::start(Scope { namespace, interface, ..Scope::default() });
    let capture = capture.map_err(|error| LabError::Other(error.to_string()))?;
    std::thread::sleep(SLICE);
    let mut longest = [0, 0];
    for frame in capture.stop().frames {
        let Packet::Tcp(segment) = &frame.packet else { continue };
        let (vm, way) = if frame.outgoing { (segment.destination, 0) } else { (segment.source, 1) };
        if vm.ip() == address {
            longest[way] = segment.packet().max(longest[way]);
        }
    }
    Ok(longest)
}

/// Packets of exactly these lengths pass, and none that is longer.
fn passes(stage: &Stage, what: &str, address: IpAddr, expected: [u32; 2]) -> Result<()> {
    let mut longest = [0, 0];
    let all = wait_for(&format!("packets of {expected:?} bytes {what}"), LIMIT, || {
        let seen = listen(stage, address).ok()?;
        longest = [longest[0].max(seen[0]), longest[1].max(seen[1])];
        (longest[0] >= expected[0] && longest[1] >= expected[1]).then_some(())
    });
    eprintln!("{what}, the longest to {address} and from it: {longest:?}");
    match all {
        Ok(()) if longest == expected => Ok(()),
        Ok(()) => Err(LabError::Other(format!("{what}: {expected:?} expected, and there was {longest:?}"))),
        Err(error) => Err(LabError::Other(format!("{error}; the longest: {longest:?}"))),
    }
}

/// Packets of that length that nobody on their way may cut; the answers too.
fn uncut(stage: &Stage, address: IpAddr, length: u32) -> Result<()> {
    let headers = if address.is_ipv4() { 20 + 8 } else { 40 + 8 };
    let mut ping = stage.topology.ns("client").command("ping");
    ping.args(["-n", "-M", "do", "-c", "3", "-i", "0.2", "-W", "5", "-s", &(length - headers).to_string()]);
    run(ping.arg(address.to_string())).map(drop)
}

/// To dallas, whose path is the direct one then; the old one stays. Gives the addresses of both, the old one first.
fn moved(stage: &Stage, connections: &mut Connections) -> Result<[IpAddr; 2]> {
    let old = address(stage)?;
    stage.migrate("dallas")?;
    connections.alive()?;
    stage.holds_old_address(LIMIT)?;
    let has = stage.guest.must("ip -o addr show dev eth1 scope global")?;
    let new = has.split_whitespace().filter_map(|word| word.split_once('/')?.0.parse().ok());
    let new: Vec<IpAddr> = new.collect();
    let plan = stage.topology.site("dallas");
    let of_dallas = if old.is_ipv4() { plan.address(100).into() } else { IpAddr::from(plan.address6(100)) };
    if new != [of_dallas] {
        return Err(LabError::Other(format!("not {of_dallas}, the first of dallas' pool, alone: {has}")));
    }
    Ok([old, of_dallas])
}

/// There, while the old address is held.
fn full_packets_on_both_paths(stage: &Stage, connections: &mut Connections) -> Result<[IpAddr; 2]> {
    let paths = moved(stage, connections)?;
    let [old, new] = paths;
    passes(stage, "on the direct path", new, [FULL, FULL])?;
    passes(stage, "through the home tunnel", old, [FULL, LOWERED])?;
    uncut(stage, old, FULL)?;
    uncut(stage, new, FULL)?;
    connections.alive()?;
    Ok(paths)
}

/// Both hosts say before the move that full packets cross in fragments, and with which numbers.
fn warned(stage: &Stage, available: u32) -> Result<()> {
    for site in ["montreal", "dallas"] {
        let log = stage.log(site);
        let said = |line: &str| {
            line.contains("cross the underlay in fragments")
                && line.contains("needed=1550")
                && line.contains(&format!("available={available}"))
        };
        if !log.lines().any(said) {
            return Err(LabError::Other(format!("{site} did not warn of fragments: {log}")));
        }
    }
    Ok(())
}

/// A link further on that takes less than all the others: routers tell both ends, the VM through the tunnel too.
fn narrow(stage: &Stage, mtu: u32) -> Result<()> {
    stage.topology.ns("edge").ip(&format!("link set client mtu {mtu}\n"))?;
    stage.topology.ns("client").ip(&format!("link set {CLIENT_INTERFACE} mtu {mtu}\n")).map(drop)
}

fn a_wan_of_1500_and_a_narrower_link_at_the_client(kernel: &str, family: Family) {
    if lacking() {
        return;
    }
    let (stage, mut connections) = set(kernel, family, 1_500, false);
    let [old, new] = told(&stage, "there", full_packets_on_both_paths(&stage, &mut connections));
    told(&stage, "the warning", warned(&stage, 1_500));
    told(&stage, "a narrower link", narrow(&stage, 1_300));
    told(&stage, "a narrower link", connections.alive());
    told(&stage, "a narrower link", passes(&stage, "on the direct path", new, [1_300, 1_300]));
    told(&stage, "a narrower link", passes(&stage, "through the home tunnel", old, [1_300, 1_300]));
    told(&stage, "the end", connections.end());
    told(&stage, "the end", stage.settled(LIMIT));
}

fn a_wan_of_1400_and_back(kernel: &str, family: Family) {
    if lacking() {
        return;
    }
    let (stage, mut connections) = set(kernel, family, 1_400, false);
    let [old, _] = told(&stage, "there", full_packets_on_both_paths(&stage, &mut connections));
    told(&stage, "the warning", warned(&stage, 1_400));
    told(&stage, "the way back", stage.migrate("montreal"));
    told(&stage, "the way back", stage.settled(LIMIT));
    told(&stage, "the way back", connections.alive());
    told(&stage, "the way back", passes(&stage, "back on the first path", old, [FULL, FULL]));
    told(&stage, "the end", connections.end());
}

#[test]
fn ipv4_by_a_wan_of_1500() {
    a_wan_of_1500_and_a_narrower_link_at_the_client("6.12", Family::V4);
}

#[test]
fn ipv6_by_a_wan_of_1500() {
    a_wan_of_1500_and_a_narrower_link_at_the_client("6.12", Family::V6);
}

#[test]
fn ipv4_by_a_wan_of_1400() {
    a_wan_of_1400_and_back("6.12", Family::V4);
}

#[test]
fn ipv6_by_a_wan_of_1400() {
    a_wan_of_1400_and_back("6.12", Family::V6);
}

#[test]
fn ipv4_by_a_wan_of_1500_with_linux_6_1() {
    a_wan_of_1500_and_a_narrower_link_at_the_client("6.1", Family::V4);
}

#[test]
fn ipv6_by_a_wan_of_1400_with_linux_6_1() {
    a_wan_of_1400_and_back("6.1", Family::V6);
}

/// Nobody cuts a packet of IPv6 on its way: what does not fit is refused.
#[test]
fn between_hosts_over_ipv6_a_wan_of_1500_is_refused_with_the_number() {
    if lacking() {
        return;
    }
    let (stage, mut connections) = set("6.12", Family::Dual, 1_500, true);
    let said = chain(&stage.migrate("dallas").unwrap_err());
    let words =
        "the tunnel cannot carry the LAN's frames of 1570 bytes: the underlay passes 1500; raise its MTU to 1570";
    assert!(said.contains(words), "{said}");
    told(&stage, "refused", connections.alive());
    told(&stage, "refused", stage.settled(LIMIT));
    told(&stage, "refused", connections.end());
}
