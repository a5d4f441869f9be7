//! Who is told of a move: programs in the VM by signals, which may hold it back for a while, and scripts in the VM and on
//! the host.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use lsm_tests::{
    connections::Connections,
    shell::wait_for,
    stage::{Stage, StageOptions, lacking},
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

fn set() -> Stage {
    let options = StageOptions { policy: "switch = \"early\"".into(), ..StageOptions::default() };
    Stage::set(&options, |what| eprintln!("{what}")).unwrap()
}

/// A script that writes down what it was told, in the VM.
fn script_in_vm(stage: &Stage, name: &str, mode: &str, then: &str) {
    let path = format!("/etc/lsm/switched.d/{name}");
    let body = format!("#!/bin/sh\necho {name} $(env | grep ^LSM_ | sort) >>/tmp/told\n{then}");
    let command = format!("mkdir -p /etc/lsm/switched.d && cat >{path} <<'END'\n{body}\nEND\nchmod {mode} {path}");
    stage.guest.must(&command).unwrap();
}

fn told_in_vm(stage: &Stage) -> Vec<String> {
    stage.guest.exec("cat /tmp/told").unwrap().stdout.lines().map(str::to_owned).collect()
}

fn signals(stage: &Stage) -> Vec<Value> {
    let log = stage.guest.must("cat /var/log/signals.log").unwrap();
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn names(signals: &[Value]) -> Vec<&str> {
    signals.iter().map(|signal| signal["signal"].as_str().unwrap()).collect()
}

/// What became of the scripts in the VM, once they have run.
fn scripts(stage: &Stage) -> Vec<String> {
    wait_for("the scripts in the VM", LIMIT, || {
        let status: Value = serde_json::from_str(&stage.guest.exec("lsm-guest status --json").ok()?.stdout).ok()?;
        let ran: Vec<String> = serde_json::from_value(status["scripts"].clone()).ok()?;
        (!ran.is_empty()).then_some(ran)
    })
    .unwrap()
}

/// Waits until the agent names who holds moves back.
fn holds(stage: &Stage, who: &str) {
    wait_for("the hold", LIMIT, || {
        let status = stage.guest.exec("lsm-guest status").ok()?.stdout;
        (status.contains("held by") && status.contains(who)).then_some(())
    })
    .unwrap();
}

#[test]
fn scripts_and_programs_hear_of_a_move_and_its_settling() {
    if lacking() {
        return;
    }
    let stage = set();
    let mut connections = Connections::open(&stage, 0).unwrap();
    script_in_vm(&stage, "10-first", "755", "");
    script_in_vm(&stage, "20-open", "757", "");
    script_in_vm(&stage, "30-hangs", "755", "sleep 600");
    script_in_vm(&stage, "40-fails", "700", "exit 4");
    let there = stage.site("dallas").dir().join("etc/lsm");
    let trace = there.join("trace");
    fs::create_dir(there.join("moved.d")).unwrap();
    fs::write(there.join("moved.d/10-tell"), "#!/bin/sh\nenv | grep ^LSM_ | sort >>/etc/lsm/trace\n").unwrap();
    fs::set_permissions(there.join("moved.d/10-tell"), fs::Permissions::from_mode(0o755)).unwrap();
    stage.guest.spawn("signals", "lsm-guest signals --json").unwrap();
    // It never lets go by itself.
    stage.guest.spawn("hold", "lsm-guest hold --reason 'flushes its cache' --ms 1500 sleep 600").unwrap();
    holds(&stage, "flushes its cache (user 0, process ");

    let mut migration = stage.begin("dallas", &[]).unwrap();
    let held = stage.agent_said("programs in the VM to let the move go on", LIMIT).unwrap();
    assert!(held.contains("held_by=\"flushes its cache (user 0, process "), "{held}");
    migration.end(LIMIT).unwrap();
    let without = stage.agent_said("going on without them", LIMIT).unwrap();
    assert!(without.contains("flushes its cache"), "{without}");
    connections.alive().unwrap();
    stage.settled(LIMIT).unwrap();
    connections.alive().unwrap();

    let heard = signals(&stage);
    assert_eq!(names(&heard), ["Preparing", "Switched", "Switched", "Settled"], "{heard:#?}");
    assert_eq!((&heard[0]["lan"], &heard[0]["most_ms"]), (&json!("dallas"), &json!(4000)));
    let (from, to) = ("10.1.0.10", heard[0]["addresses"][0].as_str().unwrap());
    for (at, sure) in [(1, false), (2, true)] {
        let said = &heard[at];
        assert_eq!((&said["from"], &said["to"], &said["sure"]), (&json!([from]), &json!([to]), &json!(sure)), "{said}");
    }
    let migration = heard[0]["migration"].as_str().unwrap();

    let ran = scripts(&stage);
    let beginnings = [
        "10-first: exit status 0 after ",
        "20-open: not run: others than root can write it (mode 0757)",
        "30-hangs: killed after 10",
        "40-fails: exit status 4 after ",
    ];
    assert!(ran.len() == 4 && ran.iter().zip(beginnings).all(|(ran, begins)| ran.starts_with(begins)), "{ran:#?}");
    let addresses =
        [("NEW", to), ("OLD", from)].map(|(when, at)| format!("LSM_{when}_ADDRESS4={at} LSM_{when}_ADDRESS={at}"));
    let addresses = addresses.join(" ");
    let variables = format!("LSM_LAN=dallas LSM_MIGRATION={migration} {addresses}");
    let expected = ["10-first", "30-hangs", "40-fails"].map(|name| format!("{name} {variables}"));
    assert_eq!(told_in_vm(&stage), expected);
    stage.agent_said("40-fails: exit status 4", LIMIT).unwrap();

    let reports = stage.guest_history().unwrap();
    let scripts = reports[0]["scripts"].as_array().unwrap();
    let statuses: Vec<_> = scripts.iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, [&json!(0), &Value::Null, &Value::Null, &json!(4)], "{reports:#?}");
    let steps: Vec<_> =
        reports[0]["steps"].as_array().unwrap().iter().map(|one| one["step"].as_str().unwrap()).collect();
    let story =
        ["preparing", "announcing the new address", "prepared", "switching", "withdrawing the old address", "settled"];
    let mut rest = steps.iter();
    assert!(story.iter().all(|word| rest.any(|step| step == word)), "{steps:?}");

    let on_host = format!(
        "LSM_DOMAIN=vm\nLSM_LAN=dallas\nLSM_MIGRATION={migration}\n{}\nLSM_PEER=montreal\n",
        addresses.replace(' ', "\n")
    );
    assert_eq!(fs::read_to_string(&trace).unwrap(), on_host, "once, however often the guest has said it");
    let status = stage.status("dallas").unwrap();
    assert_eq!((&status["moved"][0]["vm"], &status["moved"][0]["to"]["v4"]), (&json!("vm"), &json!(to)), "{status:#}");
    assert_eq!(status["moved"][0]["scripts"][0]["outcome"], json!({ "Exited": 0 }), "{status:#}");
    let text = stage.lsm_hook("dallas", &["status"]).unwrap();
    assert!(text.contains("10-tell: exit status 0"), "{text}");
    connections.end().unwrap();
}

