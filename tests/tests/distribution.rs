//! A VM as people run it: a whole Debian 12, with an owner for its network cards, and the agent under its unit.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::move_with_connections,
    distribution::{Owner, cloud_init},
    readiness,
    shell::{LabError, Result, chain, wait_for},
    stage::{Stage, StageOptions, lacking},
    topology::SPARE_BRIDGE,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = "unprepared = \"refuse\"\nprepare_wait_ms = 20000";

fn stage(owner: Owner, addressing: &str) -> Stage {
    let (distribution, addressing, policy) = (Some(owner), addressing.into(), POLICY.into());
    let options = StageOptions { distribution, addressing, policy, memory_mib: 512, ..StageOptions::default() };
    Stage::set(&options, |what| eprintln!("{what}")).unwrap()
}

/// By hand, before any move, with the spare in the LAN where the VM is: whether its owner loses the addresses as it is
/// restarted or as it is stopped, or never, all is as it was before in the end; and it is said who has lost them.
fn restarted_and_stopped(stage: &Stage, owner: Owner, unit: &str, addresses: &[&str]) -> Result<()> {
    let (a, b) = (&stage.guest.domain().mac_a, &stage.guest.domain().mac_b);
    readiness::plug_spare(stage, "br-montreal")?;
    let addresses: String = addresses.iter().map(|address| format!(" --address {address}")).collect();
    stage.guest.must(&format!("lsm-guest prepare --old {a} --new {b}{addresses}"))?;
    stage.agent_is(&["prepared"], LIMIT)?;
    stage.guest.must(&format!("systemctl restart {unit}"))?;
    // Whatever it does about the card it does as it starts.
    std::thread::sleep(Duration::from_secs(3));
    let state = stage.agent_is(&["prepared", "idle"], LIMIT)?;
    eprintln!("{owner:?} restarted with a prepared vNIC: the guest is {}", state["state"]);
    match (owner, state["state"] == "prepared") {
        (_, false) => {}
        // It drops the address as it ends, if not before.
        (Owner::Networkd, true) => drop(stage.guest.must("systemctl stop systemd-networkd.socket systemd-networkd")?),
        (Owner::NetworkManager, true) => drop(stage.guest.must("lsm-guest abort")?),
    }
    stage.agent_is(&["idle"], LIMIT)?;
    let said = stage.guest.must("journalctl --no-pager -u lsm-guest")?;
    if owner == Owner::Networkd && !said.contains("has lost") {
        return Err(LabError::Other(format!("nobody was told that the address is gone: {said}")));
    }
    stage.guest.must(&format!("systemctl start {unit}"))?;
    // Rules and routes of ours bear their number; whether the card stays up is its owner's matter.
    let ours = "ip -o addr show dev eth1 scope global; (ip rule; ip -6 rule; ip route show table all) | grep -E 'proto 76|lookup 195'";
    let mut left = String::new();
    wait_for("the owner to leave the card", LIMIT, || {
        left = stage.guest.exec(ours).ok()?.stdout;
        left.is_empty().then_some(())
    })
    .map_err(|error| LabError::Other(format!("{error}; left behind: {left}")))?;
    wait_for("the VM's address", LIMIT, || {
        stage.guest.exec("ip -4 route show default | grep -q eth0").ok().filter(|done| done.status == 0)
    })?;
    readiness::plug_spare(stage, SPARE_BRIDGE)
}

/// There: every connection goes on, and the VM has addresses of the new LAN, its owner's doing.
fn moves(stage: &Stage, mode: &mut readiness::Mode, owner: Owner, unit: &str) -> Result<()> {
    let addressing = "dhcp+slaac";
    let got: Vec<&str> = addressing.split('+').collect();
    restarted_and_stopped(stage, owner, unit, &got)?;
    if owner == Owner::NetworkManager {
        cloud_init(stage)?;
    }
    let alone = readiness::alone(stage, owner)?;
    let direct = readiness::on_a_direct_link(stage, addressing)?;
    move_with_connections(stage, "dallas")?;
    mode.add(stage, Some(alone), direct)?;
    let addresses = stage.guest.must("ip -o addr show dev eth1 scope global")?;
    for family in ["inet 10.2.0.", "inet6 2001:db8:2:"] {
        if !addresses.contains(family) {
            return Err(LabError::Other(format!("no {family} on the new vNIC: {addresses}")));
        }
    }
    // It is kept for a moment after the end, for the connections' last words.
    wait_for("the old vNIC without its address", LIMIT, || {
        stage.guest.exec("ip -o -4 addr show dev eth0 scope global").ok().filter(|old| old.stdout.is_empty())
    })?;
    stage.guest.must("lsm-guest check --json").map(drop)
}

/// Its next boot, as far as its network part goes.
fn next_boot(stage: &Stage) -> Result<()> {
    stage.guest.must("rm -rf /run/cloud-init/sem && systemctl restart cloud-init-local").map(drop)
}

