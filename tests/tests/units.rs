//! The units' sandboxes: no looser than they were, a reason in SECURITY.md for everything left open, and the programs work
//! in them, started by a real systemd.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use lsm_tests::{container::Container, image::static_program, needs, pki::Authority};

/// What is counted against each unit, in tenths, by systemd 252; and its column in SECURITY.md.
const UNITS: [(&str, u32, usize); 2] = [("lsm-guest.service", 20, 2), ("lsm-hook.service", 20, 3)];

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
stat -c %a%n /run/lsm /run/lsm/*.sock
# Where libvirt runs, the service would have its sockets forced, and check tries whether that unit can.
cp /bin/sleep /run/libvirtd
printf '[Service]\\nType=exec\\nExecStart=/run/libvirtd 60\\n' >/run/systemd/system/libvirtd.service
systemctl daemon-reload
systemctl start libvirtd
lsm-hook check | grep libvirtd.*TCP
echo both are there
# Another host calls, and is called; it has no sandbox.
lsm-hook serve --config /lab/there.toml --directory /run/there >/lab/there.log 2>&1 &
for try in $(seq 200); do [ -S /run/there/hook.sock ] && break; sleep 0.1; done
lsm-hook hook vm migrate begin - </lab/vm.xml || true
systemctl show -P ActiveState lsm-hook-dial.service
grep -H CapBnd /proc/$(systemctl show -P MainPID lsm-hook-dial.service)/status
# What a hanging copy's connection is ended with, in the service's sandbox: see END.
sleep 60 | busybox nc -l -p 50000 >/dev/null &
for try in $(seq 50); do ss -Htln | grep -q :50000 && break; sleep 0.1; done
bash -c 'exec 9<>/dev/tcp/127.0.0.1/50000; sleep 60' &
for try in $(seq 50); do ss -Htn state established dst 127.0.0.1:50000 | grep -q . && break; sleep 0.1; done
ss -Htn state established dst 127.0.0.1:50000 | grep .
# A VM came here, and the service that heard it died: its scripts are owed.
mkdir -p /etc/lsm/moved.d
install -m 755 /lab/tell /etc/lsm/moved.d/10-tell
systemctl stop lsm-hook.service
if ss -Htn state established dst 127.0.0.1:50000 | grep .; then exit 1; fi
cp /lab/moved.json /run/lsm/
for try in $(seq 200); do lsm-hook status --json | grep -q Exited && break; sleep 0.1; done
lsm-hook status --json
cat /run/told
echo all was done
";

/// As `lsm-hook` does it, in its unit as that ends.
const END: &str = "ExecStopPost=/bin/sh -c 'exec ss --kill --tcp --numeric dst 127.0.0.1:50000 >&2'";

/// A script that says where it runs, and what is denied it there.
const TELL: &str = "#!/bin/sh
{ cat /proc/self/cgroup; grep -E 'Seccomp:|CapBnd' /proc/self/status; env; touch /usr/here && echo may write; } >/run/told 2>&1
";

#[test]
fn both_programs_start_and_answer_in_their_sandboxes() {
    let programs = ["/usr/bin/systemd-nspawn", "/bin/busybox", "/usr/bin/ss"];
    if needs::lacking(needs::missing(&programs, "tests/install installs it").or_else(needs::missing_mptcp)) {
        return;
    }
    let mut container = Container::new("lsm-units").unwrap();
    let lab = container.lab();
    let authority = Authority::new("LSM units").unwrap();
    for name in ["here", "there"] {
        authority.equip(&lab.join(name), name, [127, 0, 0, 1].into()).unwrap();
    }
    container.write("host.toml", &(host_toml("here", "there", 16520) + "[stream]\npaths = [\"192.0.2.1\"]\n")).unwrap();
    let tls = [("ca", "CA/cacert"), ("cert", "libvirt/servercert"), ("key", "libvirt/private/serverkey")]
        .into_iter()
        .chain([("client_cert", "libvirt/clientcert"), ("client_key", "libvirt/private/clientkey")])
        .map(|(key, file)| format!("{key} = \"/lab/there/{file}.pem\"\n"))
        .collect::<String>();
    let there = host_toml("there", "here", 16519);
    let listen = "[peer_channel]\nlisten = \"127.0.0.1:16520\"\n";
    let reports = "[reports]\nhistory = \"/run/there/history\"\n";
    container.write("there.toml", &format!("{there}{listen}[tls]\n{tls}{reports}")).unwrap();
    container.write("vm.xml", VM).unwrap();
    container.write("tell", TELL).unwrap();
    let addresses = |address: &str| serde_json::json!({ "v4": address, "v6": null });
    let moved = serde_json::json!([{
        "migration": "00112233445566778899aabbccddeeff", "vm": "vm", "peer": "there", "lan": "dallas",
        "from": addresses("10.1.0.10"), "to": addresses("10.2.0.10"), "scripts": null,
    }]);
    container.write("moved.json", &moved.to_string()).unwrap();
    // Not a VM, and nobody reads a journal.
    let guest = "[Unit]\nConditionVirtualization=\n[Service]\nStandardError=file:/lab/guest.log\n";
    container.write("guest.conf", guest).unwrap();
    container.write("hook.conf", &format!("[Service]\nStandardError=file:/lab/hook.log\n{END}\n")).unwrap();
    for program in ["lsm-guest", "lsm-hook"] {
        container.bind(&static_program(program, program).unwrap(), &format!("/usr/sbin/{program}"));
        let unit = format!("{program}.service");
        container.bind(&project("systemd").join(&unit), &format!("/etc/systemd/system/{unit}"));
        let more = lab.join(program.replace("lsm-", "") + ".conf");
        container.bind(&more, &format!("/etc/systemd/system/{unit}.d/lab.conf"));
    }
    for unit in [
        "lsm-hook.socket",
        "lsm-hook-dial.socket",
        "lsm-hook-dial.service",
        "lsm-hook-force.socket",
        "lsm-hook-force@.service",
        "lsm-hook-scripts.socket",
        "lsm-hook-scripts@.service",
        "lsm-guest-scripts.socket",
        "lsm-guest-scripts@.service",
    ] {
        container.bind(&project("systemd").join(unit), &format!("/etc/systemd/system/{unit}"));
    }
    container.bind(&lab.join("host.toml"), "/etc/lsm/host.toml");
    for (from, to) in [("CA", "/etc/pki/CA"), ("libvirt", "/etc/pki/libvirt")] {
        container.bind(&lab.join("here").join(from), to);
    }
    let booted = container.run("Wants=lsm-guest.service lsm-hook.socket\nAfter=lsm-hook.socket\n", ASK);
    let all = ["said", "guest.log", "hook.log", "there.log"]
        .map(|name| format!("{name}:\n{}", container.said(name)))
        .join("\n");
    assert!(all.contains("both are there\n"), "{booted:?}\n{all}");
    // NET_ADMIN and NET_RAW, and on the host NET_BIND_SERVICE and DAC_OVERRIDE.
    for bounding in ["CapBnd:\t0000000000003000", "CapBnd:\t0000000000003402"] {
        assert!(all.contains(bounding), "{all}");
    }
    for sockets in ["700/run/lsm\n", "600/run/lsm/guest.sock\n", "600/run/lsm/hook.sock\n"] {
        assert!(all.contains(sockets), "{all}");
    }
    for sockets in ["dial", "force", "moved", "switched"] {
        assert!(all.contains(&format!("600/run/lsm/{sockets}.sock\n")), "{all}");
    }
    assert!(all.contains("all was done\n"), "{booted:?}\n{all}");
    // The kernel's own word: it lets the unit load the program, or nobody.
    let forced = ["copied (BPF)", "confidentiality", "Linux 6.6 and later can", "not cgroup version 2"];
    assert!(forced.iter().any(|word| all.contains(word)), "{all}");
    // What the other host said, by a connection that a process without any power has made.
    for dialled in ["(there: it does not run it)", "\nactive\n", "status:CapBnd:\t0000000000000000\n"] {
        assert!(all.contains(dialled), "{dialled}: {all}");
    }
    // Neither in the service's unit nor in its sandbox.
    for told in ["/lsm-hook-scripts@", "LSM_NEW_ADDRESS4=10.2.0.10\n", "\nmay write\n", "{\"Exited\":0}"] {
        assert!(all.contains(told), "{told}: {all}");
    }
}

fn host_toml(name: &str, peer: &str, port: u16) -> String {
    format!("name = \"{name}\"\n[tunnel]\naddress = \"192.0.2.1\"\n[peer.{peer}]\naddress = \"127.0.0.1:{port}\"\n")
}

/// One that runs nowhere.
const VM: &str = r#"<domain type="kvm"><name>vm</name><uuid>4c534d00-0000-4000-8000-000000000007</uuid>
<metadata><lsm:vm xmlns:lsm="urn:lsm:1">
<lsm:vnic mac="52:54:00:aa:01:01" lan="montreal"/><lsm:vnic mac="52:54:00:aa:01:02"/></lsm:vm></metadata><devices>
<interface type="bridge"><mac address="52:54:00:aa:01:01"/><source bridge="br-montreal"/></interface>
<interface type="bridge"><mac address="52:54:00:aa:01:02"/><source bridge="lsm-spare"/></interface></devices></domain>"#;
