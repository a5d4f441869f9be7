//! The process behind a wire of the lab; see `lsm_tests::wire`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;

/// Carries Ethernet frames between two TAP devices, late by a fixed time.
#[derive(Parser)]
struct Arguments {
    /// Namespace file of one end.
    a_ns: PathBuf,
    /// Device to make there.
    a_interface: String,
    /// Namespace file of the other end.
    b_ns: PathBuf,
    /// Device to make there.
    b_interface: String,
    /// One-way delay in microseconds.
    delay: u64,
    /// Probability that a frame is lost.
    loss: f64,
    /// Seed of the loss.
    seed: u64,
}

fn main() -> ExitCode {
    let given = Arguments::parse();
    let ends = [(given.a_ns.as_path(), given.a_interface.as_str()), (given.b_ns.as_path(), given.b_interface.as_str())];
    match lsm_tests::carry::carry(ends, Duration::from_micros(given.delay), given.loss, given.seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab-wire: {}", lsm_tests::shell::chain(&error));
            ExitCode::FAILURE
        }
    }
}
