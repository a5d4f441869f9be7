//! Programs that know nothing of Multipath TCP: made to speak it by `lsm-guest force`, they move with the VM; and where
//! the kernel cannot do that, it is said.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use lsm_tests::{
    shell::wait_for,
    stage::{Stage, StageOptions, lacking},
    topology::CLIENT,
};
use socket2::{Domain, Protocol, Socket, Type};

const LIMIT: Duration = Duration::from_secs(60);
/// Lines of the file that the web server in the VM has: each is the number of the line.
const LINES: usize = 1_500_000;
const WEB: &str = "/sys/fs/cgroup/system.slice/web.service";

fn set(kernel: &str) -> Stage {
    let policy = "switch = \"early\"".into();
    Stage::set(&StageOptions { kernel: kernel.into(), policy, ..StageOptions::default() }, |what| eprintln!("{what}"))
        .unwrap()
}

/// Writes the VM's configuration and has it carried out.
fn force(stage: &Stage, mptcp: &str) -> serde_json::Value {
    stage.guest.must(&format!("mkdir -p /etc/lsm; printf '%s\n' '[mptcp]' '{mptcp}' >/etc/lsm/guest.toml")).unwrap();
    let told = stage.guest.must("lsm-guest force --json").unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let checked = stage.guest.must("lsm-guest check --json").unwrap();
    assert!(checked.contains(r#""good":true"#), "{checked}");
    told
}

/// Starts a program within a cgroup.
fn start(stage: &Stage, cgroup: &str, name: &str, command: &str) -> u32 {
    stage.guest.must(&format!("mkdir -p {cgroup}")).unwrap();
    stage.guest.spawn(name, &format!("echo 0 >{cgroup}/cgroup.procs; exec {command}")).unwrap()
}

fn stop(stage: &Stage, id: u32) {
    stage.guest.must(&format!("kill {id}; while [ -e /proc/{id} ]; do usleep 1000; done")).unwrap();
}

/// Whether busybox' nc gets a Multipath TCP listener in this cgroup.
fn is_forced(stage: &Stage, cgroup: &str) -> bool {
    let id = start(stage, cgroup, "nc", "nc -l -p 99");
    let listening = |ss: &str| stage.guest.must(&format!("{ss} -lnH sport = :99")).unwrap().contains(":99");
    wait_for("nc to listen", LIMIT, || listening("ss -t").then_some(())).unwrap();
    let forced = listening("ss -M");
    stop(stage, id);
    forced
}

/// A client that reads a page at leisure until it is told that the VM has moved, and then the rest of it.
fn read_slowly(stage: &Stage, from: IpAddr, moved: Arc<AtomicBool>) -> JoinHandle<Vec<u8>> {
    let socket = stage.topology.ns("client").enter(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)));
    let socket = socket.unwrap().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    socket.connect_timeout(&SocketAddr::new(from, 80).into(), LIMIT).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"GET /numbers HTTP/1.0\r\n\r\n").unwrap();
    std::thread::spawn(move || {
        let (mut page, mut chunk) = (Vec::new(), vec![0; 4096]);
        loop {
            let length = stream.read(&mut chunk).unwrap();
            if length == 0 {
                return page;
            }
            page.extend_from_slice(&chunk[..length]);
            if !moved.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    })
}

#[test]
fn an_ordinary_server_moves_with_the_vm() {
    if lacking() {
        return;
    }
    let stage = set("6.12");
    let told = force(&stage, "force = [\"web.service\"]");
    assert_eq!(told["what"]["force"]["units"][0], "web.service", "{told}");
    stage.guest.must(&format!("mkdir /srv; seq 1 {LINES} >/srv/numbers")).unwrap();
    // The cgroup is younger than the setting, as it is at each start of a unit; the agent has no part in it.
    stage.kill_agent().unwrap();
    start(&stage, &format!("{WEB}/worker"), "httpd", "httpd -f -p 80 -h /srv");
    stage.start_agent().unwrap();
    let web = |ss: &str| stage.guest.must(&format!("{ss} sport = :80")).unwrap();
    wait_for("httpd's Multipath TCP listener", LIMIT, || web("ss -Mln").contains(":80").then_some(())).unwrap();

    let moved = Arc::new(AtomicBool::new(false));
    let address = IpAddr::V4(stage.guest.domain().address);
    let reading = read_slowly(&stage, address, moved.clone());
    wait_for("the agent", LIMIT, || stage.guest.must("lsm-guest status").ok()).unwrap();
    stage.migrate("dallas").unwrap();
    stage.settled(LIMIT).unwrap();
    let subflows = web("ss -tinH state established");
    assert!(subflows.contains("10.2.0.1") && !subflows.contains("10.1.0.10"), "not on the new path alone: {subflows}");
    assert!(subflows.contains("tcp-ulp-mptcp"), "{subflows}");
    assert!(!reading.is_finished(), "the page was read before the VM had moved: {subflows}");
    moved.store(true, Ordering::Relaxed);
    let page = reading.join().unwrap();
    let body = page.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let wanted: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
    assert!(page[body..] == *wanted.as_bytes(), "{} bytes of {}", page.len() - body, wanted.len());
}

