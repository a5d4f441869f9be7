//! The traffic, the capture and the measurements on a real kernel: a client and a "VM" with two addresses, a cable
//! between them.
#![allow(clippy::unwrap_used)] // clippy takes only the test functions themselves for tests

use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lsm_tests::capture::{Capture, Frame, Scope};
use lsm_tests::measure::{self, Window};
use lsm_tests::needs;
use lsm_tests::netns::Netns;
use lsm_tests::traffic::{ClientOptions, ClientProcess, Log, Origin, Subflow, subflows, token_of};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lsm-traffic");
const CLIENT: &str = "10.77.1.1";
const OLD: &str = "10.77.1.2";
const NEW: &str = "10.77.1.3";

fn skip() -> bool {
    needs::lacking(needs::missing_mptcp())
}

/// Ends the programs it holds.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// Dropped in this order: programs before namespaces.
struct Pair {
    running: Running,
    client: Netns,
    vm: Netns,
}

impl Pair {
    fn new(name: &str, fault: Option<&str>) -> Self {
        let unique = format!("traffic{}-{name}", std::process::id());
        let client = Netns::new(&format!("{unique}-c")).unwrap();
        let vm = Netns::new(&format!("{unique}-v")).unwrap();
        client.ip(&format!("link add c0 type veth peer name v0 netns {}", vm.name())).unwrap();
        client.ip(&format!("address add {CLIENT}/24 dev c0\nlink set c0 up")).unwrap();
        vm.ip(&format!("address add {OLD}/24 dev v0\naddress add {NEW}/24 dev v0\nlink set v0 up")).unwrap();
        for ns in [&client, &vm] {
            ns.ip("mptcp limits set subflows 8 add_addr_accepted 8").unwrap();
        }
        let mut serve = vm.command(PROGRAM);
        serve.args(["serve", "--tcp", "5001", "--udp", "5002"]);
        if let Some(fault) = fault {
            serve.args(["--fault", fault]);
        }
        let server = serve.spawn().unwrap();
        let pair = Self { running: Running(vec![server]), client, vm };
        until("the server listens", || {
            let listening = pair.vm.command("ss").args(["-Hltn", "sport = :5001"]).output().unwrap();
            (!listening.stdout.is_empty()).then_some(())
        });
        pair
    }

    fn traffic(&mut self, options: &ClientOptions) -> ClientProcess {
        let mut client = ClientProcess::spawn(self.client.command(PROGRAM), options).unwrap();
        if options.accept > 0 {
            let mut open = self.vm.command(PROGRAM);
            open.args(["open", "--to", &format!("{CLIENT}:{}", options.listen)]);
            open.args(["--count", &options.accept.to_string()]);
            self.running.0.push(open.spawn().unwrap());
        }
        client.ready(Duration::from_secs(10)).unwrap().iter().for_each(|connection| println!("{connection:?}"));
        client
    }

    fn subflows(&self) -> Vec<Subflow> {
        subflows(self.client.command("ss")).unwrap()
    }

    fn endpoint(&self, what: &str) {
        self.vm.ip(&format!("mptcp endpoint {what}")).unwrap();
    }
}

