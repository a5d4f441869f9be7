//! Many VMs that move at once between two hosts: the hosts' services, hooks, tunnels, filters and channels are real, in
//! namespaces; the VMs are two taps each and the agent's machine without a kernel under it, and libvirt is played. So the
//! hosts can be asked for more VMs than a machine can emulate.

mod guest;
mod host;
mod vm;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::Value;

use self::{host::Host, vm::Vm};
use crate::{
    image::static_program,
    pki::Authority,
    shell::{LabError, Result, run, wait_for},
};

/// No move takes longer, however slow the machine: this, and so much more for each VM.
const LIMIT: Duration = Duration::from_secs(60);
const EACH: Duration = Duration::from_secs(3);

/// What a crowd's move took.
#[derive(Debug)]
pub struct Moved {
    /// Milliseconds of each VM, by what was waited for, in order.
    pub steps: Vec<(&'static str, Vec<f64>)>,
    /// The most memory that the services had, in KiB: of the source, of the destination.
    pub memory: [u64; 2],
}

/// Removed when dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Moves `count` VMs from one host to another at once, and looks that nothing of it is left, and nobody has got what is
/// another's.
///
/// # Errors
/// The first thing that went otherwise, with the services' logs.
pub fn run_crowd(count: usize) -> Result<Moved> {
    let hook = static_program("lsm-hook", "lsm-hook")?;
    let name = format!("lsm-crowd-{}", std::process::id());
    let scratch = Scratch(std::env::temp_dir().join(&name));
    let authority = Authority::new("LSM crowd")?;
    let [from, to] = [1, 2].map(|number| Host::new(&name, number, &scratch.0, &authority));
    let (mut from, mut to) = (from?, to?);
    let [a, b] = [&from, &to].map(|host| host.ns.name());
    run(std::process::Command::new("ip")
        .args(["-n", a, "link", "add", "wan", "mtu", "1600", "type", "veth"])
        .args(["peer", "name", "wan", "netns", b]))?;
    for host in [&mut from, &mut to] {
        host.ns.ip(&format!("addr add {}/24 dev wan\nlink set wan mtu 1600 up", host.wan()))?;
        host.serve(&hook)?;
    }
    let (from, to) = (Arc::new(from), Arc::new(to));
    let moved = move_all(count, &from, &to);
    moved.map_err(|error| {
        let logs = [&from, &to].map(|host| host.last_words()).join("\n----\n");
        LabError::Other(format!("{}\n{logs}", crate::shell::chain(&error)))
    })
}

fn move_all(count: usize, from: &Arc<Host>, to: &Arc<Host>) -> Result<Moved> {
    let vms = (0..count).map(|number| Vm::start(number, from.clone(), to.clone()));
    let vms = vms.collect::<Result<Vec<_>>>()?;
    let limit = LIMIT + EACH * count as u32;
    let before = from.residue()?;
    let empty = to.residue()?;
    let moves: Vec<_> = vms.into_iter().map(|vm| thread::spawn(move || vm.go(limit))).collect();
    let mut steps: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut arrived = Vec::new();
    for one in moves {
        let (vm, took) = one.join().map_err(|_| LabError::Other("a VM's thread panicked".into()))??;
        add(&mut steps, took);
        arrived.push(vm);
    }
    for host in [from, to] {
        wait_for("all migrations to be over", limit, || {
            thread::sleep(Duration::from_millis(200));
            (host.status().ok()?["migrations"] == Value::Array(vec![])).then_some(())
        })?;
    }
    let reports = [from.reports()?, to.reports()?];
    for vm in &arrived {
        add(&mut steps, vm.reported(&reports)?);
    }
    let memory = [from.peak()?, to.peak()?];
    let addresses: BTreeSet<_> = arrived.iter().map(|vm| vm.address()).collect();
    if addresses.len() != count || addresses.contains(&None) {
        return Err(LabError::Other(format!("{count} VMs have {} addresses: {addresses:?}", addresses.len())));
    }
    for host in [from, to] {
        let status = host.status()?;
        if status["migrations"] != Value::Array(vec![]) || status["tunnels"] != Value::Array(vec![]) {
            return Err(LabError::Other(format!("{} still has {:#}", host.name, status)));
        }
    }
    let vms_at = |host: &Host| Ok::<_, LabError>(host.status()?["vms"].as_array().map_or(0, Vec::len));
    if (vms_at(from)?, vms_at(to)?) != (0, count) {
        return Err(LabError::Other(format!(
            "{} VMs are known at the source, {} at the destination",
            vms_at(from)?,
            vms_at(to)?
        )));
    }
    drop(arrived); // and their taps
    compare(from, &before)?;
    compare(to, &empty)?;
    Ok(Moved { steps, memory })
}

/// What one VM's move took, to that of all.
fn add(steps: &mut Vec<(&'static str, Vec<f64>)>, took: Vec<(&'static str, f64)>) {
    for (what, ms) in took {
        match steps.iter_mut().find(|(known, _)| *known == what) {
            Some((_, all)) => all.push(ms),
            None => steps.push((what, vec![ms])),
        }
    }
}

/// Whatever is there now was there before: of what the host's service makes, since the taps are gone with their VMs.
fn compare(host: &Host, before: &BTreeMap<&'static str, BTreeSet<String>>) -> Result<()> {
    let mut left = String::new();
    wait_for("nothing to be left", Duration::from_secs(10), || {
        let now = host.residue().ok()?;
        left = now
            .iter()
            .flat_map(|(what, entries)| {
                entries.difference(&before[what]).map(move |entry| format!("{what}: {entry}\n"))
            })
            .collect();
        left.is_empty().then_some(())
    })
    .map_err(|error| LabError::Other(format!("{error} on {}; there is\n{left}", host.name)))
}

/// A tap in a host's namespace, for as long as the file is open.
fn tap(host: &Host, name: &str) -> Result<std::fs::File> {
    host.ns.enter(|| crate::tap::open(name))?
}
