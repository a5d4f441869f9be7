//! Many moves, and many connections: the agent between two namespaces of this machine's kernel, no VM. What moves is
//! all that the agent sees of a migration: from one vNIC to the other, and back.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lsm_tests::{
    image::static_program,
    needs,
    netns::Netns,
    shell::{Process, run, wait_for},
    traffic::{ClientOptions, ClientProcess, Log},
};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_lsm-traffic");
const CLIENT: &str = "10.9.0.1";
const LIMIT: Duration = Duration::from_secs(60);

fn skip() -> bool {
    needs::lacking(needs::missing_mptcp())
}

/// One of the places where the VM can be: its vNIC for that LAN, its address there, and the gateway.
#[derive(Clone, Copy)]
struct Lan {
    vnic: &'static str,
    mac: &'static str,
    gateway: &'static str,
    address: &'static str,
}

const A: Lan = Lan { vnic: "a", mac: "52:54:00:aa:00:01", gateway: "10.1.0.1", address: "10.1.0.7" };
const B: Lan = Lan { vnic: "b", mac: "52:54:00:aa:00:02", gateway: "10.2.0.1", address: "10.2.0.7" };

// Dropped in this order: programs before namespaces.
struct Scene {
    programs: Vec<Process>,
    agent: Process,
    program: PathBuf,
    directory: PathBuf,
    client: Netns,
    vm: Netns,
}

impl Scene {
    /// A VM in LAN A with the agent, and a client with one address, which is also the gateway of both LANs.
    fn set(name: &str) -> Scene {
        let unique = format!("scale{}-{name}", std::process::id());
        let client = Netns::new(&format!("{unique}-c")).unwrap();
        let vm = Netns::new(&format!("{unique}-v")).unwrap();
        client.ip(&format!("address add {CLIENT}/32 dev lo")).unwrap();
        for Lan { vnic, mac, gateway, .. } in [A, B] {
            let lan = gateway.trim_end_matches(".1");
            let there = vm.name();
            client.ip(&format!("link add g{vnic} type veth peer name {vnic} address {mac} netns {there}")).unwrap();
            client.ip(&format!("address add {gateway}/24 dev g{vnic}\nlink set dev g{vnic} up")).unwrap();
            // With one address only, whichever way it goes; the same for whoever opens many connections.
            client.ip(&format!("route replace {lan}.0/24 dev g{vnic} src {CLIENT}")).unwrap();
        }
        vm.ip(&format!("address add {}/24 dev a\nlink set dev a up\nroute add default via {}", A.address, A.gateway))
            .unwrap();
        client.ip("mptcp limits set subflows 8 add_addr_accepted 8").unwrap();
        // The kernel binds joins to ports of their own, and looks for free ones ever longer: this client is many.
        client.sysctl(&[("net/ipv4/ip_local_port_range", "1024 65535")]).unwrap();
        let program = static_program("lsm-guest", "lsm-guest").unwrap();
        let directory = std::env::temp_dir().join(&unique);
        fs::create_dir_all(&directory).unwrap();
        let log = File::create(directory.join("log")).unwrap();
        let mut command = vm.command(program.to_str().unwrap());
        let config = directory.join("guest.toml");
        fs::write(&config, format!("[reports]\nhistory = \"{}\"\n", directory.join("history").display())).unwrap();
        command.arg("--directory").arg(&directory).args(["run", "--config"]).arg(config).stderr(log);
        // The machine's own bus is no place for this agent.
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
        let agent = Process::start("lsm-guest", &mut command).unwrap();
        let scene = Scene { programs: Vec::new(), agent, program, directory, client, vm };
        wait_for("the agent", LIMIT, || scene.directory.join("guest.sock").exists().then_some(())).unwrap();
        scene
    }

    /// Traffic with the VM's present address, on ports that begin with `port`.
    fn traffic(&mut self, port: u16, connections: u16, by_vm: u16, period: Duration) -> ClientProcess {
        self.traffic_at(&[], port, connections, by_vm, period)
    }

