//! The product's own business: a VM moves, with its connections, in every mode and on both kernels.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::Connections,
    demo::{self, DemoOptions, Live, Mode, Outcome},
    domain::{Channel, kernel_vsock},
    family::Family,
    stage::{Stage, StageOptions, lacking},
    topology::TopologyOptions,
};

/// Moves of eight connections, as the demo shows them.
fn moves(mode: Mode, switch: &str, number: usize, kernel: &str) -> Outcome {
    let stage = StageOptions { kernel: kernel.into(), ..StageOptions::default() };
    moves_on(stage, mode, switch, number)
}

fn moves_on(stage: StageOptions, mode: Mode, switch: &str, number: usize) -> Outcome {
    let options = DemoOptions {
        mode,
        switch: switch.into(),
        moves: number,
        connections: 8,
        period: Duration::from_millis(20),
        client_buffer: None,
        stage,
    };
    let outcome = demo::run(&options, &Live::new(false)).unwrap();
    assert_eq!(outcome.faults, Vec::<String>::new());
    assert_eq!(outcome.demo.moves.len(), number);
    for one in &outcome.demo.moves {
        assert_eq!(one.frames_lost, 0, "{one:?}");
        assert_eq!(one.connections.total, 8, "{one:?}");
    }
    outcome
}

fn joined_before(outcome: &Outcome) -> Vec<u64> {
    outcome.demo.moves.iter().map(|one| one.connections.joined_before_arrival).collect()
}

#[test]
fn there_and_back_with_an_early_flip() {
    if !lacking() {
        assert_eq!(joined_before(&moves(Mode::PreJoin, "early", 2, "6.12")), [8, 8]);
    }
}

/// The hosts reach the VM by its CID alone, and the guest knows its arrival by the reset of its vsock transport.
#[test]
fn there_and_back_over_vsock() {
    if !kernel_vsock() {
        eprintln!("skipped: no /dev/vhost-vsock (modprobe vhost_vsock)");
    } else if !lacking() {
        for switch in ["early", "arrival"] {
            let stage = StageOptions { channel: Channel::Vsock, ..StageOptions::default() };
            assert_eq!(joined_before(&moves_on(stage, Mode::PreJoin, switch, 2)), [8, 8]);
        }
    }
}

/// Client, LANs and VM speak so, and the hosts with each other.
fn spoken(family: Family, wan_v6: bool) -> StageOptions {
    // What a full frame of a LAN becomes in a tunnel over IPv6, which nobody cuts.
    let wan_mtu = if wan_v6 { 1570 } else { 1500 };
    let topology = TopologyOptions { family, wan_v6, wan_mtu, ..TopologyOptions::default() };
    StageOptions { topology, ..StageOptions::default() }
}

#[test]
fn there_and_back_over_ipv6_alone() {
    if !lacking() {
        assert_eq!(joined_before(&moves_on(spoken(Family::V6, false), Mode::PreJoin, "early", 2)), [8, 8]);
    }
}

/// Half of the connections begin on either family.
#[test]
fn there_and_back_with_both_families() {
    if !lacking() {
        assert_eq!(joined_before(&moves_on(spoken(Family::Dual, false), Mode::PreJoin, "arrival", 2)), [8, 8]);
    }
}

#[test]
fn between_hosts_that_speak_ipv6_alone() {
    if !lacking() {
        assert_eq!(joined_before(&moves_on(spoken(Family::Dual, true), Mode::PreJoin, "early", 1)), [8]);
    }
}

#[test]
fn linux_6_1_with_the_flip_at_arrival() {
    if !lacking() {
        assert_eq!(joined_before(&moves(Mode::PreJoin, "arrival", 1, "6.1")), [8]);
    }
}

#[test]
fn post_join() {
    if !lacking() {
        assert_eq!(joined_before(&moves(Mode::PostJoin, "auto", 1, "6.12")), [0]);
    }
}

/// The demo brings the VM back home over the same tunnel; nobody has to release anything.
#[test]
fn tunnel_only_and_back() {
    if !lacking() {
        let outcome = moves(Mode::TunnelOnly, "auto", 1, "6.12");
        assert_eq!(joined_before(&outcome), [0]);
        assert_eq!(outcome.demo.moves[0].connections.on_direct_path, 0);
    }
}

/// What LSM knows nothing of moves as it would without LSM: the hook changes nothing and no tunnel is made. Its address
/// belongs to the LAN it left, so its connections wait there.
#[test]
fn a_vm_without_metadata_is_left_alone() {
    if lacking() {
        return;
    }
    let stage = Stage::set(&StageOptions { metadata: false, agent: false, ..StageOptions::default() }, |what| {
        eprintln!("{what}")
    })
    .unwrap();
    let bridges = |site: &str| stage.site(site).virsh(&["domiflist", "vm"]).unwrap_or_default();
    let before = bridges("montreal");
    assert!(before.contains("br-montreal"), "{before}");
    // The bridge of its LAN must be there, as without LSM.
    stage.topology.ns("dallas").ip("link add br-montreal type bridge\nlink set br-montreal up\n").unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    connections.alive().unwrap();
    stage.migrate("dallas").unwrap();
    assert!(bridges("dallas").contains("br-montreal"), "{}", bridges("dallas"));
    assert_eq!(stage.guest.must("echo alive").unwrap(), "alive\n");
    for site in ["montreal", "dallas"] {
        assert_eq!(stage.tunnels(site).unwrap(), 0);
        let status = stage.status(site).unwrap();
        assert_eq!((status["vms"].to_string(), status["migrations"].to_string()), ("[]".into(), "[]".into()));
    }
    stage.migrate("montreal").unwrap();
    connections.alive().unwrap();
    connections.end().unwrap();
}
