//! What an operator types between the installation and the first move, on real libvirts.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, time::Duration};

use lsm_tests::{
    connections::Connections,
    shell::{chain, run},
    site::Transport,
    stage::{Stage, StageOptions, lacking},
};
use serde_json::Value;

/// What `lsm-hook check` found bad there: what, and the line that repairs it.
fn bad(stage: &Stage, site: &str, vm: &[&str]) -> Vec<(String, String)> {
    let hook = fs::read_to_string(stage.site(site).inside("/etc/lsm/real-hook")).unwrap();
    let mut check = stage.site(site).command(hook);
    let output = check.arg("check").args(vm).arg("--json").output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    eprintln!("{site}: {said:#}");
    assert_eq!(said["good"], output.status.success());
    let findings = said["findings"].as_array().unwrap();
    let bad = findings.iter().filter(|finding| finding["verdict"] == "bad");
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    bad.map(|finding| (text(finding, "what"), text(finding, "fix"))).collect()
}

#[test]
fn from_the_installation_to_the_first_move() {
    if lacking() {
        return;
    }
    let stage = Stage::set(&StageOptions::default(), |what| eprintln!("{what}")).unwrap();
    let none: Vec<(String, String)> = Vec::new();
    // As the package does it. Others' hooks were there before, or libvirt would not look.
    for site in ["montreal", "dallas"] {
        let hook = fs::read_to_string(stage.site(site).inside("/etc/lsm/real-hook")).unwrap();
        run(stage.site(site).command("ln").args(["-sfn", &hook, "/etc/libvirt/hooks/qemu.d/lsm"])).unwrap();
        let early = bad(&stage, site, &[]);
        assert_eq!(early.len(), 1, "{early:?}");
        assert!(early[0].0 == "hook" && early[0].1.starts_with("systemctl restart libvirtd"), "{early:?}");
        stage.site(site).restart_libvirtd(Transport::Plain).unwrap();
        assert_eq!(bad(&stage, site, &[]), none);
    }

    let proposed =
        stage.lsm_hook("montreal", &["init", "--print", "--peer", "dallas", "--pool", "10.9.0.1-10.9.0.9"]).unwrap();
    let bridge = format!("bridge = \"{}\"", stage.topology.site("montreal").bridge);
    for line in ["name = \"montreal\"", "[lan.montreal]", &bridge, "[peer.\"dallas\"]"] {
        assert!(proposed.lines().any(|found| found == line), "{line}: {proposed}");
    }
    let refused = chain(&stage.lsm_hook("montreal", &["init"]).unwrap_err());
    assert!(refused.contains("/etc/lsm/host.toml is in use") && refused.contains("--force"), "{refused}");

    // The VM as somebody made it who knew nothing of LSM.
    let site = stage.site("montreal");
    site.virsh(&["destroy", "vm"]).unwrap();
    fs::write(site.inside("/run/vm.xml"), stage.guest.domain().xml()).unwrap();
    site.virsh(&["define", "/run/vm.xml"]).unwrap();
    stage.lsm_hook("montreal", &["disown", "vm", "--yes"]).unwrap();
    let plain = site.virsh(&["dumpxml", "--inactive", "vm"]).unwrap();
    assert!(!plain.contains("urn:lsm:1") && plain.matches("<interface").count() == 1, "{plain}");
    assert_eq!(bad(&stage, "montreal", &["vm"]), [("metadata".to_owned(), "lsm-hook adopt vm".to_owned())]);

    let unasked = chain(&stage.lsm_hook("montreal", &["adopt", "vm"]).unwrap_err());
    assert!(unasked.contains("nobody is there to be asked"), "{unasked}");
    let shown = stage.lsm_hook("montreal", &["adopt", "vm", "--dry-run"]).unwrap();
    assert!(shown.lines().all(|line| line.starts_with("+ ")) && shown.contains("lan='montreal'"), "{shown}");
    assert_eq!(site.virsh(&["dumpxml", "--inactive", "vm"]).unwrap(), plain, "only shown");
    stage.lsm_hook("montreal", &["adopt", "vm", "--yes"]).unwrap();
    assert_eq!(bad(&stage, "montreal", &["vm"]), none);
    let again = stage.lsm_hook("montreal", &["adopt", "vm", "--yes"]).unwrap();
    assert!(again.contains("nothing to change"), "{again}");

    site.virsh(&["start", "vm"]).unwrap();
    stage.agent_is(&["idle"], Duration::from_secs(60)).unwrap();
    assert_eq!(bad(&stage, "montreal", &["vm"]), none);
    let mut connections = Connections::open(&stage, 0).unwrap();
    stage.migrate("dallas").unwrap();
    stage.settled(Duration::from_secs(60)).unwrap();
    connections.alive().unwrap();
    connections.end().unwrap();
    assert_eq!(bad(&stage, "dallas", &["vm"]), none);
}
