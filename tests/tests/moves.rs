//! The product's own business: a VM moves, with its connections, in every mode and on both kernels.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::Connections,
    demo::{self, DemoOptions, Live, Mode, Outcome},
    domain::{Channel, kernel_vsock},
    stage::{Stage, StageOptions, lacking},
};

/// Moves of eight connections, as the demo shows them.
fn moves(mode: Mode, switch: &str, number: usize, kernel: &str) -> Outcome {
    moves_over(Channel::Serial, mode, switch, number, kernel)
}

fn moves_over(channel: Channel, mode: Mode, switch: &str, number: usize, kernel: &str) -> Outcome {
    let options = DemoOptions {
        mode,
        switch: switch.into(),
        moves: number,
        connections: 8,
        period: Duration::from_millis(20),
        client_buffer: None,
        stage: StageOptions { kernel: kernel.into(), channel, ..StageOptions::default() },
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
            assert_eq!(joined_before(&moves_over(Channel::Vsock, Mode::PreJoin, switch, 2, "6.12")), [8, 8]);
        }
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