    /// The same, with more said to the VM's program.
    fn traffic_at(&mut self, at: &[&str], port: u16, connections: u16, by_vm: u16, period: Duration) -> ClientProcess {
        let mut serve = self.vm.command(TRAFFIC);
        serve.args(["serve", "--tcp", &port.to_string()]).args(at);
        self.programs.push(Process::start("lsm-traffic serve", &mut serve).unwrap());
        wait_for("the server to listen", LIMIT, || {
            let ss = run(self.vm.command("ss").args(["-Hltn", &format!("sport = :{port}")])).unwrap();
            (!ss.is_empty()).then_some(())
        })
        .unwrap();
        let options = ClientOptions {
            tcp: port,
            udp: None,
            connections,
            listen: port + 1,
            accept: by_vm,
            plain: 0,
            period,
            probe: Duration::from_secs(3_600),
            ..ClientOptions::new(A.address.parse().unwrap())
        };
        let mut client = ClientProcess::spawn(self.client.command(TRAFFIC), &options).unwrap();
        if by_vm > 0 {
            let mut open = self.vm.command(TRAFFIC);
            open.args(["open", "--to", &format!("{CLIENT}:{}", port + 1), "--count", &by_vm.to_string()]);
            self.programs.push(Process::start("lsm-traffic open", &mut open).unwrap());
        }
        client.ready(LIMIT).unwrap();
        client
    }

    fn ask(&self, words: &str) -> Value {
        let mut command = self.vm.command(self.program.to_str().unwrap());
        command.arg("--directory").arg(&self.directory).args(words.split(' ')).arg("--json");
        let text = run(&mut command).unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
        serde_json::from_str(&text).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap()
    }

    fn prepare(&self, old: Lan, new: Lan) -> Value {
        let Lan { mac, address, gateway, .. } = new;
        self.ask(&format!("prepare --old {} --new {mac} --address {address}/24 --gateway {gateway}", old.mac))
    }

