//! The command line: `run` is the daemon, `force` and `check` work without it, everything else is a thin client of its
//! D-Bus interface.

mod check;
mod follow;
mod force;

use std::{collections::HashMap, path::PathBuf};

use crate::{bus, config, switched};
use clap::{Parser, Subcommand, ValueEnum};
use lsm_protocol::{forecast::Shown, report::Report};
use tokio::net::UnixStream;

/// Keeps this VM's Multipath TCP connections alive while it moves to another site.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Arguments {
    /// State and socket of the daemon.
    #[arg(long, default_value = "/run/lsm", global = true)]
    directory: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    Run {
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Make programs that ask for TCP speak Multipath TCP, as the configuration says.
    Force(force::Arguments),
    /// What lsm-guest-scripts@.service is: run the executables in /etc/lsm/switched.d for who asks on standard input.
    Scripts,
    /// Look whether everything is in order; the exit status says it too.
    Check(check::Arguments),
    /// Show where the agent stands.
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Make the spare vNIC ready by hand: address, routes, announcement as backup, joins.
    Prepare {
        /// MAC of the vNIC that carries the traffic now.
        #[arg(long)]
        old: String,
        /// MAC of the spare.
        #[arg(long)]
        new: String,
        /// The address with its prefix length, like 10.2.0.7/24; once more for the other family.
        #[arg(long, required = true)]
        address: Vec<String>,
        /// The LAN's router, one for each address.
        #[arg(long)]
        gateway: Vec<String>,
        /// Name of the LAN, for the log.
        #[arg(long, default_value = "by hand")]
        lan: String,
        #[arg(long, default_value_t = 1500)]
        mtu: u16,
        /// The VM is at the new site already: switch as soon as the clients have joined.
        #[arg(long)]
        arrived: bool,
        #[arg(long)]
        json: bool,
    },
    /// Move the traffic to the prepared path, or back.
    Switch {
        #[arg(long, value_enum, default_value_t = To::New)]
        to: To,
        /// Only say each step.
        #[arg(long)]
        dry_run: bool,
        /// Also say that the VM has arrived, so that the old path is left for good.
        #[arg(long, conflicts_with = "dry_run")]
        settle: bool,
        #[arg(long)]
        json: bool,
    },
    /// Say what a move would do to each connection: which moves, which waits on the tunnel, and why.
    Forecast {
        #[arg(long)]
        json: bool,
    },
    /// Show what past migrations did to each connection: all, or those whose id begins like this.
    History {
        #[arg(default_value = "")]
        id: String,
        #[arg(long)]
        json: bool,
    },
    /// Leave the old path for good, if nobody needs it any more.
    Settle {
        /// End the connections that still need it.
        #[arg(long)]
        cut: bool,
        #[arg(long)]
        json: bool,
    },
    /// Run a command, and have moves that begin meanwhile wait for its end, or for a while.
    Hold {
        /// What for: status and log name it.
        #[arg(long)]
        reason: String,
        /// No longer than this since a move began, in milliseconds; 4000 at most, or what guest.toml allows.
        #[arg(long, default_value_t = 4_000)]
        ms: u32,
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<std::ffi::OsString>,
    },
    /// Print what programs hear on D-Bus, as it happens: Preparing, Switched, Settled, Aborted.
    Signals {
        #[arg(long)]
        json: bool,
    },
    /// Put everything back as it was before the preparation.
    Abort {
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum To {
    New,
    Old,
}

#[zbus::proxy(interface = "org.lsm.Guest1", default_service = "org.lsm.Guest1", default_path = "/org/lsm/Guest1")]
trait Guest1 {
    fn status(&self) -> zbus::Result<HashMap<String, zbus::OwnedVariant>>;
    #[expect(clippy::too_many_arguments, reason = "the arguments of the D-Bus method")]
    fn prepare(
        &self,
        old: &str,
        new: &str,
        lan: &str,
        addresses: &[String],
        gateways: &[String],
        mtu: u16,
        arrived: bool,
    ) -> zbus::Result<String>;
    fn switch(&self, to: &str, dry_run: bool) -> zbus::Result<Vec<String>>;
    fn forecast(&self) -> zbus::Result<String>;
    fn history(&self, id: &str) -> zbus::Result<String>;
    fn settle(&self, cut: bool) -> zbus::Result<()>;
    fn abort(&self) -> zbus::Result<()>;
    fn arrived(&self) -> zbus::Result<()>;
    fn hold(&self, reason: &str, milliseconds: u32) -> zbus::Result<u32>;
}

type Failure = Box<dyn std::error::Error>;

/// Does what the command line asks for.
///
/// # Errors
/// In words for the operator.
pub async fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { directory, command } = arguments;
    match &command {
        Command::Run { config } => {
            lsm_records::journal::init("lsm-guest");
            return crate::daemon::run(&directory, config).await;
        }
        Command::Force(arguments) => return force::run(arguments, &directory),
        Command::Check(arguments) => return check::run(arguments, &directory),
        Command::Scripts => return Ok(lsm_scripts::serve(switched::DIRECTORY.as_ref()).await?),
        _ => {}
    }
    let socket = directory.join("guest.sock");
    let stream = UnixStream::connect(&socket).await.map_err(|error| {
        format!(
            "cannot reach the agent at {}: {error}; is \"lsm-guest run\" running, and are you root?",
            socket.display()
        )
    })?;
    let connection =
        zbus::connection::Builder::unix_stream(stream.into_std()?).p2p().method_timeout(bus::TIMEOUT).build().await?;
    let command = match command {
        Command::Signals { json } => return follow::signals(&connection, json).await,
        command => command,
    };
    let guest = Guest1Proxy::new(&connection).await?;
    if let Command::Hold { reason, ms, command } = command {
        return follow::hold(&guest, &reason, ms, &command).await;
    }
    ask(&guest, command).await.map_err(in_words)
}

/// What the agent itself said, where it did.
fn in_words(error: zbus::Error) -> Failure {
    match error {
        zbus::Error::MethodError(_, Some(detail), _) => detail.into(),
        zbus::Error::FDO(error) => {
            zbus::DBusError::description(&*error).unwrap_or("the agent refused").to_owned().into()
        }
        other => other.into(),
    }
}

async fn ask(guest: &Guest1Proxy<'_>, command: Command) -> zbus::Result<()> {
    match command {
        Command::Run { .. }
        | Command::Force(_)
        | Command::Scripts
        | Command::Check(_)
        | Command::Hold { .. }
        | Command::Signals { .. } => {}
        Command::Status { json } => {
            let status = guest.status().await?;
            if json { print_json(&status) } else { print_status(&status) }
        }
        Command::Prepare { old, new, address, gateway, lan, mtu, arrived, json } => {
            let migration = guest.prepare(&old, &new, &lan, &address, &gateway, mtu, arrived).await?;
            let status = guest.status().await?;
            if json {
                print_json(&status);
            } else {
                println!("prepared as migration {migration}");
                print_status(&status);
            }
        }
        Command::Switch { to, dry_run, settle, json } => {
            let to = match to {
                To::New => "new",
                To::Old => "old",
            };
            let lines = guest.switch(to, dry_run).await?;
            if settle {
                guest.arrived().await?;
            }
            if json {
                println!("{}", serde_json::json!({ "done": !dry_run, "steps": lines }));
            } else {
                println!("{}", if dry_run { "would do:" } else { "done:" });
                lines.iter().for_each(|line| println!("  {line}"));
            }
        }
        Command::Forecast { json } => {
            let text = guest.forecast().await?;
            if json {
                println!("{text}");
            } else {
                let shown: Shown = serde_json::from_str(&text).map_err(|e| zbus::Error::Failure(e.to_string()))?;
                print!("{shown}");
            }
        }
        Command::History { id, json } => {
            let text = guest.history(&id).await?;
            if json {
                println!("{text}");
            } else {
                let reports: Vec<Report> =
                    serde_json::from_str(&text).map_err(|e| zbus::Error::Failure(e.to_string()))?;
                reports.iter().for_each(|report| print!("{report}"));
            }
        }
        Command::Settle { cut, json } => {
            guest.settle(cut).await?;
            if json {
                println!("{}", serde_json::json!({ "settling": true }));
            } else {
                println!("the old path is being left; \"lsm-guest status\" tells when it is");
            }
        }
        Command::Abort { json } => {
            guest.abort().await?;
            if json {
                println!("{}", serde_json::json!({ "aborted": true }));
            } else {
                println!("everything is as it was before the preparation");
            }
        }
    }
    Ok(())
}

fn text(status: &HashMap<String, zbus::OwnedVariant>, key: &str) -> String {
    match status.get(key).map(|v| &**v) {
        Some(zbus::Variant::Str(text)) => text.to_string(),
        Some(zbus::Variant::U32(number)) => number.to_string(),
        Some(list @ zbus::Variant::Array(_)) => strings(list).join(", "),
        _ => String::new(),
    }
}

fn strings(list: &zbus::Variant<'_>) -> Vec<String> {
    list.try_clone().ok().and_then(|list| list.try_into().ok()).unwrap_or_default()
}

fn print_status(status: &HashMap<String, zbus::OwnedVariant>) {
    let line = |name: &str, key: &str| {
        let value = text(status, key);
        if !value.is_empty() {
            println!("{name:<12}{value}");
        }
    };
    line("state", "state");
    line("migration", "migration");
    line("awaiting", "awaiting");
    line("old", "old");
    line("new", "new");
    line("drain", "drain");
    line("stragglers", "stragglers");
    line("held by", "holds");
    line("switched", "switched");
    line("scripts", "scripts");
    if status.contains_key("next_invitation_ms") {
        let [invited, next] = ["invited", "next_invitation_ms"].map(|key| text(status, key));
        println!("{:<12}{invited} so far, the next in {next} ms", "invitations");
    }
    let [joined, waiting, moved, legacy] = ["joined", "waiting", "moved", "legacy"].map(|key| text(status, key));
    println!("{:<12}{joined} joined, {waiting} waiting, {moved} moved, {legacy} legacy", "connections");
}

fn print_json(status: &HashMap<String, zbus::OwnedVariant>) {
    let mut object = serde_json::Map::new();
    for (key, value) in status {
        let value = match &**value {
            zbus::Variant::U32(number) => (*number).into(),
            zbus::Variant::Str(text) if text.is_empty() => serde_json::Value::Null,
            zbus::Variant::Str(text) => text.as_str().into(),
            list @ zbus::Variant::Array(_) => strings(list).into(),
            _ => continue,
        };
        object.insert(key.clone(), value);
    }
    println!("{}", serde_json::Value::Object(object));
}
