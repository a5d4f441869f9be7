//! Many moves, and many connections: the agent between two namespaces of this machine's kernel, no VM. What moves is
//! all that the agent sees of a migration: from one vNIC to the other, and back.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lsm_tests::{
    crossing::{A, B, Crossing, LIMIT},
    needs,
    shell::{run, wait_for},
    traffic::Log,
};
use socket2::{Domain, Protocol, Socket, Type};

fn skip() -> bool {
    needs::lacking(needs::missing_mptcp())
}

/// The reports of all moves so far say of so many connections that they moved, and of none anything else.
fn reported(crossing: &Crossing, moves: usize, moved: usize) {
    let reports = crossing.ask("history").unwrap();
    let reports = reports.as_array().unwrap();
    assert_eq!(reports.len(), moves);
    for report in reports {
        let sums = &report["sums"];
        let others: u64 = sums.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!((&sums["moved"], others), (&moved.into(), moved as u64), "{sums}");
        assert_eq!(report["outcome"], "settled");
    }
}

/// How many subflows the client has to this address of the VM's.
fn client_subflows(crossing: &Crossing, address: &str) -> usize {
    let mut ss = crossing.client.command("ss");
    run(ss.args(["-Htn", "state", "established", "dst", address])).unwrap().lines().count()
}

