//! A VM as people run it: a whole Debian 12, with an owner for its network cards, and the agent under its unit.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::Connections,
    distribution::Owner,
    shell::{LabError, Result, chain},
    stage::{Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = "unprepared = \"refuse\"\nprepare_wait_ms = 20000";

fn stage(owner: Owner, addressing: &str) -> Stage {
    let (distribution, addressing, policy) = (Some(owner), addressing.into(), POLICY.into());
    let options = StageOptions { distribution, addressing, policy, memory_mib: 512, ..StageOptions::default() };
    Stage::set(&options, |what| eprintln!("{what}")).unwrap()
}

/// There: every connection goes on, and the VM has addresses of the new LAN, its owner's doing.
fn moves(owner: Owner, addressing: &str, unit: &str, families: &[&str]) {
    let stage = stage(owner, addressing);
    let moved = (|| -> Result<()> {
        let mut connections = Connections::open(&stage, 0)?;
        stage.migrate("dallas")?;
        connections.alive()?;
        stage.agent_is(&["idle"], LIMIT)?;
        stage.settled(LIMIT)?;
        connections.alive()?;
        connections.end()?;
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
    let log = journal("lsm-guest");
    let (asked, got) = (at(&log, "told to prepare"), at(&log, "Obtain done"));
    let announced = at(&log, "Announce done");
    eprintln!(
        "{addressing} by {owner:?}, through the advance tunnel: addresses after {:.2} s, announced after {:.2} s",
        got - asked,
        announced - asked
    );
    let log = journal(unit);
    let [begun, ended] = match owner {
        Owner::Networkd => ["eth0: Gained carrier", "eth0: DHCPv4 address"],
        Owner::NetworkManager => ["(eth0): Activation: starting", "(eth0): Activation: successful"],
    };
    eprintln!("the same owner at boot, on a direct link: {:.2} s", at(&log, ended) - at(&log, begun));
}

/// Seconds since boot of the first line that says this.
fn at(journal: &str, words: &str) -> f64 {
    let line = journal.lines().find(|line| line.contains(words));
    let time = line.and_then(|line| line.trim_start_matches('[').trim_start().split(']').next()?.parse().ok());
    time.unwrap_or(f64::NAN)
}

#[test]
#[ignore = "no run of it has come to its end yet"]
fn dhcp_by_networkd() {
    if !lacking() {
        moves(Owner::Networkd, "dhcp", "systemd-networkd", &["inet 10.2.0."]);
    }
}

#[test]
#[ignore = "no run of it has come to its end yet"]
fn dhcp_and_slaac_by_network_manager() {
    if !lacking() {
        moves(Owner::NetworkManager, "dhcp+slaac", "NetworkManager", &["inet 10.2.0.", "inet6 2001:db8:2:"]);
    }
}
