//! Programs that listen at the old address alone: joins to the new one would be refused, were it not announced with a port
//! for which the kernel listens.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::{Connections, address},
    shell::wait_for,
    stage::{Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 5011;
/// Where the agent announces.
const ANNOUNCED: std::ops::RangeInclusive<u16> = 19_540..=19_547;

#[test]
fn a_listener_at_the_old_address_alone_keeps_its_connections_there_and_back() {
    if lacking() {
        return;
    }
    let stage = Stage::set(&StageOptions::default(), |what| eprintln!("{what}")).unwrap();
    let bound = address(&stage).unwrap();
    stage.guest.spawn("bound", &format!("chrt -f 10 lsm-traffic serve --at {bound} --tcp {PORT}")).unwrap();
    let listeners = || stage.guest.must(&format!("ss -Htln sport = :{PORT}")).unwrap();
    wait_for("the program to listen", LIMIT, || listeners().contains(&bound.to_string()).then_some(())).unwrap();
    assert_eq!(listeners().lines().count(), 1, "{}", listeners());
    let mut connections = Connections::open_to(&stage, PORT, 3).unwrap();
    // Beside others, whose program listens at all addresses.
    let mut others = Connections::open(&stage, 0).unwrap();

    // The address that it listens at is not the VM's any more when it comes back.
    for (count, site) in (1..).zip(["dallas", "montreal"]) {
        stage.migrate(site).unwrap();
        stage.settled(LIMIT).unwrap();
        connections.alive().unwrap();
        others.alive().unwrap();
        assert!(listeners().contains(&format!("{bound}:{PORT}")), "{}", listeners());
        let here = address(&stage).unwrap();
        assert_ne!(here, bound);
        for one in connections.at_client(&stage.topology).unwrap() {
            let by_port = |port: u16| ANNOUNCED.contains(&port);
            let moved = one.subflows.iter().all(|s| s.remote.ip() == here && by_port(s.remote.port()) && !s.backup);
            assert!(moved && !one.subflows.is_empty(), "move {count}: {one:?}");
        }
        for one in others.at_client(&stage.topology).unwrap() {
            assert!(one.subflows.iter().all(|subflow| subflow.remote.ip() == here), "move {count}: {one:?}");
        }
        let report = stage.guest_history().unwrap().pop().unwrap();
        assert_eq!(report["sums"]["moved"], 7, "move {count}, joined beforehand: {report:#}");
        println!(
            "move {count} to {site}: 3 connections of a listener at {bound} alone joined by a port, 4 others without"
        );
    }
    let announced = stage.agent_said("no program listens for joins; announcing with a port", LIMIT).unwrap();
    assert!(announced.contains("INFO"), "{announced}");
    connections.end().unwrap();
    others.end().unwrap();
}
