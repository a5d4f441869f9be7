//! `lsm-guest`: the agent inside the VM, and its command line.

use std::process::ExitCode;

use clap::Parser;
use lsm_guest::command;

fn main() -> ExitCode {
    let arguments = command::Arguments::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("lsm-guest: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    // The background work of the daemon stays on this one thread.
    match tokio::task::LocalSet::new().block_on(&runtime, command::run(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lsm-guest: {}", lsm_guest::path::chain(&*error));
            ExitCode::FAILURE
        }
    }
}
