//! `lsm-guest check`.

use std::path::{Path, PathBuf};

use crate::{check, config};
use clap::Args;
use lsm_protocol::finding::{Table, Verdict};

#[derive(Args)]
pub(super) struct Arguments {
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// This machine is a client: will its connections follow a VM?
    #[arg(long, conflicts_with = "config")]
    client: bool,
    /// This is an image that does not run yet, as from a builder's chroot: is it right?
    #[arg(long, conflicts_with_all = ["config", "client"])]
    bake: bool,
    /// Where that image is.
    #[arg(long, default_value = "/", requires = "bake")]
    root: PathBuf,
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, directory: &Path) -> Result<(), super::Failure> {
    let findings = match arguments {
        Arguments { bake: true, root, .. } => check::image(root),
        Arguments { client: true, .. } => check::client(Path::new("/")),
        _ => check::guest(&arguments.config, directory),
    };
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    if arguments.json {
        println!("{}", serde_json::json!({ "good": bad == 0, "findings": findings }));
    } else {
        print!("{}", Table(&findings));
    }
    match (bad, arguments.client) {
        (0, _) => Ok(()),
        (_, true) => Err("connections of this machine will not follow a VM; see above".into()),
        (_, false) => Err("not everything is in order; see above".into()),
    }
}