/// How many announced addresses each of the client's connections counts as taken, and how many connections do.
fn accepted(crossing: &Crossing) -> Vec<(u32, usize)> {
    let text = run(crossing.client.command("ss").args(["-HMniO"])).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for line in text.lines() {
        let word = line.split(' ').find_map(|word| word.strip_prefix("add_addr_accepted:"));
        *counts.entry(word.map_or(0, |number| number.parse().unwrap())).or_default() += 1;
    }
    counts.into_iter().collect()
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
    let mut crossing = Crossing::set(name).unwrap();
    let mut traffic = crossing.traffic(at, 5001, by_clients, by_vm, Duration::from_millis(5)).unwrap();
    traffic.start().unwrap();
    let connections = usize::from(by_clients + by_vm);
    let mut moved_at = now();
    let (mut old, mut new) = (A, B);
    let mut log = Log::default();
    for count in 1..=moves {
        let prepared = crossing.prepare(old, new).unwrap();
        println!("move {count}: {} joined beforehand, {} did not", prepared["joined"], prepared["waiting"]);
        assert_eq!(prepared["joined"], connections, "move {count}: {prepared}\n{}", crossing.log());
        crossing.settle().unwrap();
        let failures = traffic.failures();
        assert!(failures.is_empty(), "move {count}: {failures:?}\n{}", crossing.log());
        assert_eq!(client_subflows(&crossing, old.address), 0, "move {count}: the old address is left");
        let part = traffic.take_log().unwrap();
        let silent: Vec<_> = part.connections.iter().filter(|c| c.arrivals.is_empty()).map(|c| c.id).collect();
        assert!(silent.is_empty(), "move {count}: connections {silent:?} are silent");
        log.extend(part);
        // A peer takes eight addresses at most: one that it goes on counting after it was withdrawn is missing later.
        let accepted = accepted(&crossing);
        assert!(by_vm > 0 || accepted.iter().all(|(count, _)| *count <= 1), "move {count}: {accepted:?}");
        moved_at = now();
        (old, new) = (new, old);
    }
    wait_for("data both ways on every connection", LIMIT, || {
        log.extend(traffic.take_log().unwrap());
        log.connections.iter().all(|connection| connection.moved_data_after(moved_at)).then_some(())
    })
    .unwrap();
    reported(&crossing, moves, connections);
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
    let mut crossing = Crossing::set("many").unwrap();
    let mut busy = crossing.traffic(&[], 5001, active, 0, Duration::from_millis(20)).unwrap();
    let mut idle = crossing.traffic(&[], 6001, connections - active, 0, Duration::from_secs(3_600)).unwrap();
    idle.start().unwrap();
    busy.start().unwrap();
    let all = usize::from(connections);
    let mut log = Log::default();
    for (count, (old, new)) in [(A, B), (B, A)].into_iter().enumerate() {
        let before = crossing.spent().unwrap();
        let begun = Instant::now();
        crossing.prepare_with(old, new, all, 0).unwrap();
        let joined = begun.elapsed();
        crossing.settle().unwrap();
        let settled = begun.elapsed() - joined;
        let (cpu, peak) = crossing.spent().unwrap();
        println!(
            "{connections} connections, {active} active, move {}: prepared in {joined:?}, switched and settled in {settled:?}; \
             the agent took {:?} of CPU time so far here, at most {peak} KiB",
            count + 1,
            cpu - before.0
        );
        assert!(busy.failures().is_empty() && idle.failures().is_empty(), "{}", crossing.log());
    }
    reported(&crossing, 2, all);
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
    let mut crossing = Crossing::set("strict").unwrap();
    let mut traffic = crossing.traffic(&[], 5001, 3, 2, Duration::from_millis(5)).unwrap();
    traffic.start().unwrap();
    let mut log = Log::default();
    let names = ["all", A.vnic, B.vnic].map(|card| format!("net/ipv4/conf/{card}/rp_filter"));
    crossing.vm.sysctl(&names.each_ref().map(|name| (name.as_str(), "1"))).unwrap();
    let filters = || -> Vec<String> {
        let files = names.iter().map(|name| format!("/proc/sys/{name}"));
        run(crossing.vm.command("cat").args(files)).unwrap().lines().map(str::to_owned).collect()
    };
    for (old, new) in [(A, B), (B, A)] {
        crossing.prepare_with(old, new, 5, 0).unwrap();
        assert_eq!(filters(), ["1", "2", "2"]);
        crossing.settle().unwrap();
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
    let crossing = Crossing::set("shut").unwrap();
    let mptcp = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    let at = |address: &str, port| SocketAddr::new(address.parse().unwrap(), port).into();
    let listener = crossing.vm.enter(mptcp).unwrap();
    listener.bind(&at("0.0.0.0", 5001)).unwrap();
    listener.listen(8).unwrap();
    let client = crossing.client.enter(mptcp).unwrap();
    client.connect(&at(A.address, 5001)).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let sent = page.clone();
    let writer = std::thread::spawn(move || server.write_all(&sent).unwrap());

    let subflows = || run(crossing.vm.command("ss").args(["-Htin", "src", A.address])).unwrap();
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
    let prepared = crossing.prepare(A, B).unwrap();
    assert_eq!((&prepared["joined"], &prepared["waiting"]), (&1.into(), &0.into()), "{}", crossing.log());
    crossing.settle().unwrap();
    assert_eq!(client_subflows(&crossing, A.address), 0, "the old address is left");
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
    let mut crossing = Crossing::set("waits").unwrap();
    crossing.client.ip("mptcp limits set subflows 8 add_addr_accepted 0").unwrap();
    let mut straggler = crossing.traffic(&[], 5001, 1, 0, Duration::from_millis(20)).unwrap();
    crossing.client.ip("mptcp limits set subflows 8 add_addr_accepted 8").unwrap();
    let mut idle = crossing.traffic(&[], 6001, connections, 0, Duration::from_secs(3_600)).unwrap();
    straggler.start().unwrap();
    idle.start().unwrap();

    let all = u64::from(connections) + 1;
    let forecast = crossing.ask("forecast").unwrap();
    let sums = forecast["sums"].as_object().unwrap();
    assert_eq!(sums.values().map(|number| number.as_u64().unwrap()).sum::<u64>(), all, "{sums:?}");
    let quiet = |command: &mut std::process::Command| drop(run(command).unwrap());
    let foreseen = median(|| {
        quiet(&mut crossing.command("forecast"));
    });
    let listed = median(|| quiet(crossing.vm.command("ss").arg("-tiM")));

    crossing.prepare_with(A, B, connections.into(), 1).unwrap();
    crossing.ask("switch --settle").unwrap();
    wait_for("all but one to have moved", LIMIT, || {
        let status = crossing.ask("status").unwrap();
        (status["moved"] == connections && status["waiting"] == 1).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}\n{}", crossing.ask("status").unwrap(), crossing.log()));
    // Whoever is waited for so long only is no straggler: what the others had on the old path has landed.
    std::thread::sleep(Duration::from_secs(1));
    whole(&straggler.stop().unwrap(), 1);
    let closed = Instant::now();
    wait_for("the agent to settle", LIMIT, || (crossing.ask("status").unwrap()["state"] == "idle").then_some(()))
        .unwrap();
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
