//! What the lab promises of its sites and VMs.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use lsm_tests::{
    domain::Domain,
    guest::Guest,
    image::ImageBuilder,
    needs,
    pki::Authority,
    shell::{run, wait_for},
    site::{LabDir, Site, SiteOptions, Transport},
    topology::{Topology, TopologyOptions},
};

fn skip() -> bool {
    needs::lacking(needs::missing(&["/usr/sbin/libvirtd"], "run tests/install"))
}

const HOOK: &str = "#!/bin/sh\necho \"$@\" >>/run/lsm/hook-was-called\n";

#[test]
fn a_site_is_private_runs_its_hook_and_its_services_end_when_killed() {
    if skip() {
        return;
    }
    let topology = Topology::new(&TopologyOptions::default()).unwrap();
    let lab = LabDir::new(&topology).unwrap();
    let hook = lab.path().join("hook");
    fs::write(&hook, HOOK).unwrap();
    let options = SiteOptions {
        hook: Some(hook),
        files: vec![("/etc/lsm/host.toml".into(), "# a site's own\n".into())],
        kvm: false,
    };
    let authority = Authority::new("lab").unwrap();
    let before = fs::read_to_string("/etc/hosts").unwrap();
    let site = Site::start(&topology, &lab, "dallas", &authority, &options).unwrap();

    let said =
        run(site.command("sh").args(["-c", "hostname; cat /etc/lsm/host.toml; getent hosts montreal; ls /dev/kvm"]));
    let said = said.unwrap_err().to_string();
    assert!(said.contains("/dev/kvm"), "{said}");
    let said = run(site.command("sh").args(["-c", "hostname; cat /etc/lsm/host.toml; getent hosts montreal"])).unwrap();
    assert!(said.contains("dallas\n# a site's own\n172.30.1.2"), "{said}");
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap(), before);
    assert!(!Path::new("/etc/lsm/host.toml").exists());
    run(site.command("openssl").args([
        "verify",
        "-CAfile",
        "/etc/pki/CA/cacert.pem",
        "/etc/pki/libvirt/servercert.pem",
    ]))
    .unwrap();
    let names = run(site.command("busctl").args(["--system", "list"])).unwrap_or_default();
    assert!(names.is_empty() || names.contains("org.libvirt"), "{names}");

    let mut service = site.service("sleep", site.command("sleep").arg("1000")).unwrap();
    let inner = wait_for("the service", Duration::from_secs(5), || {
        let command = fs::read_to_string(format!("/proc/{}/cmdline", service.inner_pid())).unwrap_or_default();
        command.starts_with("sleep").then(|| service.inner_pid())
    })
    .unwrap();
    service.kill();
    wait_for("its end", Duration::from_secs(5), || (!Path::new(&format!("/proc/{inner}")).exists()).then_some(()))
        .unwrap();

    let image = ImageBuilder::new("6.12").service("answer", "echo served").build().unwrap();
    let sites = [Arc::clone(&site)];
    let domain = Domain::new("vm", image, topology.site("dallas"));
    let guest = Guest::boot(&domain, &sites).unwrap();
    assert_eq!(guest.must("cat /var/log/answer.log").unwrap(), "served\n");
    assert!(guest.must("ip mptcp limits").unwrap().contains("subflows"), "the real ip");
    assert_eq!(guest.exec("echo wrong >&2; exit 3").unwrap().status, 3);
    let calls = fs::read_to_string(site.inside("/run/lsm/hook-was-called")).unwrap();
    assert!(calls.contains("vm started begin"), "{calls}");

    // libvirtd may die; the VM does not.
    site.restart_libvirtd(Transport::Plain).unwrap();
    assert!(site.virsh(&["list"]).unwrap().contains("vm"));
    assert_eq!(guest.must("echo alive").unwrap(), "alive\n");
}

#[test]
fn nothing_is_left_when_the_lab_is_killed() {
    if skip() {
        return;
    }
    let mut smoke = Command::new(env!("CARGO_BIN_EXE_lab-smoke"));
    let mut child = smoke.stdout(std::process::Stdio::null()).spawn().unwrap();
    let own = format!("lsm{}.", child.id());
    let qemu_runs = || traces(&own).iter().any(|trace| trace.contains("/init"));
    wait_for("a site", Duration::from_secs(60), || qemu_runs().then_some(())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let start = SystemTime::now();
    let gone = wait_for("everything to go", Duration::from_secs(10), || traces(&own).is_empty().then_some(()));
    assert!(gone.is_ok(), "{:?} after {:?}", traces(&own), start.elapsed());
}

/// Processes, namespaces and directories that bear a lab's name.
fn traces(own: &str) -> Vec<String> {
    let entries = |dir: &str| fs::read_dir(dir).into_iter().flatten().flatten().collect::<Vec<_>>();
    let mut seen = Vec::new();
    for dir in ["/run/netns", "/tmp"] {
        let names = entries(dir).into_iter().map(|entry| entry.path().display().to_string());
        seen.extend(names.filter(|name| name.contains(own)));
    }
    for entry in entries("/proc") {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(own) {
            seen.push(command);
        }
    }
    seen
}
