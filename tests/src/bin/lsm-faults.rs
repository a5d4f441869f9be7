//! `tests/faults`: a VM with live connections moves there and back, and in each move something else goes wrong.

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use clap::Parser;
use lsm_tests::{
    faults::{CATALOGUE, Fault, Outcome, Record, Scene, Step, chosen, strike, table},
    shell::{LabError, Result, chain},
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
    /// Add every move's outcome to this file, a line of JSON each, and print the table of all that is in it. Moves of this
    /// seed that it has already are not made again: a long run in pieces.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print the table of these records, and do nothing else.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    table: Vec<PathBuf>,
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
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("tests/faults: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Whether all that was tried is as it must be.
fn run(arguments: &Arguments) -> Result<bool> {
    if !arguments.table.is_empty() {
        let records = arguments.table.iter().map(|path| Record::read(path)).collect::<Result<Vec<_>>>()?;
        let outcomes: Vec<Outcome> = records.into_iter().flatten().map(|line| line.outcome).collect();
        println!("{}", table(&outcomes));
        return Ok(outcomes.iter().all(Outcome::is_good));
    }
    let choice = chosen(&arguments.only);
    if choice.is_empty() {
        return Err(LabError::Other(format!("there is no fault {}; see --list", arguments.only.join(", "))));
    }
    let plan = if arguments.each { choice } else { drawn(&choice, arguments.runs, arguments.seed) };
    let mut journal = Journal { seed: arguments.seed, record: None, outcomes: Vec::new() };
    if let Some(path) = &arguments.record {
        journal.record = Some(Record::open(path)?);
    }
    let played = play(&plan, arguments, &mut journal);
    println!("\n{}", table(&journal.all()));
    played.map(|()| journal.outcomes.iter().all(Outcome::is_good))
}

/// What has been tried.
struct Journal {
    seed: u64,
    record: Option<Record>,
    /// In this run.
    outcomes: Vec<Outcome>,
}

impl Journal {
    fn add(&mut self, number: usize, outcome: Outcome) -> Result<()> {
        println!("{}", said(number, &outcome));
        self.outcomes.push(outcome.clone());
        self.record.as_mut().map_or(Ok(()), |record| record.add(self.seed, number, outcome))
    }

    /// With what earlier runs have recorded.
    fn all(&self) -> Vec<Outcome> {
        match &self.record {
            Some(record) => record.lines.iter().map(|line| line.outcome.clone()).collect(),
            None => self.outcomes.clone(),
        }
    }
}

/// A stage that cannot be set so often in a row will not be.
const TRIES: usize = 3;

fn play(plan: &[(&'static Fault, Step)], arguments: &Arguments, journal: &mut Journal) -> Result<()> {
    let (begun, mut scene, mut number) = (Instant::now(), None, 1);
    number += journal.record.as_ref().map_or(0, |record| record.made(arguments.seed));
    while let Some((fault, step)) = plan.get(number - 1) {
        if arguments.within.is_some_and(|seconds| begun.elapsed().as_secs() >= seconds) {
            println!("the time is over: {} of {} moves were made", number - 1, plan.len());
            break;
        }
        let here = match &mut scene {
            Some(here) => here,
            none => none.insert(set(arguments, number, journal)?),
        };
        let outcome = strike(here, fault, *step);
        let good = outcome.is_good();
        if !good {
            keep_logs(arguments, &format!("{number}-{}-{}", fault.name, step.name()), here);
        }
        journal.add(number, outcome)?;
        number += 1;
        if good && !fault.spoils {
            continue;
        }
        scene = None; // what is wrong here would be blamed on the next one
    }
    // Every byte of every connection, over all these moves.
    if let Some(Err(error)) = scene.map(|scene| scene.connections.end()) {
        journal.add(number - 1, Outcome::of_the_stage("end", &error))?;
    }
    Ok(())
}

/// A stage on which undisturbed moves succeed.
fn set(arguments: &Arguments, number: usize, journal: &mut Journal) -> Result<Scene> {
    let mut tries = 1;
    loop {
        let mut scene = Scene::set(arguments.verbose)?;
        let Err(error) = scene.rehearse() else { return Ok(scene) };
        keep_logs(arguments, &format!("{number}-undisturbed-{tries}"), &scene);
        journal.add(number, Outcome::of_the_stage("set-up", &error))?;
        if tries == TRIES {
            return Err(LabError::Other("no undisturbed move succeeds".into()));
        }
        tries += 1;
    }
}

fn keep_logs(arguments: &Arguments, name: &str, scene: &Scene) {
    let Some(directory) = &arguments.logs else { return };
    let when = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let file = directory.join(format!("{name}-{when}.log"));
    if let Err(error) = fs::create_dir_all(directory).and_then(|()| fs::write(&file, scene.logs())) {
        eprintln!("tests/faults: cannot write {}: {error}", file.display());
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
