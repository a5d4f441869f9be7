//! `tests/demo`: the whole product at work on real parts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use lsm_tests::{
    cores::Cores,
    demo::{self, DemoOptions, Live, Outcome},
    report::{Demo, comparison, html, table},
    shell::chain,
    stage::StageOptions,
    topology::{SiteLinks, TopologyOptions},
};

/// Moves a live VM between two sites, with its connections, and shows what happens.
#[derive(Parser)]
#[command(name = "tests/demo", bin_name = "tests/demo")]
struct Arguments {
    /// When the clients join the new path; `all` runs pre-join with either switch, post-join and tunnel-only, one after
    /// the other, and compares them.
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
    /// Receive buffer that each subflow of the client begins with, in bytes, instead of the kernel's 131072.
    #[arg(long)]
    client_buffer: Option<u32>,
    /// Virtual CPUs of the VM.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// What client, VM and LANs speak: IPv4, IPv6 or both, on half of the connections each.
    #[arg(long, default_value = "4", value_parser = ["4", "6", "dual"])]
    family: String,
    /// What the hosts and the tunnels between them speak; with 6 the WAN has an MTU of 1570.
    #[arg(long, default_value = "4", value_parser = ["4", "6"])]
    underlay: String,
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
    All,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    Auto,
    Early,
    Arrival,
}

impl Switch {
    fn name(self) -> &'static str {
        match self {
            Switch::Auto => "auto",
            Switch::Early => "early",
            Switch::Arrival => "arrival",
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let milliseconds = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1_000.0);
    let site = |name: &str, client: f64, wan: f64| SiteLinks {
        name: name.into(),
        client_rtt: milliseconds(client),
        wan_rtt: milliseconds(wan),
    };
    let wan_v6 = arguments.underlay == "6";
    let topology = TopologyOptions {
        sites: vec![site("montreal", arguments.rtt_far, arguments.rtt_wan), site("dallas", arguments.rtt_near, 0.0)],
        client_rate_mbit: arguments.rate,
        wan_rate_mbit: arguments.rate,
        family: arguments.family.parse().unwrap_or_default(),
        wan_v6,
        wan_mtu: if wan_v6 { 1570 } else { 1500 },
        ..TopologyOptions::default()
    };
    let cores = Cores::divide(arguments.vcpus);
    cores.iter().for_each(Cores::leave_to_vm);
    let (kernel, vcpus) = (arguments.kernel.clone(), arguments.vcpus);
    let stage = StageOptions { kernel, vcpus, cores, topology, ..StageOptions::default() };
    let runs: Vec<(demo::Mode, &str)> = match arguments.mode {
        Mode::PreJoin => vec![(demo::Mode::PreJoin, arguments.switch.name())],
        Mode::PostJoin => vec![(demo::Mode::PostJoin, arguments.switch.name())],
        Mode::TunnelOnly => vec![(demo::Mode::TunnelOnly, arguments.switch.name())],
        Mode::All => vec![
            (demo::Mode::PreJoin, "early"),
            (demo::Mode::PreJoin, "arrival"),
            (demo::Mode::PostJoin, "arrival"),
            (demo::Mode::TunnelOnly, "arrival"),
        ],
    };
    let several = runs.len() > 1;
    let moves = arguments.moves as usize;
    let (mut outcomes, mut good) = (Vec::new(), true);
    for (mode, switch) in runs {
        let options = DemoOptions {
            mode,
            switch: switch.into(),
            // There only, each time: as many as the others go there.
            moves: if several && mode == demo::Mode::TunnelOnly { moves.div_ceil(2) } else { moves },
            connections: arguments.connections,
            period: Duration::from_millis(arguments.period.max(1)),
            client_buffer: arguments.client_buffer,
            stage: stage.clone(),
        };
        let name = if mode == demo::Mode::PreJoin { format!("pre-join, {switch}") } else { mode.name().to_owned() };
        let live = Live::new(false);
        if several {
            live.say(&name);
        }
        match demo::run(&options, &live) {
            Ok(outcome) => {
                good &= told(&outcome);
                let page = || html(&outcome.demo, &outcome.curves, mode.direct());
                let report = arguments.report.as_ref().map(|path| page_of(path, several.then_some(name.as_str())));
                good &= report.is_none_or(|path| written(&path, &page()));
                outcomes.push((name, outcome.demo));
            }
            Err(error) => {
                eprintln!("tests/demo: {}", chain(&error));
                return ExitCode::FAILURE;
            }
        }
    }
    if several {
        for way in ["dallas", "montreal"] {
            let ways: Vec<_> = outcomes.iter().map(|(name, demo)| (name.clone(), towards(demo, way))).collect();
            let made: Vec<_> = ways.into_iter().filter(|(_, demo)| !demo.moves.is_empty()).collect();
            if !made.is_empty() {
                println!("\n{}", comparison(&format!("to {way}"), &made));
            }
        }
    }
    if let Some(path) = &arguments.json {
        let demos: Vec<&Demo> = outcomes.iter().map(|(_, demo)| demo).collect();
        let json = if several { serde_json::to_string_pretty(&demos) } else { serde_json::to_string_pretty(demos[0]) };
        good &= written(path, &json.unwrap_or_default());
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Prints what came of a run, and whether all was well.
fn told(outcome: &Outcome) -> bool {
    // Each way has its own distances: its own table.
    for way in ["dallas", "montreal"] {
        let demo = towards(&outcome.demo, way);
        if !demo.moves.is_empty() {
            println!("\nto {way}:\n{}", table(&demo));
        }
    }
    outcome.faults.iter().for_each(|fault| eprintln!("tests/demo: {fault}"));
    if outcome.faults.is_empty() {
        println!("every connection is alive, every byte right, nothing left behind");
    }
    outcome.faults.is_empty()
}

fn towards(demo: &Demo, way: &str) -> Demo {
    Demo { mode: demo.mode.clone(), moves: demo.moves.iter().filter(|one| one.to == way).cloned().collect() }
}

/// Of several runs each has a page of its own: `demo.html` becomes `demo-post-join.html`.
fn page_of(path: &Path, run: Option<&str>) -> PathBuf {
    let Some(run) = run else { return path.to_owned() };
    let part = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    path.with_file_name(format!("{}-{}.{}", part(path.file_stem()), run.replace(", ", "-"), part(path.extension())))
}

fn written(path: &Path, text: &str) -> bool {
    match fs::write(path, text) {
        Ok(()) => println!("wrote {}", path.display()),
        Err(error) => {
            eprintln!("tests/demo: cannot write {}: {error}", path.display());
            return false;
        }
    }
    true
}
