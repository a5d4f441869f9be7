//! A key between the VM and its hosts, through a real move; and what must be in no log: the key, and whatever secret the
//! VM's description holds.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use lsm_tests::{
    connections::Connections,
    logbook::Logbook,
    shell::{chain, wait_for},
    stage::{Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);
const KEY: &str = "key-of-the-lab-5ae1b0c29f";
/// In the VM's description, where an operator's scripts and passwords would be.
const PLANTED: &str = "planted-in-the-xml-81d7e4a3";

/// Gives a host this key for all VMs; an empty one: none.
fn give(stage: &Stage, site: &str, key: &str) {
    let directory = stage.site(site).dir().join("etc/lsm/keys");
    let file = directory.join("default");
    fs::create_dir_all(&directory).unwrap();
    if key.is_empty() {
        fs::remove_file(&file).unwrap();
        return;
    }
    fs::write(&file, format!("{key}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Asks until the host has said why it gets no forecast: an emulated guest may take longer to answer than one question waits.
fn refused(stage: &Stage, site: &str, host: &mut Logbook, why: &str) {
    wait_for("the host to say why it gets no forecast", LIMIT, || {
        assert!(
            stage.lsm_hook(site, &["forecast", "vm"]).is_err(),
            "there was an answer, where there should be: {why}"
        );
        (host.count(why) > 0).then_some(())
    })
    .unwrap();
    host.says(&[why]).unwrap();
}

/// Every file of the lab's that is somebody's log and holds this.
fn logs_with(stage: &Stage, text: &str) -> Vec<String> {
    fn search(directory: &Path, text: &str, found: &mut Vec<String>, read: &mut usize) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                search(&path, text, found, read);
            } else if kind.is_file() && path.extension().is_some_and(|kind| kind == "log") && ours(&path) {
                *read += 1;
                if String::from_utf8_lossy(&fs::read(&path).unwrap_or_default()).contains(text) {
                    found.push(path.display().to_string());
                }
            }
        }
    }
    /// libvirt's and QEMU's own logs are not ours to keep clean.
    fn ours(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lsm"))
    }
    let (mut found, mut read) = (Vec::new(), 0);
    stage.sites.iter().for_each(|site| search(site.dir(), text, &mut found, &mut read));
    assert!(read >= stage.sites.len(), "only {read} logs were found");
    let of_agent = stage.guest.must("cat /var/log/lsm-guest.log").unwrap();
    assert!(!of_agent.is_empty());
    if of_agent.contains(text) {
        found.push("the agent's".to_owned());
    }
    found
}

#[test]
fn a_key_is_proved_through_a_move_and_no_secret_is_logged() {
    if lacking() {
        return;
    }
    let policy = "unprepared = \"refuse\"".to_owned();
    let stage = Stage::set(&StageOptions { policy, ..StageOptions::default() }, |what| eprintln!("{what}")).unwrap();
    // None that is plain: it would keep the old path, key or not.
    let mut connections = Connections::open(&stage, 0).unwrap();
    let plant = format!("<planted xmlns='urn:planted'><password>{PLANTED}</password></planted>");
    let set = ["metadata", "vm", "urn:planted", "--key", "planted", "--set", &plant, "--live"];
    stage.site("montreal").virsh(&set).unwrap();
    assert!(stage.site("montreal").virsh(&["dumpxml", "vm"]).unwrap().contains(PLANTED));

    eprintln!("-- the VM has a key, its host has none");
    stage.guest.must(&format!("mkdir -p /etc/lsm; umask 077; echo {KEY} >/etc/lsm/guest.key")).unwrap();
    stage.kill_agent().unwrap();
    stage.start_agent().unwrap();
    let mut agent = Logbook::of_agent(&stage);
    let mut host = Logbook::of_host(&stage, "montreal");
    let forecast = || stage.lsm_hook("montreal", &["forecast", "vm"]);
    refused(&stage, "montreal", &mut host, "the guest demands proof of its key");
    agent.says(&["refused to speak with the host", "the host gave none"]).unwrap();

    eprintln!("-- another key");
    give(&stage, "montreal", "key-of-somebody-else");
    refused(&stage, "montreal", &mut host, "are not the same");
    agent.says(&["refused to speak with the host", "are not the same"]).unwrap();

    eprintln!("-- the same key everywhere");
    give(&stage, "montreal", KEY);
    give(&stage, "dallas", KEY);
    wait_for("the guest's forecast", LIMIT, || forecast().ok()).unwrap();
    stage.migrate("dallas").unwrap();
    if let Err(error) = stage.settled(LIMIT).and_then(|()| stage.agent_is(&["idle"], LIMIT).map(drop)) {
        let agent =
            stage.guest.must("cat /var/log/lsm-guest.log; lsm-guest status").unwrap_or_else(|error| chain(&error));
        panic!("{}\n{}\n----\n{}\n----\n{agent}", chain(&error), stage.log("montreal"), stage.log("dallas"));
    }
    connections.alive().unwrap();
    assert!(stage.site("dallas").virsh(&["dumpxml", "vm"]).unwrap().contains(PLANTED), "it travels with the VM");

    eprintln!("-- the guest has lost its key: its host says nothing to it");
    stage.guest.must("rm /etc/lsm/guest.key").unwrap();
    stage.kill_agent().unwrap();
    stage.start_agent().unwrap();
    let mut host = Logbook::of_host(&stage, "dallas");
    refused(&stage, "dallas", &mut host, "the guest has none");
    give(&stage, "dallas", "");
    wait_for("the guest's forecast", LIMIT, || stage.lsm_hook("dallas", &["forecast", "vm"]).ok()).unwrap();

    for secret in [PLANTED, KEY, "key-of-somebody-else"] {
        assert_eq!(logs_with(&stage, secret), Vec::<String>::new(), "{secret}");
    }
    assert!(!logs_with(&stage, "a host is here").is_empty(), "the search finds what is there");
    connections.alive().unwrap();
    connections.end().unwrap();
}
