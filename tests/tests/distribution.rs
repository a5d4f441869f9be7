//! A VM as people run it: a whole Debian 12, with an owner for its network cards, and the agent under its unit.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::move_with_connections,
    distribution::Owner,
    readiness,
    shell::{LabError, Result, chain, wait_for},
    stage::{Stage, StageOptions, lacking},
    topology::SPARE_BRIDGE,
};

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
fn moves(owner: Owner, addressing: &str, unit: &str, families: &[&str]) {
    let stage = stage(owner, addressing);
    let moved = (|| -> Result<()> {
        let got: Vec<&str> = addressing.split('+').collect();
        restarted_and_stopped(&stage, owner, unit, &got)?;
        let direct = readiness::on_a_direct_link(&stage, addressing)?;
        move_with_connections(&stage, "dallas")?;
        readiness::compare(&stage, &format!("{addressing} by {owner:?}"), direct, readiness::last(&stage)?);
        let addresses = stage.guest.must("ip -o addr show dev eth1 scope global")?;
        for family in families {
            if !addresses.contains(family) {
                return Err(LabError::Other(format!("no {family} on the new vNIC: {addresses}")));
            }
        }
        let old = stage.guest.must("ip -o addr show dev eth0 scope global")?;
        if old.contains("inet ") {
            return Err(LabError::Other(format!("the old vNIC still has an address: {old}")));
        }
        stage.guest.must("lsm-guest check --json").map(drop)
    })();
    let journal = |unit: &str| {
        let journal = stage.guest.exec(&format!("journalctl --no-pager -o short-monotonic -u {unit}"));
        journal.map(|outcome| outcome.stdout).unwrap_or_default()
    };
    if let Err(error) = moved {
        let network = stage.guest.exec("ip addr; ip rule; ip route show table all; ip mptcp endpoint; lsm-guest check");
        let network = network.map(|outcome| outcome.stdout).unwrap_or_default();
        let logs = ["montreal", "dallas"].map(|site| stage.log(site)).join("\n----\n");
        let journals = ["lsm-guest", unit].map(journal).join("\n----\n");
        let lans = stage.lans.iter().map(|lan| lan.log()).collect::<String>();
        panic!("{}\n{logs}\n----\n{journals}\n----\n{network}\n----\n{lans}", chain(&error));
    }
    let log = journal(unit);
    let [begun, ended] = match owner {
        Owner::Networkd => ["eth0: Gained carrier", "eth0: DHCPv4 address"],
        Owner::NetworkManager => ["(eth0): Activation: starting", "(eth0): Activation: successful"],
    };
    let what = if owner == Owner::Networkd { "IPv4 alone" } else { "both families" };
    println!(
        "the same owner for the first card at boot, by itself, {what}: {:.2} s",
        at(&log, ended) - at(&log, begun)
    );
}

/// Seconds since boot of the first line that says this.
fn at(journal: &str, words: &str) -> f64 {
    seconds(journal.lines().find(|line| line.contains(words)))
}

fn seconds(line: Option<&str>) -> f64 {
    let time = line.and_then(|line| line.trim_start_matches('[').trim_start().split(']').next()?.parse().ok());
    time.unwrap_or(f64::NAN)
}

#[test]
fn dhcp_and_slaac_by_networkd() {
    if !lacking() {
        moves(Owner::Networkd, "dhcp+slaac", "systemd-networkd", &["inet 10.2.0.", "inet6 2001:db8:2:"]);
    }
}

#[test]
fn dhcp_and_slaac_by_network_manager() {
    if !lacking() {
        moves(Owner::NetworkManager, "dhcp+slaac", "NetworkManager", &["inet 10.2.0.", "inet6 2001:db8:2:"]);
    }
}
