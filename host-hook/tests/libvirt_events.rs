//! Events and progress, from the real libvirt-dbus with libvirt's test driver on a bus of its own, and from a stand-in
//! for virsh.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use lsm_hook::libvirt::{Ending, Events, Jobs, LibvirtError, Notice, Place, State, What, Whose, description, domains};

// The only domain of test:///default.
const UUID: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

fn have(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !there {
        let expected = std::env::var_os("LSM_EXPECT_ALL").is_some_and(|v| v == "1");
        assert!(!expected, "{program} is not installed, and everything was to be tested");
        eprintln!("skipped: needs {program}");
    }
    there
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lsm-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn script(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn bus(scratch: &Scratch) -> (Running, String) {
    let address = format!("unix:path={}", scratch.0.join("bus").display());
    let config = scratch.0.join("bus.conf");
    let policy = "<policy context='default'><allow send_destination='*' eavesdrop='true'/><allow eavesdrop='true'/>\
                  <allow own='*'/><allow user='*'/></policy>";
    fs::write(&config, format!("<busconfig><type>session</type><listen>{address}</listen>{policy}</busconfig>"))
        .unwrap();
    let mut daemon = Command::new("dbus-daemon");
    daemon.arg("--nofork").arg("--print-address").arg(format!("--config-file={}", config.display()));
    let mut child = daemon.stdout(Stdio::piped()).spawn().unwrap();
    // It prints its address when it listens.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    (Running(child), address)
}

fn libvirt_dbus(address: &str, scratch: &Scratch) -> Running {
    let mut daemon = Command::new("libvirt-dbus");
    daemon.arg("--session").env("DBUS_SESSION_BUS_ADDRESS", address).env("XDG_RUNTIME_DIR", &scratch.0);
    Running(daemon.env("HOME", &scratch.0).spawn().unwrap())
}

async fn next(events: &mut Events) -> Notice {
    tokio::time::timeout(Duration::from_secs(20), events.next()).await.expect("a notice within 20 s")
}

async fn next_event(events: &mut Events) -> (Whose, What) {
    loop {
        if let Notice::Event { whose, what, .. } = next(events).await {
            return (whose, what);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn events_over_the_bus_also_after_a_restart() {
    if !have("dbus-daemon") || !have("libvirt-dbus") {
        return;
    }
    let scratch = Scratch::new("events");
    let (_bus, address) = bus(&scratch);
    let object = "/org/libvirt/Test".to_owned();
    let place = Place { bus: Some(address.clone()), object, virsh: "/nonexistent".into(), ..Place::default() };
    // Nobody is there yet: that is not the end.
    let mut events = Events::start(place.clone(), false);
    let mut libvirt = libvirt_dbus(&address, &scratch);
    let caller = zbus::conn::Builder::address(address.as_str()).build().await.unwrap();
    let domain = format!("/org/libvirt/Test/domain/_{}", UUID.replace('-', "_"));
    for _ in 0..2 {
        assert_eq!(next(&mut events).await, Notice::Connected);
        for (method, what) in
            [("Suspend", What::Suspended { migrated: false }), ("Resume", What::Resumed { migrated: false })]
        {
            let interface = Some("org.libvirt.Domain");
            caller.call_method(Some("org.libvirt"), domain.as_str(), interface, method, &()).await.unwrap();
            assert_eq!(next_event(&mut events).await, (Whose::Uuid(UUID.into()), what));
        }
        drop(libvirt);
        libvirt = libvirt_dbus(&address, &scratch);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_domain_without_a_job_has_no_progress() {
    if !have("dbus-daemon") || !have("libvirt-dbus") {
        return;
    }
    let scratch = Scratch::new("jobs");
    let (_bus, address) = bus(&scratch);
    let virsh = scratch.script("virsh", "echo 'Job type: Unbounded'; echo time_elapsed: 7; echo data_remaining: 42");
    let object = "/org/libvirt/Test".to_owned();
    let jobs = Jobs::open(Place { bus: Some(address.clone()), object, virsh, ..Place::default() }).await;
    // Before libvirt-dbus is there, virsh is asked.
    assert_eq!(jobs.progress(UUID).await.unwrap().unwrap().data_remaining, 42);
    let _libvirt = libvirt_dbus(&address, &scratch);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        // The test driver has no jobs and says so in its way; what matters is that the bus was asked and answered.
        match jobs.progress(UUID).await {
            Ok(Some(progress)) if progress.data_remaining == 42 => {
                assert!(std::time::Instant::now() < deadline, "waited 10 s for libvirt-dbus to be asked");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(None) | Err(LibvirtError::Bus(_)) => break,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn events_from_virsh_where_there_is_no_bus() {
    let scratch = Scratch::new("virsh");
    let virsh = scratch.script(
        "virsh",
        "case \"$*\" in\n\
         '-c qemu:///system event --event lifecycle --loop --timestamp')\n\
         echo \"t: event 'lifecycle' for domain 'vm': Stopped Failed\";;\n\
         *qemu-monitor-event*)\n\
         echo \"t: event STOP for domain 'vm': <null>\";;\n\
         *) exit 1;;\n\
         esac\n\
         exec sleep 600\n",
    );
    let place = Place { bus: Some("unix:path=/nonexistent".into()), virsh, ..Place::default() };
    let mut events = Events::start(place, true);
    let mut seen = [next_event(&mut events).await, next_event(&mut events).await];
    seen.sort_by_key(|(_, what)| *what == What::CpusStopped);
    let vm = Whose::Name("vm".into());
    assert_eq!(seen, [(vm.clone(), What::Stopped(Ending::Failed)), (vm, What::CpusStopped)]);
}

#[tokio::test(flavor = "current_thread")]
async fn a_virsh_that_ends_is_started_again() {
    let scratch = Scratch::new("again");
    let virsh = scratch.script("virsh", "echo \"t: event 'lifecycle' for domain 'vm': Resumed Unpaused\"\n");
    let place = Place { bus: Some("unix:path=/nonexistent".into()), virsh, ..Place::default() };
    let mut events = Events::start(place, false);
    for _ in 0..2 {
        assert_eq!(next_event(&mut events).await.1, What::Resumed { migrated: false });
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_domains_that_run_are_listed_and_described_over_the_bus() {
    if !have("dbus-daemon") || !have("libvirt-dbus") {
        return;
    }
    let scratch = Scratch::new("domains");
    let (_bus, address) = bus(&scratch);
    let object = "/org/libvirt/Test".to_owned();
    let place = Place { bus: Some(address.clone()), object, virsh: "/nonexistent".into(), ..Place::default() };
    assert!(domains(&place).await.is_err(), "nobody is there to ask");
    let _libvirt = libvirt_dbus(&address, &scratch);
    let caller = zbus::conn::Builder::address(address.as_str()).build().await.unwrap();
    let domain = format!("/org/libvirt/Test/domain/_{}", UUID.replace('-', "_"));
    let call = async |method: &str| {
        let interface = Some("org.libvirt.Domain");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        // libvirt-dbus takes a moment to be on the bus.
        while let Err(error) = caller.call_method(Some("org.libvirt"), domain.as_str(), interface, method, &()).await {
            assert!(std::time::Instant::now() < deadline, "waited 10 s for {method}: {error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let now = async || domains(&place).await.unwrap().get(UUID).copied();
    call("Suspend").await;
    assert_eq!(now().await, Some(State::Paused));
    call("Resume").await;
    assert_eq!(now().await, Some(State::Running));
    let xml = description(&place, UUID).await.unwrap();
    assert!(xml.starts_with("<domain") && xml.contains(UUID), "{xml}");
}

#[tokio::test(flavor = "current_thread")]
async fn the_domains_that_run_are_listed_by_virsh() {
    let scratch = Scratch::new("list");
    let virsh = scratch.script(
        "virsh",
        "case \"$*\" in\n\
         '-q -c qemu:///system list --uuid') printf 'one\\ntwo\\n\\n';;\n\
         '-q -c qemu:///system list --uuid --state-paused') printf 'two\\n\\n';;\n\
         '-q -c qemu:///system dumpxml two') echo '<domain/>';;\n\
         *) echo 'error: no' >&2; exit 1;;\n\
         esac\n",
    );
    let place = Place { bus: Some("unix:path=/nonexistent".into()), virsh, ..Place::default() };
    let found = domains(&place).await.unwrap();
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [("one".into(), State::Running), ("two".into(), State::Paused)]);
    assert_eq!(description(&place, "two").await.unwrap().trim(), "<domain/>");
    let said = description(&place, "three").await.unwrap_err().to_string();
    assert_eq!(said, "virsh says about three: error: no");
}

#[tokio::test(flavor = "current_thread")]
async fn a_virsh_that_listens_is_a_connection() {
    let scratch = Scratch::new("listens");
    let virsh = scratch.script("virsh", "exec sleep 600\n");
    let place = Place { bus: Some("unix:path=/nonexistent".into()), virsh, ..Place::default() };
    assert_eq!(next(&mut Events::start(place, false)).await, Notice::Connected);
}