#[test]
fn a_move_that_is_called_off_is_told_to_programs_only() {
    if lacking() {
        return;
    }
    let stage = set();
    let mut connections = Connections::open(&stage, 0).unwrap();
    script_in_vm(&stage, "10-first", "755", "");
    stage.guest.spawn("signals", "lsm-guest signals --json").unwrap();
    // Whoever ends its hold in time is not waited for any longer.
    let waited_for = "until grep -q let.the.move.go.on /var/log/lsm-guest.log; do sleep 0.2; done";
    stage.guest.spawn("hold", &format!("lsm-guest hold --reason 'soon ready' sh -c '{waited_for}'")).unwrap();
    holds(&stage, "soon ready");
    let mut migration = stage.begin("dallas", &["--bandwidth", "12"]).unwrap();
    stage.agent_is(&["prepared"], LIMIT).unwrap();
    for words in ["programs in the VM to let the move go on", "gone, and holds moves back no more"] {
        stage.agent_said(words, LIMIT).unwrap();
    }
    let log = stage.guest.must("cat /var/log/lsm-guest.log").unwrap();
    assert!(!log.contains("going on without them"), "{log}");
    stage.guest.site().unwrap().virsh(&["domjobabort", "vm"]).unwrap();
    assert!(migration.end(LIMIT).is_err());
    stage.agent_is(&["idle"], LIMIT).unwrap();
    connections.alive().unwrap();
    let heard = signals(&stage);
    assert_eq!((names(&heard)[0], *names(&heard).last().unwrap()), ("Preparing", "Aborted"), "{heard:#?}");
    assert!(heard.iter().all(|signal| signal["sure"] != true), "{heard:#?}");
    assert_eq!(told_in_vm(&stage), Vec::<String>::new());
    connections.end().unwrap();
}
