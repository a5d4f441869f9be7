//! The agent's way in by AF_VSOCK, on a VM that stays where it is: a whole migration as a host would lead it, the hang-up
//! by which the guest knows its arrival, and who may not speak. Migrations over vsock: `moves.rs`.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_protocol::{
    Drain, FromGuest, Given, Hello, MigrationId, Prepare, Side, ToGuest, VERSIONS,
    frame::{Kind, Wire},
    report::Outcome,
};
use lsm_tests::{
    connections::Connections,
    conversation::Conversation,
    domain::{Channel, VSOCK_DEVICE, VSOCK_SLOT},
    logbook::Logbook,
    shell::wait_for,
    site::Site,
    snapshot::Snapshot,
    stage::{Stage, StageOptions, lacking},
    topology::SPARE_BRIDGE,
    vsock_device::{self, VsockDevice},
};

const LIMIT: Duration = Duration::from_secs(30);
/// Where the agent listens.
const PORT: u32 = 19_539;

fn stage() -> Option<Stage> {
    if lacking() || vsock_device::lacking() {
        return None;
    }
    let options = StageOptions { channel: Channel::VsockDevice, ..StageOptions::default() };
    Some(Stage::set(&options, |what| eprintln!("{what}")).unwrap())
}

/// A host's service, after the Hellos.
fn host(device: &VsockDevice) -> Conversation {
    let mut line = Conversation::new(device.connect(PORT).unwrap(), Wire::Stream).unwrap();
    let theirs = line.greet(&Hello::ours("a test")).unwrap();
    assert_eq!(theirs.versions, VERSIONS);
    assert!(theirs.software.starts_with("lsm-guest "), "{theirs:?}");
    line
}

/// A cable from the spare vNIC's bridge to the LAN of dallas, in place of the advance tunnel.
fn plug_spare_into_dallas(stage: &Stage) {
    let [montreal, dallas] = ["montreal", "dallas"].map(|name| stage.topology.ns(name));
    let bridge = &stage.topology.site("dallas").bridge;
    montreal
        .ip(&format!(
            "link add cable type veth peer name cable netns {}\nlink set cable master {SPARE_BRIDGE} up\n",
            dallas.name()
        ))
        .unwrap();
    dallas.ip(&format!("link set cable master {bridge} up\n")).unwrap();
}

fn plan(stage: &Stage, number: u8) -> Prepare {
    let domain = stage.guest.domain();
    let lan = stage.topology.site("dallas");
    Prepare {
        migration: MigrationId([number; 16]),
        old: domain.mac_a.parse().unwrap(),
        new: domain.mac_b.parse().unwrap(),
        lan: lan.name.clone(),
        addressing: [Given { address: lan.address(100).into(), prefix_len: 24, gateway: lan.gateway.into() }]
            .into_iter()
            .collect(),
        mtu: 1500,
        arrived: false,
        drain: Drain::UntilIdle,
        lease: 120_000,
    }
}

/// All of [`Connections`] have joined the new address.
fn prepared(line: &mut Conversation, plan: &Prepare) {
    let answer = line.tell(&ToGuest::Prepare(plan.clone())).unwrap();
    let FromGuest::Prepared { migration, counts } = answer else { panic!("{answer:?}") };
    assert_eq!((migration, counts.joined, counts.waiting), (plan.migration, 4, 0), "{counts:?}");
}

#[test]
fn a_migration_as_a_host_leads_it() {
    let Some(stage) = stage() else { return };
    let device = stage.vsock.as_ref().unwrap();
    plug_spare_into_dallas(&stage);
    let mut connections = Connections::open(&stage, 0).unwrap();
    let before = Snapshot::take(&stage).unwrap();

    let mut line = host(device);
    assert_eq!(line.status().unwrap().state, "idle");
    let first = plan(&stage, 1);
    prepared(&mut line, &first);
    connections.alive().unwrap();

    // A service that restarts has called again before its lease ends.
    drop(line);
    let mut line = host(device);
    let status = line.status().unwrap();
    assert_eq!((status.state.as_str(), status.migration), ("prepared", Some(first.migration)));
    let answer = line.tell(&ToGuest::Abort { migration: first.migration }).unwrap();
    let FromGuest::Report(report) = answer else { panic!("before the end comes the report: {answer:?}") };
    assert_eq!((report.migration, report.outcome, report.sums.kept), (first.migration, Outcome::Aborted, 4));
    assert_eq!(line.answer().unwrap(), FromGuest::Aborted { migration: first.migration });
    before.restored(&stage, LIMIT, "").unwrap();
    connections.alive().unwrap();

    let second = plan(&stage, 2);
    let migration = second.migration;
    prepared(&mut line, &second);
    let switched = line.tell(&ToGuest::Switch { migration, to: Side::New }).unwrap();
    assert!(
        matches!(switched, FromGuest::Switched { migration: of, to: Side::New, .. } if of == migration),
        "{switched:?}"
    );
    connections.alive().unwrap();
    line.say(Kind::ToGuest, &ToGuest::Arrived { migration }).unwrap();
    loop {
        match line.answer().unwrap() {
            FromGuest::Settled { migration: of } if of == migration => break,
            FromGuest::Switched { .. } | FromGuest::Moved { .. } => {}
            FromGuest::Report(report) => assert_eq!((report.sums.moved, report.sums.all()), (4, 4), "{report}"),
            other => panic!("waiting for Settled: {other:?}"),
        }
    }
    let left = stage.guest.must("ip -4 -o addr show dev eth0").unwrap();
    assert!(!left.contains(&stage.guest.domain().address.to_string()), "the old address is still there: {left}");
    connections.alive().unwrap();
    connections.end().unwrap();
}

