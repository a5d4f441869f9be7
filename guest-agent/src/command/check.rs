//! `lsm-guest check`.

use std::path::{Path, PathBuf};

use crate::{
    check::{self, Finding, Verdict},
    config,
};
use clap::Args;

#[derive(Args)]
pub(super) struct Arguments {
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// This machine is a client: will its connections follow a VM?
    #[arg(long, conflicts_with = "config")]
    client: bool,
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments, directory: &Path) -> Result<(), super::Failure> {
    let findings =
        if arguments.client { check::client(Path::new("/")) } else { check::guest(&arguments.config, directory) };
    let bad = findings.iter().filter(|finding| finding.verdict == Verdict::Bad).count();
    if arguments.json {
        println!("{}", serde_json::json!({ "good": bad == 0, "findings": findings }));
    } else {
        findings.iter().for_each(print);
    }
    match (bad, arguments.client) {
        (0, _) => Ok(()),
        (_, true) => Err("connections of this machine will not follow a VM; see above".into()),
        (_, false) => Err("not everything is in order; see above".into()),
    }
}

fn print(finding: &Finding) {
    let word = match finding.verdict {
        Verdict::Good => "good",
        Verdict::Warning => "warning",
        Verdict::Bad => "BAD",
    };
    println!("{word:<9}{:<16}{}", finding.what, finding.found);
    if let Some(fix) = &finding.fix {
        println!("{:<9}{:<16}  {fix}", "", "fix:");
    }
}
