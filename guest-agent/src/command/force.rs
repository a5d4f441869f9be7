//! `lsm-guest force`.

use std::path::{Path, PathBuf};

use crate::{
    config::{self, Config, Force, Mptcp},
    force, path,
};
use clap::Args;

#[derive(Args)]
pub(super) struct Arguments {
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Only say what is in force.
    #[arg(long)]
    status: bool,
    #[arg(long)]
    json: bool,
    /// Instead, write drop-ins that run these services under mptcpize: for kernels that cannot do it.
    #[arg(long, value_name = "UNIT", num_args = 1.., conflicts_with = "status")]
    dropin: Vec<String>,
    /// The system to write the drop-ins into, an image for one.
    #[arg(long, default_value = "/", requires = "dropin")]
    root: PathBuf,
}

pub(super) fn run(arguments: &Arguments, directory: &Path) -> Result<(), super::Failure> {
    if !arguments.dropin.is_empty() {
        let written = force::write_dropins(&arguments.dropin, &arguments.root)?;
        if arguments.json {
            println!("{}", serde_json::json!({ "written": written }));
            return Ok(());
        }
        written.iter().for_each(|path| println!("{}", path.display()));
        if arguments.root == Path::new("/") {
            println!("now: systemctl daemon-reload; systemctl restart {}", arguments.dropin.join(" "));
        }
        return Ok(());
    }
    if !arguments.status {
        let Config { mptcp, .. } = Config::load(&arguments.config)?;
        force::apply(&mptcp, directory).map_err(|error| path::chain(&error))?;
    }
    let standing = force::standing(directory);
    if arguments.json {
        let known = standing.as_ref().and_then(Option::as_ref);
        let what = known.map(|mptcp| serde_json::json!({ "force": mptcp.force, "except": mptcp.except }));
        println!("{}", serde_json::json!({ "in_force": standing.is_some(), "what": what }));
    } else {
        println!("{}", words(standing.as_ref()));
    }
    Ok(())
}

fn words(standing: Option<&Option<Mptcp>>) -> String {
    const KEEP: &str = "a program that runs already keeps the sockets it has until it is restarted";
    match standing {
        None => "off: programs get the sockets they ask for".to_owned(),
        Some(None) => format!("on, but what for was not written down; \"lsm-guest force\" sets it anew; {KEEP}"),
        Some(Some(Mptcp { force: Force::Units(units), .. })) => {
            format!("on: new TCP sockets of {} are Multipath TCP; {KEEP}", units.join(", "))
        }
        Some(Some(Mptcp { except, .. })) if except.is_empty() => {
            format!("on: all new TCP sockets are Multipath TCP; {KEEP}")
        }
        Some(Some(Mptcp { except, .. })) => {
            format!("on: all new TCP sockets are Multipath TCP but those of {}; {KEEP}", except.join(", "))
        }
    }
}
