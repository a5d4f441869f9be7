//! The units' sandboxes: no looser than they were, a reason in SECURITY.md for everything left open, and the programs work
//! in them, started by a real systemd.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{collections::BTreeSet, fs, path::PathBuf, process::Command};

use lsm_tests::{container::Container, image::static_program, needs, pki::Authority};

/// What is counted against each unit, in tenths, by systemd 252; and its column in SECURITY.md.
const UNITS: [(&str, u32, usize); 2] = [("lsm-guest.service", 25, 2), ("lsm-hook.service", 27, 3)];

fn project(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn missing() -> Option<String> {
    let remedy = "tests/install installs it";
    let analyze = "/usr/bin/systemd-analyze";
    (!std::path::Path::new(analyze).exists()).then(|| format!("no {analyze}; {remedy}"))
}

fn analyze(unit: &str, arguments: &[&str]) -> std::process::Output {
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["--no-pager", "security", "--offline=yes"]).args(arguments);
    analyze.arg(project("systemd").join(unit)).output().unwrap()
}

/// What is counted against the unit, by name.
fn counted(unit: &str) -> BTreeSet<String> {
    let listed = analyze(unit, &["--json=short"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed = listed.as_array().unwrap().iter().filter(|entry| entry["exposure"].is_string());
    listed.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

/// What SECURITY.md has a reason for, in the unit's column.
fn explained(column: usize) -> BTreeSet<String> {
    let text = std::fs::read_to_string(project("SECURITY.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let line = line.replace("\\|", "\u{0}");
        line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect::<Vec<_>>()
    });
    rows.filter(|row| row[column] == "x").map(|row| row[1].trim_matches('`').to_owned()).collect()
}

#[test]
fn exposure_stays_where_it_is_and_has_its_reasons() {
    if needs::lacking(missing()) {
        return;
    }
    for (unit, most, column) in UNITS {
        let threshold = analyze(unit, &[&format!("--threshold={most}")]);
        let said = String::from_utf8_lossy(&threshold.stdout);
        println!("{}", said.lines().last().unwrap_or_default());
        assert!(threshold.status.success(), "{unit} is more exposed than {most} tenths:\n{said}");
        assert_eq!(counted(unit), explained(column), "{unit}: what is counted, and what SECURITY.md explains");
    }
}

/// What is asked of both when they have started; the first line that fails ends it.
const ASK: &str = "set -ex; exec >/lab/said 2>&1
for try in $(seq 200); do [ -S /run/lsm/guest.sock ] && break; sleep 0.1; done
lsm-guest status
lsm-hook status
for unit in guest hook; do
    pid=$(systemctl show -P MainPID lsm-$unit.service)
    grep -E 'CapBnd|Seccomp:|NoNewPrivs' /proc/$pid/status
    if nsenter -t $pid -m sh -c 'echo 1 >/proc/sys/kernel/panic'; then exit 1; fi
    if nsenter -t $pid -m touch /usr/here; then exit 1; fi
    nsenter -t $pid -m sh -c 'echo 0 >/proc/sys/net/ipv4/conf/lo/arp_ignore'
done
stat -c %a%n /run/lsm /run/lsm/guest.sock /run/lsm/hook.sock
echo both are there
";

#[test]
fn both_programs_start_and_answer_in_their_sandboxes() {
    let nspawn = "/usr/bin/systemd-nspawn";
    if needs::lacking(needs::missing(&[nspawn], "tests/install installs it").or_else(needs::missing_mptcp)) {
        return;
    }
    let mut container = Container::new("lsm-units").unwrap();
    let lab = container.lab();
    fs::create_dir_all(lab.join("pki")).unwrap();
    Authority::new("LSM units").unwrap().equip(&lab.join("pki"), "here", [192, 0, 2, 1].into()).unwrap();
    container.write("host.toml", "name = \"here\"\n").unwrap();
    // Not a VM, and nobody reads a journal.
    let guest = "[Unit]\nConditionVirtualization=\n[Service]\nStandardError=file:/lab/guest.log\n";
    container.write("guest.conf", guest).unwrap();
    container.write("hook.conf", "[Service]\nStandardError=file:/lab/hook.log\n").unwrap();
    for program in ["lsm-guest", "lsm-hook"] {
        container.bind(&static_program(program, program).unwrap(), &format!("/usr/sbin/{program}"));
        let unit = format!("{program}.service");
        container.bind(&project("systemd").join(&unit), &format!("/etc/systemd/system/{unit}"));
        let more = lab.join(program.replace("lsm-", "") + ".conf");
        container.bind(&more, &format!("/etc/systemd/system/{unit}.d/lab.conf"));
    }
    container.bind(&project("systemd/lsm-hook.socket"), "/etc/systemd/system/lsm-hook.socket");
    container.bind(&lab.join("host.toml"), "/etc/lsm/host.toml");
    for (from, to) in [("CA", "/etc/pki/CA"), ("libvirt", "/etc/pki/libvirt")] {
        container.bind(&lab.join("pki").join(from), to);
    }
    let booted = container.run("Wants=lsm-guest.service lsm-hook.socket\nAfter=lsm-hook.socket\n", ASK);
    let all = ["said", "guest.log", "hook.log"].map(|name| format!("{name}:\n{}", container.said(name))).join("\n");
    assert!(all.contains("both are there\n"), "{booted:?}\n{all}");
    // NET_ADMIN and NET_RAW, and on the host NET_BIND_SERVICE and DAC_OVERRIDE.
    for bounding in ["CapBnd:\t0000000000003000", "CapBnd:\t0000000000003402"] {
        assert!(all.contains(bounding), "{all}");
    }
    for sockets in ["700/run/lsm\n", "600/run/lsm/guest.sock\n", "600/run/lsm/hook.sock\n"] {
        assert!(all.contains(sockets), "{all}");
    }
}