fn until<T>(awaited: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain until {awaited}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// Collects the log until `enough` of it.
fn log_until(client: &mut ClientProcess, log: &mut Log, awaited: &str, mut enough: impl FnMut(&Log) -> bool) {
    until(awaited, || {
        log.extend(client.take_log().unwrap());
        enough(log).then_some(())
    });
}

fn few(to: &str) -> ClientOptions {
    ClientOptions { connections: 3, accept: 2, plain: 1, ..ClientOptions::new(to.parse().unwrap()) }
}

#[test]
fn traffic_moves_to_another_address_and_every_byte_arrives() {
    if skip() {
        return;
    }
    let mut pair = Pair::new("move", None);
    let capture =
        Capture::start(Scope { namespace: Some(pair.client.path()), interface: Some("c0".into()), ..Scope::default() })
            .unwrap();
    let mut client = ClientProcess::spawn(Command::new("false"), &few(OLD)).map_or_else(
        |error| {
            assert!(error.to_string().contains("gone"), "{error}");
            pair.traffic(&few(OLD))
        },
        |_| panic!("a program that ends at once was taken for a client"),
    );
    client.start().unwrap();
    let mut log = Log::default();
    log_until(&mut client, &mut log, "all connections carry data", |log| {
        log.connections.iter().all(|connection| connection.moved_data_after(log.from))
    });
    let connections: Vec<_> = log
        .connections
        .iter()
        .map(|log| lsm_tests::traffic::Connection {
            id: log.id,
            origin: log.origin,
            local: log.local,
            remote: log.remote,
        })
        .collect();
    let listed = pair.subflows();
    let tokens: Vec<u32> = connections
        .iter()
        .filter(|connection| connection.origin != Origin::Plain)
        .map(|connection| token_of(connection, &listed).unwrap())
        .collect();
    let plain = connections.iter().find(|connection| connection.origin == Origin::Plain).unwrap();
    assert_eq!(token_of(plain, &listed), None);
    assert_eq!(tokens.len(), 5);

    pair.endpoint(&format!("add {NEW} id 2 signal subflow backup"));
    let joined = until("all connections have joined", || {
        let new = pair.subflows().into_iter().filter(|subflow| subflow.remote.ip().to_string() == NEW);
        let new: Vec<Subflow> = new.collect();
        tokens.iter().all(|token| new.iter().any(|subflow| subflow.token == Some(*token))).then_some(new)
    });
    assert!(joined.iter().all(|subflow| subflow.backup), "{joined:?}");

    let resumed = now();
    pair.endpoint(&format!("change {NEW} id 2 nobackup"));
    pair.endpoint(&format!("add {OLD} dev v0 id 1"));
    pair.endpoint("change id 1 backup");
    let switched = now() + 100_000_000;
    log_until(&mut client, &mut log, "data flowed for a while after the switch", |log| {
        log.connections.iter().all(|connection| connection.moved_data_after(switched + 200_000_000))
    });
    let all = pair.subflows();
    let bulk = client.bulk(Duration::from_millis(300)).unwrap();
    assert!(bulk.bytes > 0 && bulk.until >= bulk.from, "{bulk:?}");
    let measured_until = log.until;
    log.extend(client.stop().unwrap());

    for connection in &log.connections {
        assert!(connection.survived(switched), "{connection:?}");
    }
    assert_eq!(log.bytes_wrong(), 0);
    assert_eq!(log.bulks.len(), 1);
    assert!(log.rtt.len() > 5);

    let recording = capture.stop();
    assert_eq!(recording.dropped, 0);
    let frames: Vec<&Frame> = recording.on("c0").collect();
    let new = NEW.parse().unwrap();
    let joins = measure::joins(&frames, &[new]);
    assert_eq!(joins.len(), joined.len(), "{joins:?}");
    assert!(joins.values().all(|at| *at < resumed));
    let usage = measure::usage(&frames, Window { from: switched, until: measured_until });
    for token in &tokens {
        assert_eq!(measure::on_direct(*token, &all, &usage, &[new]), Some(true), "token {token:08x}");
    }
    let early = measure::usage(&frames, Window { from: log.from, until: resumed });
    assert!(early.keys().all(|flow| flow.vm.ip() != new), "a backup carried payload: {early:?}");

    // The cable's end at the client is also the tap in front of the VM.
    let of = measure::Move {
        client: &[CLIENT.parse().unwrap()],
        new: &[new],
        resumed,
        at_client: &frames,
        source_tap: &[],
        destination_tap: &frames,
    };
    assert!(measure::to_client(&of).is_some() && measure::to_vm(&of).is_some());
    let mac = frames.iter().find(|frame| frame.outgoing && frame.destination != [0xff; 6]).unwrap().destination;
    let window = Window { from: log.from, until: log.until };
    let taps = [measure::Tap { frames: &frames, until: None }];
    assert_eq!(measure::lost_frames(&frames, &taps, mac, window).len(), 0);
    let closed = [measure::Tap { frames: &frames, until: Some(resumed) }];
    assert!(!measure::lost_frames(&frames, &closed, mac, window).is_empty());
    let answered = Window { until: log.until - 500_000_000, ..window };
    assert_eq!(measure::datagram_loss(&log.datagrams, answered).lost, 0);
}

#[test]
fn a_flipped_byte_is_noticed() {
    if skip() {
        return;
    }
    let mut pair = Pair::new("flip", Some("flip:6100"));
    let mut client = pair.traffic(&ClientOptions { accept: 0, ..few(OLD) });
    client.start().unwrap();
    let mut log = Log::default();
    log_until(&mut client, &mut log, "the byte has passed on all connections", |log| {
        log.connections.iter().all(|connection| connection.received > 6_200 || connection.failed.is_some())
    });
    log.extend(client.stop().unwrap());
    assert!(log.bytes_wrong() >= 4, "{}", log.bytes_wrong());
    assert!(log.connections.iter().all(|connection| connection.wrong > 0 && !connection.is_whole()));
}

#[test]
fn a_lost_datagram_is_noticed() {
    if skip() {
        return;
    }
    let mut pair = Pair::new("drop", Some("drop:5"));
    let mut client = pair.traffic(&ClientOptions { accept: 0, plain: 0, connections: 0, ..few(OLD) });
    client.start().unwrap();
    let mut log = Log::default();
    log_until(&mut client, &mut log, "20 datagrams were answered", |log| log.datagrams.arrivals.len() >= 20);
    let until = log.datagrams.sent.iter().find(|(_, sequence)| *sequence == 15).unwrap().0;
    let lost = measure::datagram_loss(&log.datagrams, Window { from: log.from, until });
    assert_eq!((lost.sent, lost.lost, lost.lost_to_client, lost.duplicated), (15, 1, 1, 0));
}

#[test]
fn a_killed_connection_is_noticed() {
    if skip() {
        return;
    }
    let mut pair = Pair::new("kill", None);
    let mut client = pair.traffic(&few(OLD));
    client.start().unwrap();
    let mut log = Log::default();
    log_until(&mut client, &mut log, "data flows", |log| {
        log.connections.iter().all(|connection| connection.received > 2_000)
    });
    // The first is the server: its connections die, those of the other program live.
    let mut server = pair.running.0.remove(0);
    server.kill().unwrap();
    server.wait().unwrap();
    // MPTCP may wait for new subflows where TCP fails at once, so only the plain one is sure to be quick.
    until("the client has noticed", || (!client.failures().is_empty()).then_some(()));
    let killed = now();
    log_until(&mut client, &mut log, "the others go on", |log| {
        log.connections
            .iter()
            .filter(|connection| connection.origin == Origin::Vm)
            .all(|connection| connection.moved_data_after(killed))
    });
    log.extend(client.stop().unwrap());
    for connection in &log.connections {
        assert_eq!(connection.is_whole(), connection.origin == Origin::Vm, "{connection:?}");
    }
}

#[test]
fn a_reset_in_mid_stream_is_noticed() {
    if skip() {
        return;
    }
    let mut pair = Pair::new("reset", Some("reset:5000"));
    let mut client = pair.traffic(&ClientOptions { accept: 0, ..few(OLD) });
    client.start().unwrap();
    // Each fails or falls silent: MPTCP may wait for new subflows where TCP fails at once.
    let mut log = Log::default();
    let mut known = (0, Instant::now());
    log_until(&mut client, &mut log, "nothing comes any more", |log| {
        let received = log.connections.iter().map(|connection| connection.received).sum();
        if received != known.0 || received < 4 * 3_000 {
            known = (received, Instant::now());
        }
        known.1.elapsed() > Duration::from_millis(500)
    });
    log.extend(client.stop().unwrap());
    assert!(log.connections.iter().all(|connection| connection.failed.is_some() && !connection.is_whole()));
}