#[test]
fn only_the_programs_that_were_named() {
    if lacking() {
        return;
    }
    let stage = set("6.12");
    let other = "/sys/fs/cgroup/system.slice";
    let states = |cgroups: &[&str]| cgroups.iter().map(|cgroup| is_forced(&stage, cgroup)).collect::<Vec<_>>();
    let deep = format!("{WEB}/a/b");
    let alike = ["web.servic", "web.service2", "xweb.service", "WEB.service"].map(|name| format!("{other}/{name}"));
    let all: Vec<&str> = [other, WEB, &deep].into_iter().chain(alike.iter().map(String::as_str)).collect();

    assert_eq!(states(&all), [false; 7]);
    force(&stage, "force = [\"some-other-unit-with-a-long-name.service\", \"web.service\"]");
    assert_eq!(states(&all), [false, true, true, false, false, false, false]);
    // A start of the agent leaves it as it is, and carries out what it finds changed.
    stage.kill_agent().unwrap();
    assert_eq!(states(&[WEB]), [true]);
    stage.guest.must("sed -i s/web.service/xweb.service/ /etc/lsm/guest.toml").unwrap();
    stage.start_agent().unwrap();
    wait_for("the agent", LIMIT, || stage.guest.must("lsm-guest status").ok()).unwrap();
    assert_eq!(states(&all), [false, false, false, false, false, true, false]);

    force(&stage, "force = \"all\"\nexcept = [\"web.service\"]");
    assert_eq!(states(&all), [true, false, false, true, true, true, true]);
    force(&stage, "force = \"all\"\nexcept = []");
    assert_eq!(states(&all), [true; 7]);
    // Datagrams are left alone, and SOCK_CLOEXEC does not hide what is TCP: of the traffic program's two connections one
    // asks for Multipath TCP itself.
    let multipath = |cgroup: &str| {
        let traffic =
            "sh -c 'sleep 60 | lsm-traffic client --to 127.0.0.1 --tcp 5001 --udp 5002 --connections 1 --plain 1'";
        start(&stage, cgroup, "traffic-client", traffic);
        let connections = || stage.guest.must("ss -tinH state established dport = :5001").unwrap();
        let two = || Some(connections()).filter(|text| text.matches("127.0.0.1:5001").count() == 2);
        let found = wait_for("two connections", LIMIT, two).unwrap().matches("tcp-ulp-mptcp").count();
        stage.guest.must("ss -unH dport = :5002 | grep -q :5002").unwrap();
        stage.guest.must("kill $(pidof sleep)").unwrap();
        wait_for("the client to end", LIMIT, || connections().is_empty().then_some(())).unwrap();
        found
    };
    assert_eq!(multipath(WEB), 2);
    let listener = stage.topology.ns("client").enter(|| {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
        listener.bind(&SocketAddr::from((CLIENT, 8080)).into()).unwrap();
        listener.listen(4).unwrap();
        listener
    });
    let listener = listener.unwrap();
    let open = |cgroup: &str| {
        let id = start(&stage, cgroup, "wget", &format!("wget -O /dev/null http://{CLIENT}:8080/"));
        let (accepted, _) = listener.accept().unwrap();
        let seen = stage.guest.must(&format!("ss -tinH dst {CLIENT} dport = :8080")).unwrap();
        stop(&stage, id);
        drop(accepted);
        seen.contains("tcp-ulp-mptcp")
    };
    assert!(open(WEB));
    force(&stage, "force = \"all\"\nexcept = [\"web.service\"]");
    assert!(!open(WEB) && open(other));
    assert_eq!(multipath(WEB), 1);

    // What is wrong or impossible leaves it as it was.
    let refused = |command: &str, words: &str| {
        let outcome = stage.guest.exec(command).unwrap();
        assert!(outcome.status != 0 && outcome.stderr.contains(words), "{command}: {outcome:?}");
    };
    refused(
        "echo 'forced = 1' >/tmp/wrong.toml; lsm-guest force --config /tmp/wrong.toml",
        "/tmp/wrong.toml:1:1: unknown field",
    );
    stage.guest.must("echo 0 >/proc/sys/net/mptcp/enabled").unwrap();
    refused("lsm-guest force", "every new TCP socket would fail");
    stage.guest.must("echo 1 >/proc/sys/net/mptcp/enabled; umount /sys/fs/cgroup").unwrap();
    refused("lsm-guest force", "/sys/fs/cgroup is not cgroup version 2");
    stage.guest.must("mount -t cgroup2 cgroup2 /sys/fs/cgroup").unwrap();
    assert_eq!(states(&[other, WEB]), [true, false]);
    // The number of programs does not grow with the changes.
    let links = || stage.guest.must("ls /sys/fs/bpf/lsm").unwrap();
    assert_eq!(links().trim(), "force");
    let told = force(&stage, "force = \"off\"");
    assert_eq!(told["in_force"], false, "{told}");
    assert_eq!(states(&[other, WEB]), [false, false]);
    stage.guest.must("! test -e /sys/fs/bpf/lsm && ! test -e /run/lsm/force.json").unwrap();
}

#[test]
fn linux_6_1_cannot_and_says_so() {
    if lacking() {
        return;
    }
    let stage = set("6.1");
    stage.guest.must("mkdir /etc/lsm; echo 'mptcp.force = \"all\"' >/etc/lsm/guest.toml").unwrap();
    let refused = |command: &str, words: &str| {
        let outcome = stage.guest.exec(command).unwrap();
        assert!(outcome.status != 0 && outcome.stderr.contains(words), "{command}: {outcome:?}");
    };
    refused("lsm-guest force", "cannot: it has no function update_socket_protocol; Linux 6.6 and later can");
    refused("lsm-guest force", "lsm-guest force --dropin UNIT");
    refused("lsm-guest check", "not everything is in order");
    assert!(!is_forced(&stage, WEB));
    refused("lsm-guest force --dropin web.service", "mptcpize is not installed in /");
    // The agent runs all the same, and tells.
    stage.kill_agent().unwrap();
    stage.start_agent().unwrap();
    stage.agent_said("plain programs do not get Multipath TCP as configured", LIMIT).unwrap();
    stage.agent_is(&["idle"], LIMIT).unwrap();
}
