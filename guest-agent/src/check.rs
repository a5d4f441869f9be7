//! What must be so before a move, looked at beforehand: each thing with what was found, and the line that repairs it.

mod client;

use std::path::Path;

use serde::Serialize;

use crate::{
    config::{Config, Force},
    force,
    path::chain,
    sysctl,
};
pub use client::client;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: &'static str,
    pub verdict: Verdict,
    pub found: String,
    /// A command for a root shell.
    pub fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// It works, with less than could be, or for now.
    Warning,
    Bad,
}

impl Finding {
    fn good(what: &'static str, found: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Good, found: found.into(), fix: None }
    }

    fn warning(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    fn bad(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { what, verdict: Verdict::Bad, found: found.into(), fix: Some(fix.into()) }
    }
}

/// In a VM: the configuration file, and whether the kernel does what it says. `directory` holds the agent's state.
#[must_use]
pub fn guest(config: &Path, directory: &Path) -> Vec<Finding> {
    let mut findings = kernel();
    let config = match Config::load(config) {
        Ok(loaded) => {
            findings.push(Finding::good("configuration", format!("{} is in order", config.display())));
            loaded
        }
        Err(error) => {
            let fix = format!("edit {}", config.display());
            findings.push(Finding::bad("configuration", chain(&error), fix));
            return findings;
        }
    };
    let wanted = Some(Some(config.mptcp)).filter(|mptcp| mptcp.as_ref().is_some_and(|m| m.force != Force::Off));
    let standing = force::standing(directory);
    findings.push(match (&wanted, &standing) {
        (None, None) => Finding::good("force", "off: programs get the sockets they ask for"),
        _ if wanted == standing => Finding::good("force", "plain programs are made Multipath TCP as configured"),
        _ => Finding::bad("force", "not as configured: see \"lsm-guest force --status\"", "lsm-guest force"),
    });
    findings
}

/// Whether this kernel, in this network namespace, has Multipath TCP, switched on.
fn kernel() -> Vec<Finding> {
    let release = sysctl::get("kernel/osrelease").unwrap_or_default();
    match sysctl::get("net/mptcp/enabled").as_deref() {
        Err(_) => vec![Finding::bad(
            "kernel",
            format!("Linux {release} has no Multipath TCP"),
            "uname -r  # install and boot a kernel built with CONFIG_MPTCP; 6.1 and later are tested",
        )],
        Ok("1") => vec![
            Finding::good("kernel", format!("Linux {release} has Multipath TCP")),
            Finding::good("mptcp.enabled", "1"),
        ],
        Ok(value) => vec![
            Finding::good("kernel", format!("Linux {release} has Multipath TCP")),
            Finding::bad("mptcp.enabled", format!("{value}: switched off"), "sysctl -w net.mptcp.enabled=1"),
        ],
    }
}