/// libvirt's live migration replaces the device, and the guest's connections are reset. Here it is unplugged, and another
/// plugged in.
#[test]
fn the_hang_up_is_the_arrival() {
    let Some(mut stage) = stage() else { return };
    plug_spare_into_dallas(&stage);
    let mut connections = Connections::open(&stage, 0).unwrap();
    let plan = plan(&stage, 3);
    let mut line = host(stage.vsock.as_ref().unwrap());
    prepared(&mut line, &plan);

    let site = stage.site("montreal").clone();
    let mut log = Logbook::of_agent(&stage);
    monitor(&site, &format!("device_del {VSOCK_DEVICE}"));
    log.says(&["from=\"prepared\"", "to=\"switched", "the host's channel was reset"]).unwrap();
    drop(log);
    connections.alive().unwrap();

    wait_for("the device to be gone", LIMIT, || {
        monitor(&site, &format!("chardev-remove {VSOCK_DEVICE}char")).is_empty().then_some(())
    })
    .unwrap();
    stage.vsock = None;
    let device = VsockDevice::start(&site, 5).unwrap();
    for command in [
        format!("chardev-add socket,id=another,path={}", vsock_device::SOCKET),
        format!("device_add vhost-user-vsock-pci,id={VSOCK_DEVICE},bus={VSOCK_SLOT},chardev=another"),
    ] {
        assert_eq!(monitor(&site, &command), "", "{command}");
    }

    // The destination's word is what lets go of the old path.
    let stream = wait_for("the agent to be reached again", LIMIT, || device.connect(PORT).ok()).unwrap();
    let mut line = Conversation::new(stream, Wire::Stream).unwrap();
    line.greet(&Hello::ours("a test")).unwrap();
    assert_eq!(line.status().unwrap().migration, Some(plan.migration));
    line.say(Kind::ToGuest, &ToGuest::Arrived { migration: plan.migration }).unwrap();
    while line.answer().unwrap() != (FromGuest::Settled { migration: plan.migration }) {}
    connections.alive().unwrap();
    connections.end().unwrap();
}

fn monitor(site: &Site, command: &str) -> String {
    site.virsh(&["qemu-monitor-command", "--hmp", "vm", command]).unwrap().trim().to_owned()
}

#[test]
fn only_root_on_the_host_may_speak() {
    let Some(stage) = stage() else { return };
    let device = stage.vsock.as_ref().unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    let mut log = Logbook::of_agent(&stage);

    eprintln!("-- the VM's own programs, with and without a port that takes root");
    for from in ["", "700"] {
        let told = stage.guest.must(&format!("lab-vsock {PORT} {from}")).unwrap();
        assert!(told.starts_with("0 bytes, then "), "{told}");
        let line = log.says(&["refused: only root on the host may speak to this agent", "cid=1"]).unwrap();
        assert_eq!(line.contains("port=700"), from == "700", "{line}");
    }
    host(device);

    eprintln!("-- the host, from a port that anybody there can have");
    // Nobody listens on port 1 of the VM: each call costs the device a source port and nothing else.
    let refused = (0..1_024).filter(|_| device.connect(1).is_err()).count();
    assert_eq!(refused, 1_024);
    let mut line = Conversation::new(device.connect(PORT).unwrap(), Wire::Stream).unwrap();
    let heard = line.greet(&Hello::ours("a test")).unwrap_err().to_string();
    assert!(heard.contains("closed") || heard.contains("write to the agent"), "{heard}");
    log.says(&["refused: only root on the host may speak to this agent", "cid=2", "port=1"]).unwrap();

    assert_eq!(stage.agent_is(&["idle"], LIMIT).unwrap()["state"], "idle");
    connections.alive().unwrap();
    connections.end().unwrap();
}
