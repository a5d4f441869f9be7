//! What a forecast of many connections costs, beside `ss -tiM` at the same moment. In a network namespace of its own, as
//! root: `cargo run --profile lab -p lsm-guest --example forecast-cost -- 10000`.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends")]

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    time::Instant,
};

use lsm_guest::{foresight, kernel::Kernel, record::Record};
use nix::{
    sched::{CloneFlags, unshare},
    sys::resource::{Resource, getrlimit, setrlimit},
};
use socket2::{Domain, Protocol, Socket, Type};

const TIMES: usize = 15;

fn main() {
    let connections: usize = std::env::args().nth(1).map_or(10_000, |number| number.parse().unwrap());
    unshare(CloneFlags::CLONE_NEWNET).expect("root");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    assert!(most > connections as u64 + 100, "{most} descriptors are too few: see \"ulimit -Hn\"");
    let socket = || Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    let at: SocketAddr = "127.0.0.2:7000".parse().unwrap();
    let listener = socket();
    listener.bind(&at.into()).unwrap();
    listener.listen(128).unwrap();
    // Both ends are here: half of them is enough.
    let _ends: Vec<_> = (0..connections / 2)
        .map(|_| {
            let ours = socket();
            ours.connect(&at.into()).unwrap();
            (ours, listener.accept().unwrap().0)
        })
        .collect();

    let directory = std::env::temp_dir().join(format!("lsm-forecast-cost-{}", std::process::id()));
    let record = Record::open(&directory).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        let mut kernel = Kernel::open().unwrap();
        for _ in 0..TIMES {
            let start = Instant::now();
            let forecast = foresight::look(&mut kernel, &record, 0).await.unwrap();
            ours.push(start.elapsed());
            assert_eq!(forecast.sums.all(), connections as u64);
            let start = Instant::now();
            assert!(Command::new("ss").arg("-tiM").stdout(Stdio::null()).status().unwrap().success());
            theirs.push(start.elapsed());
        }
    });
    let _ = std::fs::remove_dir_all(directory);
    for times in [&mut ours, &mut theirs] {
        times.sort();
    }
    let (ours, theirs) = (ours[TIMES / 2].as_secs_f64() * 1_000.0, theirs[TIMES / 2].as_secs_f64() * 1_000.0);
    println!("forecast of {connections} connections  {ours:.1} ms (median of {TIMES})");
    println!("ss -tiM                         {theirs:.1} ms; the forecast takes {:.2} times as long", ours / theirs);
}