    /// The same, and so many have joined and have not. Of thousands at once some wait for the kernel to repeat a SYN, for
    /// longer than the preparation waits for them.
    fn prepare_with(&self, old: Lan, new: Lan, joined: usize, waiting: usize) {
        let mut counts = self.prepare(old, new);
        let as_expected = |counts: &Value| counts["joined"] == joined && counts["waiting"] == waiting;
        wait_for("all to have joined", LIMIT, || {
            if !as_expected(&counts) {
                counts = self.ask("status");
            }
            as_expected(&counts).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {counts}\n{}", self.log()));
    }

    /// The flip and all that follows from it, until the old vNIC is the spare.
    fn settle(&self) {
        self.ask("switch --settle");
        let idle = || (self.ask("status")["state"] == "idle").then_some(());
        wait_for("the agent to settle", LIMIT, idle).unwrap_or_else(|error| panic!("{error}\n{}", self.log()));
    }

    /// The reports of all moves so far say of so many connections that they moved, and of none anything else.
    fn reported(&self, moves: usize, moved: usize) {
        let reports = self.ask("history");
        let reports = reports.as_array().unwrap();
        assert_eq!(reports.len(), moves);
        for report in reports {
            let sums = &report["sums"];
            let others: u64 = sums.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
            assert_eq!((&sums["moved"], others), (&moved.into(), moved as u64), "{sums}");
            assert_eq!(report["outcome"], "settled");
        }
    }

    /// Whether an end that the VM's address has on the client's side is one of these.
    fn client_subflows(&self, address: &str) -> usize {
        let mut ss = self.client.command("ss");
        run(ss.args(["-Htn", "state", "established", "dst", address])).unwrap().lines().count()
    }

    /// CPU time of the agent so far, and the most memory that it ever had, in KiB.
    fn spent(&self) -> (Duration, u64) {
        let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", self.agent.pid())).unwrap();
        let stat = of("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, fields 14 and 15, in hundredths of a second (USER_HZ, the same everywhere).
        let ticks: u64 = fields[11..13].iter().map(|field| field.parse::<u64>().unwrap()).sum();
        let status = of("status");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        (Duration::from_millis(ticks * 10), peak.trim().trim_end_matches(" kB").parse().unwrap())
    }

    /// How many announced addresses each of the client's connections counts as taken, and how many connections do.
    fn accepted(&self) -> Vec<(u32, usize)> {
        let text = run(self.client.command("ss").args(["-HMniO"])).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for line in text.lines() {
            let word = line.split(' ').find_map(|word| word.strip_prefix("add_addr_accepted:"));
            *counts.entry(word.map_or(0, |number| number.parse().unwrap())).or_default() += 1;
        }
        counts.into_iter().collect()
    }
}

/// The middle one of several times.
fn median(mut measure: impl FnMut()) -> Duration {
    const TIMES: usize = 9;
    let mut times: Vec<Duration> = std::iter::repeat_with(|| {
        let begun = Instant::now();
        measure();
        begun.elapsed()
    })
    .take(TIMES)
    .collect();
    times.sort();
    times[TIMES / 2]
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.agent.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// Every byte of every connection arrived.
fn whole(log: &Log, connections: usize) {
    assert_eq!((log.connections.len(), log.bytes_wrong()), (connections, 0));
    for connection in &log.connections {
        assert!(connection.is_whole(), "{}: {:?} {:?}", connection.id, connection.failed, connection.end);
    }
}

/// The same busy connections moved again and again; every byte is checked.
fn again_and_again(name: &str, at: &[&str], moves: usize, by_clients: u16, by_vm: u16) {
    if skip() {
        return;
    }
    let mut scene = Scene::set(name);
    let mut traffic = scene.traffic_at(at, 5001, by_clients, by_vm, Duration::from_millis(5));
    traffic.start().unwrap();
    let connections = usize::from(by_clients + by_vm);
    let mut moved_at = now();
    let (mut old, mut new) = (A, B);
    let mut log = Log::default();
    for count in 1..=moves {
        let prepared = scene.prepare(old, new);
        println!("move {count}: {} joined beforehand, {} did not", prepared["joined"], prepared["waiting"]);
        assert_eq!(prepared["joined"], connections, "move {count}: {prepared}\n{}", scene.log());
        scene.settle();
        let failures = traffic.failures();
        assert!(failures.is_empty(), "move {count}: {failures:?}\n{}", scene.log());
        assert_eq!(scene.client_subflows(old.address), 0, "move {count}: the old address is left");
        let part = traffic.take_log().unwrap();
        let silent: Vec<_> = part.connections.iter().filter(|c| c.arrivals.is_empty()).map(|c| c.id).collect();
        assert!(silent.is_empty(), "move {count}: connections {silent:?} are silent");
        log.extend(part);
        // A peer takes eight addresses at most: one that it goes on counting after it was withdrawn is missing later.
        let accepted = scene.accepted();
        assert!(by_vm > 0 || accepted.iter().all(|(count, _)| *count <= 1), "move {count}: {accepted:?}");
        moved_at = now();
        (old, new) = (new, old);
    }
    wait_for("data both ways on every connection", LIMIT, || {
        log.extend(traffic.take_log().unwrap());
        log.connections.iter().all(|connection| connection.moved_data_after(moved_at)).then_some(())
    })
    .unwrap();
    scene.reported(moves, connections);
    log.extend(traffic.stop().unwrap());
    whole(&log, connections);
}

#[test]
fn busy_connections_survive_fifty_moves_in_a_row() {
    again_and_again("moves", &[], 50, 20, 0);
}

/// What the VM opened itself cannot join by itself for ever: kernels (6.18) go on counting withdrawn endpoints that it
/// joined from. From the fourth move on the peer must do it.
#[test]
fn connections_that_the_vm_opened_survive_moves_in_a_row() {
    again_and_again("both", &[], 8, 8, 4);
}

/// A program that listens at its first address alone: from the second move on it is nobody's any more.
#[test]
fn connections_of_a_listener_at_one_address_survive_moves_in_a_row() {
    // The VM comes back to the very address each second time; B's is what tells.
    again_and_again("bound", &["--at", A.address], 8, 4, 0);
}

/// Connections of which most are idle, moved to the other LAN and back.
fn many(connections: u16, active: u16) {
    if skip() {
        return;
    }
    let mut scene = Scene::set("many");
    let mut busy = scene.traffic(5001, active, 0, Duration::from_millis(20));
    let mut idle = scene.traffic(6001, connections - active, 0, Duration::from_secs(3_600));
    idle.start().unwrap();
    busy.start().unwrap();
    let all = usize::from(connections);
    let mut log = Log::default();
    for (count, (old, new)) in [(A, B), (B, A)].into_iter().enumerate() {
        let before = scene.spent();
        let begun = Instant::now();
        scene.prepare_with(old, new, all, 0);
        let joined = begun.elapsed();
        scene.settle();
        let settled = begun.elapsed() - joined;
        let (cpu, peak) = scene.spent();
        println!(
            "{connections} connections, {active} active, move {}: prepared in {joined:?}, switched and settled in {settled:?}; \
             the agent took {:?} of CPU time so far here, at most {peak} KiB",
            count + 1,
            cpu - before.0
        );
        assert!(busy.failures().is_empty() && idle.failures().is_empty(), "{}", scene.log());
    }
    scene.reported(2, all);
    let moved_at = now();
    wait_for("data both ways on every active connection", LIMIT, || {
        log.extend(busy.take_log().unwrap());
        log.connections.iter().all(|connection| connection.moved_data_after(moved_at)).then_some(())
    })
    .unwrap();
    log.extend(busy.stop().unwrap());
    whole(&log, usize::from(active));
    // An idle connection is alive if its end is heard of: both ends count what they have.
    whole(&idle.stop().unwrap(), all - usize::from(active));
}

#[test]
fn a_thousand_connections_move() {
    many(1_000, 100);
}

#[test]
fn ten_thousand_connections_move() {
    many(10_000, 200);
}

/// Where the VM drops what comes by another card than its answer would leave by: for as long as there are two paths it does
/// not, on either card.
#[test]
fn a_strict_reverse_path_filter_is_loosened_for_a_move() {
    if skip() {
        return;
    }
    let mut scene = Scene::set("strict");
    let mut traffic = scene.traffic(5001, 3, 2, Duration::from_millis(5));
    traffic.start().unwrap();
    let mut log = Log::default();
    let names = ["all", A.vnic, B.vnic].map(|card| format!("net/ipv4/conf/{card}/rp_filter"));
    scene.vm.sysctl(&names.each_ref().map(|name| (name.as_str(), "1"))).unwrap();
    let filters = || -> Vec<String> {
        let files = names.iter().map(|name| format!("/proc/sys/{name}"));
        run(scene.vm.command("cat").args(files)).unwrap().lines().map(str::to_owned).collect()
    };
    for (old, new) in [(A, B), (B, A)] {
        scene.prepare_with(old, new, 5, 0);
        assert_eq!(filters(), ["1", "2", "2"]);
        scene.settle();
        wait_for("the filters as they were", LIMIT, || (filters() == ["1", "1", "1"]).then_some(())).unwrap();
    }
    let moved_at = now();
    wait_for("data both ways on every connection", LIMIT, || {
        log.extend(traffic.take_log().unwrap());
        log.connections.iter().all(|connection| connection.moved_data_after(moved_at)).then_some(())
    })
    .unwrap();
    log.extend(traffic.stop().unwrap());
    whole(&log, 5);
}

/// A client that reads nothing while the VM moves: its window is closed, and no data can tell that it has moved.
#[test]
fn a_connection_whose_client_reads_nothing_moves() {
    if skip() {
        return;
    }
    const BYTES: usize = 8 << 20;
    let page: Vec<u8> = (0..BYTES).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let scene = Scene::set("shut");
    let mptcp = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    let at = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port).into();
    let listener = scene.vm.enter(mptcp).unwrap();
    listener.bind(&at("0.0.0.0", 5001)).unwrap();
    listener.listen(8).unwrap();
    let client = scene.client.enter(mptcp).unwrap();
    client.connect(&at(A.address, 5001)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let sent = page.clone();
    let writer = std::thread::spawn(move || server.write_all(&sent).unwrap());

    let subflows = || run(scene.vm.command("ss").args(["-Htin", "src", A.address])).unwrap();
    let mut before = String::new();
    wait_for("a closed window", LIMIT, || {
        std::thread::sleep(Duration::from_millis(500));
        let text = subflows();
        let now = text.split_whitespace().find(|word| word.starts_with("bytes_sent:")).unwrap_or_default().to_owned();
        let closed = !now.is_empty() && now == before;
        before = now;
        closed.then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", subflows()));
    let prepared = scene.prepare(A, B);
    assert_eq!((&prepared["joined"], &prepared["waiting"]), (&1.into(), &0.into()), "{}", scene.log());
    scene.settle();
    assert_eq!(scene.client_subflows(A.address), 0, "the old address is left");
    assert!(!writer.is_finished(), "the window was never closed");
    let mut read = vec![0; BYTES];
    (&client).read_exact(&mut read).unwrap();
    assert!(read == page, "bytes are wrong");
    writer.join().unwrap();
}

/// What an operator waits for, of so many connections and one whose client takes no addresses: the command that foresees
/// what becomes of each, beside `ss` that only lists them; and the end of a move once that one connection is closed.
fn waits(connections: u16) {
    if skip() {
        return;
    }
    let mut scene = Scene::set("waits");
    scene.client.ip("mptcp limits set subflows 8 add_addr_accepted 0").unwrap();
    let mut straggler = scene.traffic(5001, 1, 0, Duration::from_millis(20));
    scene.client.ip("mptcp limits set subflows 8 add_addr_accepted 8").unwrap();
    let mut idle = scene.traffic(6001, connections, 0, Duration::from_secs(3_600));
    straggler.start().unwrap();
    idle.start().unwrap();

    let all = u64::from(connections) + 1;
    let forecast = scene.ask("forecast");
    let sums = forecast["sums"].as_object().unwrap();
    assert_eq!(sums.values().map(|number| number.as_u64().unwrap()).sum::<u64>(), all, "{sums:?}");
    let quiet = |command: &mut std::process::Command| drop(run(command).unwrap());
    let foreseen = median(|| {
        let mut forecast = scene.vm.command(scene.program.to_str().unwrap());
        quiet(forecast.arg("--directory").arg(&scene.directory).arg("forecast"));
    });
    let listed = median(|| quiet(scene.vm.command("ss").arg("-tiM")));

    scene.prepare_with(A, B, connections.into(), 1);
    scene.ask("switch --settle");
    wait_for("all but one to have moved", LIMIT, || {
        let status = scene.ask("status");
        (status["moved"] == connections && status["waiting"] == 1).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", scene.ask("status"), scene.log()));
    // Whoever is waited for so long only is no straggler: what the others had on the old path has landed.
    std::thread::sleep(Duration::from_secs(1));
    whole(&straggler.stop().unwrap(), 1);
    let closed = Instant::now();
    wait_for("the agent to settle", LIMIT, || (scene.ask("status")["state"] == "idle").then_some(())).unwrap();
    let settled = closed.elapsed();
    println!(
        "{connections} connections and a straggler: \"lsm-guest forecast\" {:.0} ms, \"ss -tiM\" {:.0} ms, {:.2} times as long; \
         settled {:.0} ms after the straggler had closed",
        foreseen.as_secs_f64() * 1e3,
        listed.as_secs_f64() * 1e3,
        foreseen.as_secs_f64() / listed.as_secs_f64(),
        settled.as_secs_f64() * 1e3,
    );
    whole(&idle.stop().unwrap(), usize::from(connections));
}

#[test]
fn a_straggler_beside_a_hundred_connections() {
    waits(100);
}

#[test]
fn a_straggler_beside_ten_thousand_connections() {
    waits(10_000);
}
