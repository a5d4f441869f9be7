//! The lab's own network: what it promises about paths, delay and cuts.

use lsm_tests::{
    shell::run,
    topology::{Topology, TopologyOptions},
};

/// Says why the test cannot run here; where everything is expected to run, that is a failure.
fn skip() -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    assert!(std::env::var_os("LSM_EXPECT_ALL").is_none(), "not root, and LSM_EXPECT_ALL is set");
    eprintln!("skipped: not root");
    true
}

fn ping(topology: &Topology, from: &str, to: &str) -> Result<String, String> {
    let mut ping = topology.ns(from).command("ping");
    run(ping.args(["-n", "-c", "5", "-i", "0.05", "-W", "1", to])).map_err(|error| error.to_string())
}

/// The mean of ping's summary line, in ms.
fn mean(output: &str) -> f64 {
    let summary = output.lines().find(|line| line.starts_with("rtt")).unwrap();
    summary.split('/').nth(4).unwrap().parse().unwrap()
}

#[test]
fn every_path_has_its_delay_and_a_cut_wire_carries_nothing() {
    if skip() {
        return;
    }
    let topology = Topology::new(&TopologyOptions::default()).unwrap();
    for (from, to, rtt) in [("client", "10.1.0.1", 70.0), ("client", "10.2.0.1", 2.0), ("montreal", "172.30.2.2", 70.0)]
    {
        let output = ping(&topology, from, to).unwrap();
        println!("{from} to {to}: {output}");
        assert!(mean(&output) >= rtt - 0.1, "{output}");
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
