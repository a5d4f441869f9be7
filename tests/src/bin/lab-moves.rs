//! Moves a VM there and back again and again, with connections on it, as quickly as it settles: for what happens once in
//! many moves. Where the VM answers nobody any more, it tells where its processors are and what it said last.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use lsm_tests::{
    connections::Connections,
    shell::{LabError, Result, chain},
    stage::{Stage, StageOptions},
    topology::{SiteLinks, TopologyOptions},
};

/// A move has settled within this, or something is wrong.
const SETTLE: Duration = Duration::from_secs(60);
/// What the guest's kernel says of its time since it was asked last.
const CLOCKS: &str = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; dmesg -c | grep -iE 'clock|tsc|rcu|hrtimer|throttl|BUG'";

/// Moves a VM there and back again and again, with connections on it, as quickly as it settles.
#[derive(Parser)]
struct Arguments {
    /// How often.
    #[arg(long, default_value_t = 20)]
    moves: usize,
    /// Series of the VM's kernel: 6.12 or 6.1.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// When the traffic takes the new path: auto, early or arrival.
    #[arg(long, default_value = "early")]
    switch: String,
}

fn main() -> ExitCode {
    match go(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-moves: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn go(arguments: &Arguments) -> Result<()> {
    let site = |name: &str| SiteLinks {
        name: name.into(),
        client_rtt: Duration::from_millis(4),
        wan_rtt: Duration::from_millis(4),
    };
    let topology = TopologyOptions {
        sites: vec![site("montreal"), site("dallas")],
        client_rate_mbit: 800,
        wan_rate_mbit: 800,
        ..TopologyOptions::default()
    };
    let policy = format!("switch = \"{}\"\n", arguments.switch);
    let options = StageOptions { kernel: arguments.kernel.clone(), policy, topology, ..StageOptions::default() };
    let stage = Stage::set(&options, |what| println!("{what}"))?;
    let mut connections = Connections::open(&stage, 0)?;
    for number in 1..=arguments.moves {
        let begun = Instant::now();
        let to = stage.sites[number % 2].name();
        let done = stage.migrate(to).and_then(|()| stage.settled(SETTLE)).and_then(|()| connections.alive());
        if let Err(error) = done {
            println!("the VM's processors, 50 ms apart:\n{}", stage.guest.processors());
            println!("its console:\n{}", stage.guest.console());
            for site in &stage.sites {
                println!("[{}]\n{}", site.name(), last(&stage.log(site.name()), 40));
            }
            println!("its agent:\n{}", stage.guest.agent());
            return Err(LabError::Other(format!("move {number}, to {to}: {}", chain(&error))));
        }
        let clocks = stage.guest.exec(CLOCKS).map(|outcome| outcome.stdout.trim().replace('\n', "; "));
        println!("move {number:3} to {to:9} {:5.1} s  {}", begun.elapsed().as_secs_f64(), clocks.unwrap_or_default());
    }
    connections.end()
}

fn last(log: &str, lines: usize) -> String {
    let all: Vec<&str> = log.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
