//! What must be so before a move, looked at beforehand: each thing with what was found, and the line that repairs it.

mod client;
mod cloud_init;
mod image;
mod machine;
mod modules;
mod owners;

use std::path::Path;

use lsm_protocol::finding::Finding;

pub use self::{client::client, image::image};
use crate::{
    config::{Config, Force},
    force,
    path::chain,
    sysctl,
};

/// In a VM: the configuration file, whether the kernel does what it says, and whether the VM could be moved now.
/// `directory` holds the agent's state.
#[must_use]
pub fn guest(config: &Path, directory: &Path) -> Vec<Finding> {
    let mut findings = kernel();
    findings.extend(machine::machine(Path::new("/"), directory));
    findings.extend(owners::all(Path::new("/"), directory));
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
