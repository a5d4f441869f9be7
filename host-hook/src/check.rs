//! What must be so before a move, looked at beforehand: each thing with what was found, and the line that repairs it.
//! Changes nothing, and needs no service that runs.

mod hook;
mod network;
mod nwfilter;
mod peers;
mod stream;
mod vm;

use std::path::Path;

use lsm_protocol::finding::Finding;

use crate::{config::Config, story};

/// This host, and `vm` where it is named.
pub fn host(config: &Path, vm: Option<&str>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let loaded = match Config::load(config) {
        Ok(loaded) => {
            let found = format!("{} is in order", config.display());
            findings.push(Finding::good("configuration", found));
            Some(loaded)
        }
        Err(error) => {
            let fix = if config.exists() { format!("editor {}", config.display()) } else { "lsm-hook init".to_owned() };
            findings.push(Finding::bad("configuration", story(&error), fix));
            None
        }
    };
    findings.push(hook::libvirt());
    findings.extend(hook::called(Path::new("/etc/libvirt/hooks"), Path::new("/proc")));
    findings.push(hook::service());
    if let Some(config) = &loaded {
        findings.extend(network::lans(config, Path::new("/sys/class/net")));
        findings.extend(network::tunnels(config));
        findings.extend(stream::stream(&config.stream, Path::new("/proc"), stream::forced));
        findings.extend(peers::certificates(config));
        findings.extend(peers::reachable(config));
    }
    if let Some(vm) = vm {
        findings.extend(vm::vm(vm, loaded.as_ref()));
    }
    findings
}
