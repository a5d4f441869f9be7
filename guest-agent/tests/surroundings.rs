//! The agent where something is missing that most systems have.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::process::Command;

/// A shell in namespaces of its own; `$agent` is the program, `$place` a directory.
fn shell(script: &str) -> (bool, String) {
    let place = std::env::temp_dir().join(format!("lsm-surroundings-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child"]);
    command.args(["sh", "-euc", &format!("{script} 2>&1")]);
    command.env("agent", env!("CARGO_BIN_EXE_lsm-guest")).env("place", &place);
    let output = command.output().unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_state_directory_that_is_read_only_or_full_is_named() {
    for (options, cause) in [("ro", "Read-only file system"), ("nr_inodes=1", "No space left on device")] {
        let start = "$agent --directory \"$place/lsm\" run --config /nonexistent";
        let (well, said) = shell(&format!("mount -t tmpfs -o {options} tmpfs \"$place\"; {start}"));
        assert!(!well);
        for words in ["lsm-guest: cannot keep state in ", cause, "see that it can be written and has room: df "] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}

/// The command line reaches the agent all the same.
#[test]
fn no_bus_and_no_systemd_are_missed_by_nobody() {
    let script = "mount -t tmpfs tmpfs \"$place\"
        export DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent
        $agent --directory \"$place\" run --config /nonexistent >\"$place/log\" 2>&1 &
        tries=0
        until $agent --directory \"$place\" status >/dev/null 2>&1; do
            tries=$((tries + 1)); [ $tries -lt 100 ] || { cat \"$place/log\"; exit 1; }
            sleep 0.1
        done
        { $agent --directory \"$place\" status; cat \"$place/log\"; }";
    let (well, said) = shell(script);
    assert!(well, "{said}");
    assert!(
        said.contains("idle") && said.contains("not on the system bus; the Unix socket serves the command line"),
        "{said}"
    );
}

/// Nothing moves and nobody calls: no timer, no look around. Eleven seconds are one more than its longest pause.
#[test]
fn an_idle_agent_is_not_woken() {
    let script = "mount -t tmpfs tmpfs \"$place\"
        mount -t proc proc /proc
        $agent --directory \"$place\" run --config /nonexistent >\"$place/log\" 2>&1 &
        agent_process=$!
        tries=0
        until $agent --directory \"$place\" status >/dev/null 2>&1; do
            tries=$((tries + 1)); [ $tries -lt 100 ] || { cat \"$place/log\"; exit 1; }
            sleep 0.1
        done
        woken() { cat /proc/$agent_process/status | awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n }'; }
        sleep 1; before=$(woken); sleep 11; after=$(woken)
        cat \"$place/log\"; echo \"woken $before times, and then $after\"
        [ $before = $after ]";
    let (well, said) = shell(script);
    assert!(well, "{said}");
}
