//! The lab's own network: what it promises about paths, delay and cuts.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    needs,
    shell::run,
    topology::{SiteLinks, Topology, TopologyOptions},
};

fn skip() -> bool {
    needs::lacking(needs::missing(&[], ""))
}

fn ping(topology: &Topology, from: &str, to: &str) -> Result<String, String> {
    let mut ping = topology.ns(from).command("ping");
    run(ping.args(["-n", "-c", "5", "-i", "0.05", "-W", "1", to])).map_err(|error| error.to_string())
}

/// The least of ping's round trips, in ms: the first one also has ARP in it.
fn least(output: &str) -> f64 {
    let summary = output.lines().find(|line| line.starts_with("rtt")).expect("ping's summary");
    summary.split('/').nth(3).and_then(|field| field.split(' ').next_back()?.parse().ok()).expect("ping's least time")
}

#[test]
fn every_path_has_its_delay_and_a_cut_wire_carries_nothing() {
    if skip() {
        return;
    }
    let mut options = TopologyOptions::default();
    let far = Duration::from_millis(10);
    options.sites.push(SiteLinks { name: "boston".into(), client_rtt: 2 * far, wan_rtt: far });
    let topology = Topology::new(&options).unwrap();
    for (from, to, rtt) in [
        ("client", "10.1.0.1", 70.0),
        ("client", "10.2.0.1", 2.0),
        ("montreal", "172.30.2.2", 70.0),
        ("montreal", "172.30.3.2", 80.0),
        ("client", "10.3.0.1", 20.0),
    ] {
        let output = ping(&topology, from, to).unwrap();
        println!("{from} to {to}: {output}");
        assert!(least(&output) >= rtt - 0.5, "{output}");
    }
    let wire = topology.wire("wan-montreal").unwrap();
    wire.cut().unwrap();
    assert!(ping(&topology, "montreal", "172.30.2.2").is_err());
    wire.mend().unwrap();
    ping(&topology, "montreal", "172.30.2.2").unwrap();
}

#[test]
fn nothing_is_left_after_the_topology_is_dropped() {
    if skip() {
        return;
    }
    let topology = Topology::new(&TopologyOptions::default()).unwrap();
    let prefix = topology.prefix().to_owned();
    let wire = topology.wire("client-dallas").unwrap().pid();
    let listed = || run(std::process::Command::new("ip").args(["netns", "list"])).unwrap();
    assert!(listed().contains(&prefix));
    drop(topology);
    assert!(!listed().contains(&prefix), "{}", listed());
    assert!(!std::path::Path::new(&format!("/proc/{wire}")).exists());
}
