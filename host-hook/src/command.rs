//! The operator's command line.

use std::{path::PathBuf, process::ExitCode};

use crate::{config, hook, service, status, story};
use clap::{Parser, Subcommand};
use lsm_protocol::forecast::Shown;

/// Moves VMs between sites with their Multipath TCP connections: the host's side.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the host service in the foreground.
    Serve {
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// State and sockets.
        #[arg(long, default_value = "/run/lsm")]
        directory: PathBuf,
    },
    /// Show this host's managed VMs, migrations and tunnels.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Say what a move would do to each connection of a VM that runs here.
    Forecast {
        vm: String,
        #[arg(long)]
        json: bool,
    },
    /// Take down the old path of a VM that policy would keep.
    Release { vm: String },
    /// Read the configuration and say what is wrong with it.
    Check {
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// What libvirt's hook does: VM OPERATION SUB-OPERATION EXTRA, the XML on standard input.
    Hook { arguments: Vec<std::ffi::OsString> },
}

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Hook { arguments } => return hook::run(&arguments),
        Command::Serve { config, directory } => serve(&config, &directory),
        Command::Check { config } => check(&config),
        Command::Status { json } => show_status(json),
        Command::Forecast { vm, json } => show_forecast(&vm, json),
        Command::Release { vm } => ask("release", &vm).map(|text| print!("{text}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lsm-hook: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(config: &std::path::Path, directory: &std::path::Path) -> Result<(), String> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    // Everything stays on this one thread; what a migration shares needs no locks.
    tokio::task::LocalSet::new().block_on(&runtime, service::serve(config, directory)).map_err(|e| story(&*e))
}

fn check(path: &std::path::Path) -> Result<(), String> {
    let config = config::Config::load(path).map_err(|e| story(&e))?;
    crate::peer::Identity::load(&config.tls).map_err(|e| story(&e))?;
    println!(
        "{}: good: {} LANs, {} peers, certificates in order",
        path.display(),
        config.lans.len(),
        config.peers.len()
    );
    Ok(())
}

fn show_status(json: bool) -> Result<(), String> {
    let text = ask("status", "")?;
    if json {
        println!("{text}");
    } else {
        status::print(
            &serde_json::from_str(&text).map_err(|e| format!("cannot understand the service's answer: {e}"))?,
        );
    }
    Ok(())
}

fn show_forecast(vm: &str, json: bool) -> Result<(), String> {
    let text = ask("forecast", vm)?;
    if json {
        println!("{text}");
    } else {
        let shown: Shown =
            serde_json::from_str(&text).map_err(|e| format!("cannot understand the service's answer: {e}"))?;
        print!("{shown}");
    }
    Ok(())
}

fn ask(operation: &str, vm: &str) -> Result<String, String> {
    let answer = hook::ask(operation, vm)?;
    match answer.exit {
        0 => Ok(answer.stdout),
        _ => Err(answer.stderr.trim_end().trim_start_matches("lsm-hook: ").to_owned()),
    }
}
