//! `tests/demo`: the whole product at work on real parts.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use lsm_tests::{
    demo::{self, DemoOptions, Live},
    report::{Demo, html, table},
    shell::chain,
    stage::StageOptions,
    topology::{SiteLinks, TopologyOptions},
};

/// Moves a live VM between two sites, with its connections, and shows what happens.
#[derive(Parser)]
#[command(name = "tests/demo", bin_name = "tests/demo")]
struct Arguments {
    /// When the clients join the new path.
    #[arg(long, value_enum, default_value_t = Mode::PreJoin)]
    mode: Mode,
    /// When the traffic takes the new path.
    #[arg(long, value_enum, default_value_t = Switch::Auto)]
    switch: Switch,
    /// How often the VM moves; there and back in turn (tunnel-only: there, each time).
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// Series of the VM's kernel.
    #[arg(long, default_value = "6.12", value_parser = ["6.12", "6.1"])]
    kernel: String,
    /// Round trip between client and montreal, in milliseconds.
    #[arg(long, default_value_t = 70.0)]
    rtt_far: f64,
    /// Round trip between client and dallas, in milliseconds.
    #[arg(long, default_value_t = 2.0)]
    rtt_near: f64,
    /// Round trip between the sites, in milliseconds.
    #[arg(long, default_value_t = 70.0)]
    rtt_wan: f64,
    /// Rate of every link, in Mbit/s.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// MPTCP connections; two of them are opened by the VM.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(3..=64))]
    connections: u16,
    /// Time between records, per connection and direction, in milliseconds.
    #[arg(long, default_value_t = 20)]
    period: u64,
    /// Virtual CPUs of the VM.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Write the figures there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the page with pictures there.
    #[arg(long)]
    report: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    PreJoin,
    PostJoin,
    TunnelOnly,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    Auto,
    Early,
    Arrival,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let milliseconds = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1_000.0);
    let site = |name: &str, client: f64, wan: f64| SiteLinks {
        name: name.into(),
        client_rtt: milliseconds(client),
        wan_rtt: milliseconds(wan),
    };
    let topology = TopologyOptions {
        sites: vec![site("montreal", arguments.rtt_far, arguments.rtt_wan), site("dallas", arguments.rtt_near, 0.0)],
        client_rate_mbit: arguments.rate,
        wan_rate_mbit: arguments.rate,
        ..TopologyOptions::default()
    };
    let options = DemoOptions {
        mode: match arguments.mode {
            Mode::PreJoin => demo::Mode::PreJoin,
            Mode::PostJoin => demo::Mode::PostJoin,
            Mode::TunnelOnly => demo::Mode::TunnelOnly,
        },
        switch: match arguments.switch {
            Switch::Auto => "auto",
            Switch::Early => "early",
            Switch::Arrival => "arrival",
        }
        .into(),
        moves: arguments.moves as usize,
        connections: arguments.connections,
        period: Duration::from_millis(arguments.period.max(1)),
        stage: StageOptions {
            kernel: arguments.kernel.clone(),
            vcpus: arguments.vcpus,
            topology,
            ..StageOptions::default()
        },
    };
    let outcome = match demo::run(&options, &Live::new(false)) {
        Ok(outcome) => outcome,
        Err(error) => {
            eprintln!("tests/demo: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    // Each way has its own distances: its own table.
    for way in ["dallas", "montreal"] {
        let moves: Vec<_> = outcome.demo.moves.iter().filter(|one| one.to == way).cloned().collect();
        if !moves.is_empty() {
            println!("\nto {way}:\n{}", table(&Demo { mode: outcome.demo.mode.clone(), moves }));
        }
    }
    let json = serde_json::to_string_pretty(&outcome.demo).unwrap_or_default();
    let page = || html(&outcome.demo, &outcome.curves, options.mode.direct());
    let files =
        [(&arguments.json, json), (&arguments.report, if arguments.report.is_some() { page() } else { String::new() })];
    for (path, text) in files {
        if let Some(path) = path {
            match fs::write(path, text) {
                Ok(()) => println!("wrote {}", path.display()),
                Err(error) => {
                    eprintln!("tests/demo: cannot write {}: {error}", path.display());
                    return ExitCode::FAILURE;
                }
            }
        }
    }
    if outcome.faults.is_empty() {
        println!("every connection is alive, every byte right, nothing left behind");
        ExitCode::SUCCESS
    } else {
        outcome.faults.iter().for_each(|fault| eprintln!("tests/demo: {fault}"));
        ExitCode::FAILURE
    }
}