/// What the agent's own look says of that, as far as it is about this: the finding, and the line that mends it.
fn check(stage: &Stage, what: &str, about: &str) -> Result<(String, String)> {
    let text = stage.guest.must("lsm-guest check --json")?;
    let looked: Value = serde_json::from_str(&text).map_err(|error| LabError::Other(format!("{error}: {text}")))?;
    let word = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let mut findings = looked["findings"].as_array().into_iter().flatten();
    let found = findings.find(|one| one["what"] == what && word(one, "found").contains(about));
    let found = found.ok_or_else(|| LabError::Other(format!("nothing of {what} and {about}: {text}")))?;
    Ok((format!("{}: {}", word(found, "verdict"), word(found, "found")), word(found, "fix")))
}

/// The first card's profile is its work, and the spare is left alone with the package's file; without it, that is found
/// out, and mended as it is said.
fn cloud_init(stage: &Stage) -> Result<()> {
    let profiles = "ls /etc/NetworkManager/system-connections";
    let is = |what: &str, found: &str, expected: &str| {
        let as_expected = found.trim() == expected;
        as_expected
            .then_some(())
            .ok_or_else(|| LabError::Other(format!("{what}: {expected:?} expected, and there was {found:?}")))
    };
    // Then the VM knows its cards.
    stage.lsm_hook("montreal", &["forecast", "vm"])?;
    let first = "cloud-init-eth0.nmconnection";
    is("at the first boot", &stage.guest.must(profiles)?, first)?;
    let all = cloud_init::ALL_CARDS;
    stage.guest.must(&format!("cat >{} <<'END'\n{all}END", cloud_init::NETWORK))?;
    next_boot(stage)?;
    is("at the next boot", &stage.guest.must(profiles)?, first)?;
    let good = "good: configures the network at an instance's first boot, and not again";
    is("with the package's file", &check(stage, "cloud-init", "")?.0, good)?;
    let untouched = "good: eth1 is spare, and nobody's";
    is("with the package's file", &check(stage, "vNIC", "eth1")?.0, untouched)?;

    stage.guest.must(&format!("rm {}", cloud_init::OPT_OUT.0))?;
    let (may, _) = check(stage, "cloud-init", "")?;
    is(
        "without it",
        &may,
        "warning: it may configure network cards at any boot, or as one is plugged in, a spare one too",
    )?;
    next_boot(stage)?;
    stage.guest.must("systemctl restart NetworkManager")?;
    wait_for("NetworkManager to ask for the spare's addresses", LIMIT, || {
        let devices = stage.guest.exec("nmcli --terse --fields DEVICE,STATE device").ok()?;
        devices.stdout.contains("eth1:connecting").then_some(())
    })?;
    let (does, fix) = check(stage, "cloud-init", "")?;
    let file = "/etc/NetworkManager/system-connections/cloud-init-eth1.nmconnection";
    let expected = format!(
        "warning: eth1 is spare, and cloud-init has it configured by {file}: somebody asks for addresses where there is no LAN"
    );
    is("without it, after the next boot", &does, &expected)?;

    let asked =
        "warning: eth1 is spare, and NetworkManager has a profile for it: it asks for addresses where there is no LAN";
    is("NetworkManager then", &check(stage, "vNIC", "eth1")?.0, asked)?;

    let (mends, by_hand) = fix.split_once(" && editor ").unwrap_or_default();
    is("by hand", by_hand, &format!("{file}  # take eth1 out of it"))?;
    stage.guest.must(&format!("{mends} && rm {file} && nmcli connection reload"))?;
    next_boot(stage)?;
    is("mended", &stage.guest.must(profiles)?, first)?;
    is("mended", &check(stage, "cloud-init", "")?.0, "good: configures no network")?;
    is("mended", &check(stage, "vNIC", "eth1")?.0, untouched)?;

    // It moves as it was made.
    let (file, text) = cloud_init::OPT_OUT;
    stage.guest.must(&format!("cat >{file} <<'END'\n{text}END"))?;
    is("with the package's file again", &check(stage, "cloud-init", "")?.0, good)
}

fn dhcp_and_slaac(owner: Owner, unit: &str) {
    if lacking() {
        return;
    }
    let mut mode = readiness::Mode::new(&format!("`dhcp+slaac`: {unit}"));
    for _ in 0..readiness::runs() {
        let stage = stage(owner, "dhcp+slaac");
        let Err(error) = moves(&stage, &mut mode, owner, unit) else { continue };
        let ask = format!(
            "journalctl --no-pager -o short-monotonic -u {unit}; nmcli device; tail -n 60 /var/log/cloud-init.log; \
             head /etc/NetworkManager/system-connections/*"
        );
        let journal = stage.guest.exec(&ask).map(|outcome| outcome.stdout).unwrap_or_default();
        panic!("{}\n{}\n----\n{journal}", chain(&error), stage.story());
    }
    mode.print();
}

#[test]
fn dhcp_and_slaac_by_networkd() {
    dhcp_and_slaac(Owner::Networkd, "systemd-networkd");
}

/// In an image as clouds have it.
#[test]
fn dhcp_and_slaac_by_network_manager_and_cloud_init() {
    dhcp_and_slaac(Owner::NetworkManager, "NetworkManager");
}
