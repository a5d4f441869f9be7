//! `tests/bench`.

use std::{
    io::IsTerminal as _,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use lsm_tests::{
    bench::{self, BenchOptions},
    shell::chain,
};

/// Measures what the papers measured, and writes RESULTS.md with its pictures. What was measured before is kept: an
/// interrupted run goes on where it was.
#[derive(Parser)]
#[command(name = "tests/bench", bin_name = "tests/bench")]
struct Arguments {
    /// This one only.
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(bench::names()))]
    only: Option<String>,
    /// Few points, each once, shown and not published.
    #[arg(long)]
    quick: bool,
    /// Stop after so many minutes; the next run goes on.
    #[arg(long)]
    minutes: Option<u64>,
    /// Measure all of it again.
    #[arg(long)]
    fresh: bool,
}

fn main() -> ExitCode {
    let Arguments { only, quick, minutes, fresh } = Arguments::parse();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let until = minutes.map(|minutes| Instant::now() + Duration::from_secs(60 * minutes));
    let kept = workspace.join(if quick { "target/bench" } else { "docs/results/measured" });
    let results = workspace.to_owned();
    let options = BenchOptions { only, quick, until, fresh, kept, results };
    let terminal = std::io::stderr().is_terminal();
    let mut say = |what: &str, passing: bool| match (terminal, passing) {
        (true, true) => eprint!("\r\x1b[K{what}"),
        (true, false) => eprintln!("\r\x1b[K{what}"),
        (false, _) => eprintln!("tests/bench: {what}"),
    };
    match bench::run(&options, &mut say) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tests/bench: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
