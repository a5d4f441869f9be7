//! `tests/faults`: a VM with live connections moves there and back, and in each move something else goes wrong.

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use lsm_tests::{
    faults::{CATALOGUE, Fault, Outcome, Scene, Step, chosen, strike, table},
    shell::{Result, chain},
};

/// Moves a live VM between two sites with one fault in each move, and says what came of it.
#[derive(Parser)]
#[command(name = "tests/faults", bin_name = "tests/faults")]
struct Arguments {
    /// How many moves, each with a fault drawn at random.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Of the drawing: the same seed gives the same faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this fault, at any of its steps, or NAME@STEP. May be given more than once.
    #[arg(long, value_name = "NAME[@STEP]")]
    only: Vec<String>,
    /// Instead of drawing, each of them once at each of its steps.
    #[arg(long)]
    each: bool,
    /// Say which there are, and do nothing.
    #[arg(long)]
    list: bool,
    /// Begin no move after so many seconds.
    #[arg(long, value_name = "SECONDS")]
    within: Option<u64>,
    /// Say what is done, and when.
    #[arg(long)]
    verbose: bool,
    /// Write every move's outcome there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the logs of each move that went wrong into this directory.
    #[arg(long)]
    logs: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for fault in CATALOGUE {
            let steps: Vec<_> = fault.at.iter().map(|step| step.name()).collect();
            println!("{:14} {:40} {}", fault.row, fault.name, steps.join(", "));
        }
        return ExitCode::SUCCESS;
    }
    let choice = chosen(&arguments.only);
    if choice.is_empty() {
        eprintln!("tests/faults: there is no fault {}; see --list", arguments.only.join(", "));
        return ExitCode::FAILURE;
    }
    let plan = if arguments.each { choice } else { drawn(&choice, arguments.runs, arguments.seed) };
    let mut outcomes = Vec::new();
    let played = play(&plan, &arguments, &mut outcomes);
    println!("\n{}", table(&outcomes));
    if let Some(path) = &arguments.json
        && let Err(error) = fs::write(path, serde_json::to_string_pretty(&outcomes).unwrap_or_default())
    {
        eprintln!("tests/faults: cannot write {}: {error}", path.display());
        return ExitCode::FAILURE;
    }
    if let Err(error) = played {
        eprintln!("tests/faults: {}", chain(&error));
        return ExitCode::FAILURE;
    }
    if outcomes.iter().all(Outcome::is_good) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play(plan: &[(&'static Fault, Step)], arguments: &Arguments, outcomes: &mut Vec<Outcome>) -> Result<()> {
    let (begun, mut scene) = (Instant::now(), None);
    for (number, (fault, step)) in (1..).zip(plan) {
        if arguments.within.is_some_and(|seconds| begun.elapsed().as_secs() >= seconds) {
            println!("the time is over: {} of {} moves were made", outcomes.len(), plan.len());
            break;
        }
        let here = match &mut scene {
            Some(here) => here,
            none => none.insert(Scene::set(arguments.verbose)?),
        };
        let outcome = strike(here, fault, *step);
        println!("{}", said(number, &outcome));
        let good = outcome.is_good();
        if let Some(directory) = arguments.logs.as_ref().filter(|_| !good) {
            let file = directory.join(format!("{number}-{}-{}.log", fault.name, step.name()));
            if let Err(error) = fs::create_dir_all(directory).and_then(|()| fs::write(&file, here.logs())) {
                eprintln!("tests/faults: cannot write {}: {error}", file.display());
            }
        }
        outcomes.push(outcome);
        if fault.spoils || !good {
            scene = None; // what is wrong here would be blamed on the next one
        }
    }
    match scene {
        // Every byte of every connection, over all these moves.
        Some(scene) => scene.connections.end(),
        None => Ok(()),
    }
}

/// xorshift64*: the same faults for the same seed, on every machine.
fn drawn(choice: &[(&'static Fault, Step)], runs: usize, seed: u64) -> Vec<(&'static Fault, Step)> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |below: usize| {
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        (random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % below
    };
    // A fault first, then its step: those that may strike at many steps are not struck more often.
    let mut names: Vec<&str> = choice.iter().map(|(fault, _)| fault.name).collect();
    names.dedup();
    let mut one = || {
        let name = names[draw(names.len())];
        let steps: Vec<_> = choice.iter().filter(|(fault, _)| fault.name == name).collect();
        *steps[draw(steps.len())]
    };
    (0..runs).map(|_| one()).collect()
}

fn said(number: usize, outcome: &Outcome) -> String {
    let Outcome { fault, at, to, ended, connections, lost, seconds, .. } = outcome;
    let mut text = format!(
        "{number:3} {fault} at {at}, to {to}: {ended}, {} of {connections} connections alive ({seconds:.1} s)",
        connections - lost
    );
    if let Some(silent) = outcome.silent_ms {
        text.push_str(&format!(", answering {silent} ms after the VM ran on"));
    }
    for line in outcome.violation.iter().chain(&outcome.residue) {
        text.push_str(&format!("\n    WRONG: {line}"));
    }
    text
}
