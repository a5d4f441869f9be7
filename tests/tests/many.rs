//! The same busy connections move again and again between two hosts, in a VM with each kernel. LSM_MANY_MOVES says how
//! often; a line for each move tells what became of them, and what the client's kernel counts.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lsm_tests::{
    connections::{AtClient, Connections, address},
    shell::chain,
    stage::{Stage, StageOptions, lacking},
    traffic::Origin,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// As the demo has them.
const BY_CLIENT: u16 = 6;
const BY_VM: u16 = 2;
/// There and back twice: what a client goes on counting shows with the second way back.
const MOVES: usize = 4;

fn moves() -> usize {
    std::env::var("LSM_MANY_MOVES").map_or(MOVES, |number| number.parse().expect("LSM_MANY_MOVES is a number"))
}

/// One move of all, there or back; what the client's kernel says of them then.
fn one(stage: &Stage, connections: &mut Connections, count: usize) -> Vec<AtClient> {
    let to = if count % 2 == 1 { "dallas" } else { "montreal" };
    stage.migrate(to).unwrap();
    let migrated = Instant::now();
    stage.settled(LIMIT).unwrap();
    let settled = migrated.elapsed();
    connections.alive().unwrap();

    let report = stage.guest_history().unwrap().pop().unwrap();
    let sums = &report["sums"];
    let all: u64 = sums.as_object().unwrap().values().map(|number| number.as_u64().unwrap()).sum();
    let seen = connections.at_client(&stage.topology).unwrap();
    println!(
        "move {count} to {to}: {} of {all} joined beforehand, {} late; switched to withdrawn in {} ms, settled {} ms after \
         virsh ended; add_addr_accepted and further subflows at the client: {}, opened by the VM: {}",
        sums["moved"],
        sums["moved_late"],
        between(&report, "switching", "withdrawing the old address"),
        settled.as_millis(),
        counted(&seen, Origin::Client),
        counted(&seen, Origin::Vm),
    );
    assert_eq!(all, u64::from(BY_CLIENT + BY_VM), "{report:#}");
    let moved = sums["moved"].as_u64().unwrap() + sums["moved_late"].as_u64().unwrap();
    assert_eq!((moved, &report["outcome"]), (all, &"settled".into()), "{report:#}");
    seen
}

/// Milliseconds by the VM's clock, which stands while the VM does.
fn between(report: &Value, from: &str, to: &str) -> u64 {
    let steps = report["steps"].as_array().unwrap();
    let at = |name: &str| steps.iter().find(|step| step["step"] == name).and_then(|step| step["at"].as_u64());
    at(to).unwrap_or_else(|| panic!("no {to:?}: {report:#}")) - at(from).unwrap()
}

/// `1+0 1+0 ...`: of each connection.
fn counted(seen: &[AtClient], origin: Origin) -> String {
    let those = seen.iter().filter(|one| one.origin == origin);
    let words = those.map(|one| format!("{}+{}", one.counters.add_addr_accepted, one.counters.subflows));
    words.collect::<Vec<_>>().join(" ")
}

/// Nothing is left of the path before.
fn is_direct(one: &AtClient, address: IpAddr) -> bool {
    !one.subflows.is_empty() && one.subflows.iter().all(|subflow| subflow.remote.ip() == address && !subflow.backup)
}

fn again_and_again(kernel: &str) {
    if lacking() {
        return;
    }
    let options =
        StageOptions { kernel: kernel.into(), policy: "switch = \"early\"".into(), ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let mut connections = Connections::open_busy(&stage, BY_CLIENT, BY_VM).unwrap();
    assert_eq!(connections.at_client(&stage.topology).unwrap().len(), usize::from(BY_CLIENT + BY_VM), "all are MPTCP");
    for count in 1..=moves() {
        let seen = one(&stage, &mut connections, count);
        let here = address(&stage).unwrap();
        let astray: Vec<_> = seen.iter().filter(|one| !is_direct(one, here)).collect();
        assert!(astray.is_empty(), "move {count}: not on the path to {here} alone: {astray:#?}");
        // A client takes eight addresses: one that it goes on counting after it was withdrawn is missing later.
        let leaks = |one: &&AtClient| one.origin == Origin::Client && one.counters.add_addr_accepted > 1;
        let leaking: Vec<_> = seen.iter().filter(leaks).map(|one| one.id).collect();
        if !leaking.is_empty() {
            println!("move {count}: the client goes on counting an address of connections {leaking:?}");
        }
    }
    if let Err(error) = connections.end() {
        panic!("Linux {kernel}: {}\n{}", chain(&error), stage.guest.must("cat /var/log/lsm-guest.log").unwrap());
    }
}

#[test]
fn linux_6_12() {
    again_and_again("6.12");
}

#[test]
fn linux_6_1() {
    again_and_again("6.1");
}
