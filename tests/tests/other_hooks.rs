//! Another tool's hook runs before ours: it changes the VM's description, breaks it, or fails. Never is a VM lost by that.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::Duration,
};

use lsm_tests::{
    connections::Connections,
    snapshot::Snapshot,
    stage::{Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);

/// libvirt calls what is in `qemu.d` in order of name.
fn install(stage: &Stage, script: &str) -> PathBuf {
    let file = stage.site("dallas").dir().join("etc/libvirt/hooks/qemu.d/00-other");
    fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
    file
}

/// libvirt refuses the move, in words of the other tool or of its own, and nothing is left of it.
fn refused(stage: &Stage, connections: &mut Connections, script: &str, words: &str) {
    let before = Snapshot::take(stage).unwrap();
    install(stage, script);
    let error = stage.migrate("dallas").unwrap_err().to_string();
    assert!(error.contains(words), "{script}: {error}\n{}", stage.log("dallas"));
    connections.alive().unwrap();
    // It ends with the lease: nobody tells us that libvirt has given up before it began.
    stage.agent_is(&["idle"], LIMIT).unwrap();
    stage.settled(LIMIT).unwrap();
    before.restored(stage, LIMIT, "").unwrap();
    connections.alive().unwrap();
    assert_eq!(stage.guest.site().unwrap().name(), "montreal");
}

#[test]
fn another_tool_s_hook_changes_breaks_and_refuses() {
    if lacking() {
        return;
    }
    let policy = "switch = \"early\"".into();
    let stage = Stage::set(&StageOptions { policy, ..StageOptions::default() }, |what| eprintln!("{what}")).unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    let only = "[ \"$2\" = migrate ] || exit 0";
    refused(&stage, &mut connections, &format!("{only}; echo 'no room here' >&2; exit 1"), "no room here");
    refused(&stage, &mut connections, &format!("{only}; cat >/dev/null; echo '<domain'"), "domain_definition");

    // Written anew, with something of its own.
    let title = "<title>of another tool</title>";
    let other = install(&stage, &format!("{only}; sed 's|</name>|</name>\\\n{title}|'"));
    stage.migrate("dallas").unwrap();
    connections.alive().unwrap();
    let there = stage.site("dallas").virsh(&["dumpxml", "vm"]).unwrap();
    assert!(there.contains(title), "{there}");
    connections.end().unwrap();
    stage.settled(LIMIT).unwrap();
    fs::remove_file(other).unwrap();
}
