//! The operator's command line.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{adopt, check, config, dial, estimate, hook, init, moved, report, service, status, story, stream};
use clap::{Parser, Subcommand};
use lsm_protocol::{
    Mac,
    finding::{Table, Verdict},
    forecast::Shown,
};

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
        #[arg(long, default_value = service::DIRECTORY)]
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
    /// Say what a move would take: time, data and pause, by each way, and what to type. Watches the VM for a few seconds.
    Estimate {
        vm: String,
        /// The other host, as [peer.NAME] calls it.
        #[arg(long)]
        to: String,
        /// What a stream to there gets, in Mbit/s. Without it, the speed of the card that leads there.
        #[arg(long, value_parser = rate)]
        rate: Option<f64>,
        #[arg(long)]
        json: bool,
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Show what past migrations did, of all VMs or of one, as this host saw it.
    History {
        vm: Option<String>,
        #[arg(long)]
        json: bool,
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Write host.toml from what this host has: bridges, addresses, certificates.
    Init {
        #[command(flatten)]
        arguments: init::Arguments,
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Make a VM movable: give its persistent definition a second vNIC, a way to the guest's agent, and the metadata.
    Adopt {
        #[command(flatten)]
        arguments: adopt::Arguments,
        /// The card in use, where the VM has more than one on a LAN.
        #[arg(long)]
        mac: Option<Mac>,
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Undo what "adopt" did to a VM's persistent definition. (To end a VM's old path after a move, see "release".)
    Disown(adopt::Arguments),
    /// End the old path of a VM that has moved here, whoever still uses it. (To undo "adopt", see "disown".)
    Release { vm: String },
    /// Look whether everything is in order: host.toml, libvirt, bridges, certificates, peers; the exit status says it too.
    Check {
        /// A VM to look at as well.
        vm: Option<String>,
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        #[arg(long)]
        json: bool,
    },
    /// What lsm-hook-scripts@.service is: run the executables in /etc/lsm/moved.d for who asks on standard input.
    Scripts,
    /// What lsm-hook-dial.service is: connect to peers for the service.
    Dial {
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// What lsm-hook-force@.service is: keep libvirt's sockets Multipath TCP's while who asked on standard input is there.
    Force,
    /// What libvirt's hook does: VM OPERATION SUB-OPERATION EXTRA, the XML on standard input.
    Hook { arguments: Vec<std::ffi::OsString> },
}

/// Does what the command line asks for.
pub fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Hook { arguments } => return hook::run(&arguments),
        Command::Serve { config, directory } => serve(&config, &directory),
        Command::Scripts => {
            alone(async { lsm_scripts::serve(moved::DIRECTORY.as_ref()).await.map_err(|e| e.to_string()) })
        }
        Command::Dial { config } => {
            lsm_records::journal::init("lsm-hook");
            alone(dial::serve(&config))
        }
        Command::Force => alone(async { stream::serve().await.map_err(|e| e.to_string()) }),
        Command::Check { vm, config, json } => check(&config, vm.as_deref(), json),
        Command::Status { json } => show_status(json),
        Command::Forecast { vm, json } => show_forecast(&vm, json),
        Command::Init { arguments, config } => init::init(&arguments, &config),
        Command::Adopt { arguments, mac, config } => adopt::adopt(&arguments, mac, &config),
        Command::Disown(arguments) => adopt::disown(&arguments),
        Command::Estimate { vm, to, rate, json, config } => show_estimate(&vm, &to, rate, json, &config),
        Command::History { vm, json, config } => show_history(vm.as_deref(), json, &config),
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

fn serve(config: &Path, directory: &std::path::Path) -> Result<(), String> {
    lsm_records::journal::init("lsm-hook");
    alone(async { service::serve(config, directory).await.map_err(|e| story(&*e)) })
}

/// Everything stays on this one thread; what a migration shares needs no locks.
fn alone(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

fn check(config: &Path, vm: Option<&str>, json: bool) -> Result<(), String> {
    let findings = check::host(config, vm);
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    if json {
        println!("{}", serde_json::json!({ "good": bad == 0, "findings": findings }));
    } else {
        print!("{}", Table(&findings));
    }
    if bad == 0 { Ok(()) } else { Err("not everything is in order; see above".to_owned()) }
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

fn rate(text: &str) -> Result<f64, String> {
    let mbit = text.parse::<f64>().ok().filter(|mbit| (0.001..=1e7).contains(mbit));
    mbit.ok_or_else(|| "a rate is a number of Mbit/s, such as 200".to_owned())
}

fn show_estimate(vm: &str, to: &str, rate: Option<f64>, json: bool, path: &std::path::Path) -> Result<(), String> {
    let config = config::Config::load(path).map_err(|e| story(&e))?;
    let identity = crate::peer::Identity::load(&config.tls).map_err(|e| story(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    let told = |what: &str| eprintln!("lsm-hook: {what}");
    let estimate =
        runtime.block_on(estimate::estimate(&config, &identity, vm, to, rate, told)).map_err(|e| story(&e))?;
    if json {
        println!("{}", serde_json::to_string(&estimate).map_err(|e| e.to_string())?);
    } else {
        print!("{estimate}");
    }
    Ok(())
}

/// From the files: without the service.
fn show_history(vm: Option<&str>, json: bool, path: &std::path::Path) -> Result<(), String> {
    let config = config::Config::load(path).map_err(|e| story(&e))?;
    let mut reports: Vec<report::Report> = report::history(&config.reports.history).all();
    reports.retain(|report| vm.is_none_or(|vm| report.vm == vm));
    if json {
        println!("{}", serde_json::to_string(&reports).map_err(|e| e.to_string())?);
    } else if let (Some(vm), []) = (vm, &reports[..]) {
        eprintln!("lsm-hook: this host has no report of a move of VM {vm}; \"lsm-hook history\" shows those it has");
    } else {
        reports.iter().for_each(|report| print!("{report}"));
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
