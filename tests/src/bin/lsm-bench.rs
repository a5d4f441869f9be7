//! `tests/bench`.

use std::{path::Path, process::ExitCode};

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
    /// Measure all of it again.
    #[arg(long)]
    fresh: bool,
}

fn main() -> ExitCode {
    let Arguments { only, quick, fresh } = Arguments::parse();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."));
    let options =
        BenchOptions { only, quick, fresh, kept: workspace.join("target/bench"), results: workspace.to_owned() };
    match bench::run(&options, &mut |what| eprintln!("tests/bench: {what}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tests/bench: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
