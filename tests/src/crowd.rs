//! Many VMs that move at once between two hosts: the hosts' services, hooks, tunnels, filters and channels are real, in
//! namespaces; the VMs are two taps each and the agent's machine without a kernel under it, and libvirt is played. So the
//! hosts can be asked for more VMs than a machine can emulate.

pub mod forced;
mod guest;
mod host;
mod vm;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use serde_json::Value;

pub use self::watch::Seen;
use self::{
    host::{Host, More},
    vm::Vm,
    watch::Watch,
};
use crate::{
    image::static_program,
    netns::Netns,
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
    between_hosts(|from, to| move_all(count, from, to))
}

/// Moves a VM to a host whose service is killed when the VM has arrived and its advance tunnel is gone, and started again.
///
/// # Errors
/// The first thing that went otherwise, with the services' logs.
pub fn run_restarted() -> Result<()> {
    let hook = static_program("lsm-hook", "lsm-hook")?;
    set(&hook, More::Nothing, |from, to, _| {
        let [vm] = <[Vm; 1]>::try_from(start(1, from, to)?).map_err(|_| LabError::Other("one VM is one".into()))?;
        vm.hold(true)?;
        let (vm, _) = vm.go_and(
            LIMIT,
            |_| Ok(()),
            |vm| {
                wait_for("the advance tunnel to be gone", LIMIT, || {
                    (to.status().ok()?["tunnels"].as_array()?.len() == 1).then_some(())
                })?;
                to.serve()?;
                vm.hold(false)
            },
        )?;
        all_over(&[from, to], LIMIT)?;
        placed(&[vm], to, from)
    })
}

/// Moves `count` VMs there and back, each as soon as it has settled, while the hosts may still be taking down its tunnels.
///
/// # Errors
/// The first thing that went otherwise, with the services' logs.
pub fn run_there_and_back(count: usize) -> Result<()> {
    between_hosts(|from, to| {
        let vms = start(count, from, to)?;
        let before = [from.residue()?, to.residue()?];
        let limit = limit(count);
        let returned = together(vms, move |vm| vm.go(limit)?.0.go(limit).map(|(vm, _)| vm))?;
        all_over(&[from, to], limit)?;
        placed(&returned, from, to)?;
        drop(returned); // and their taps
        compare(from, &before[0])?;
        compare(to, &before[1])
    })
}

/// Two hosts with a network between them.
fn between_hosts<T>(act: impl FnOnce(&Arc<Host>, &Arc<Host>) -> Result<T>) -> Result<T> {
    let hook = static_program("lsm-hook", "lsm-hook")?;
    set(&hook, More::Nothing, |from, to, _| act(from, to))
}

/// Moves a VM with tunnels inside WireGuard, or plain, while somebody between the hosts looks at all that passes. Frames
/// cross by an advance tunnel, and again after both hosts' services were killed and started anew. With WireGuard, an
/// interface that a dead service left is there before, and one that is not LSM's.
///
/// # Errors
/// As of [`run_crowd`], and when anything is left of WireGuard, or what is not ours is gone.
pub fn run_watched(hook: &Path, wireguard: bool) -> Result<Seen> {
    let more = if wireguard { More::Wireguard } else { More::Nothing };
    set(hook, more, |from, to, between| {
        let watch = Watch::start(between)?;
        let client = tap(to, "client")?;
        to.plug("client", &to.lan_bridge())?;
        let _ = to.client.set(client);
        move_all(1, from, to)?;
        if wireguard {
            [from, to].into_iter().try_for_each(|host| host.has_its_own())?;
        }
        let confined = [from, to].into_iter().filter(|host| host.is_confined()).count();
        Ok(Seen { confined, ..watch.stop()? })
    })
}

/// Moves a VM with tunnels inside WireGuard between hosts with a round trip of 300 ms: so far apart that each may begin
/// WireGuard's handshake before it has heard of the other's.
///
/// # Errors
/// As of [`run_crowd`].
pub fn run_distant(hook: &Path) -> Result<()> {
    set(hook, More::Wireguard, |from, to, between| {
        for near in [from.name, to.name] {
            run(between.command("tc").args(["qdisc", "add", "dev", near, "root", "netem", "delay", "150ms"]))?;
        }
        move_all(1, from, to).map(drop)
    })
}

/// Moves a VM between hosts that have a path for the migration's own stream: what libvirt and its VMs ask for as TCP is
/// Multipath TCP's while it is copied, also by services that have just come back, and nobody else's is; then nothing is.
///
/// # Errors
/// The first thing that went otherwise, with the services' logs.
pub fn run_forced(hook: &Path) -> Result<()> {
    set(hook, More::Stream, |from, to, _| {
        forced::are(forced::PLAIN)?;
        forced::unit(&from.hook)?;
        let [vm] = <[Vm; 1]>::try_from(start(1, from, to)?).map_err(|_| LabError::Other("one VM is one".into()))?;
        let copied = |_: &Vm| {
            forced::are(forced::FORCED)?;
            [from, to].into_iter().try_for_each(|host| host.serve())?;
            forced::are(forced::FORCED)
        };
        let (vm, _) = vm.go_and(LIMIT, copied, |_| Ok(()))?;
        all_over(&[from, to], LIMIT)?;
        forced::are(forced::PLAIN)?;
        placed(&[vm], to, from)
    })
}

/// Two hosts whose services run, and the network between them.
fn set<T>(hook: &Path, more: More, act: impl FnOnce(&Arc<Host>, &Arc<Host>, &Netns) -> Result<T>) -> Result<T> {
    let name = format!("lsm-crowd-{}", std::process::id());
    let scratch = Scratch(std::env::temp_dir().join(&name));
    let authority = Authority::new("LSM crowd")?;
    let [from, to] = [1, 2].map(|number| Host::new(&name, number, &scratch.0, &authority, hook, more));
    let (from, to) = (from?, to?);
    let between = Netns::new(&format!("{name}-wan"))?;
    between.ip("link add wan mtu 1600 type bridge forward_delay 0 mcast_snooping 0\nlink set wan up")?;
    for host in [&from, &to] {
        let (near, far) = (host.name, host.ns.name());
        between.ip(&format!(
            "link add {near} mtu 1600 type veth peer name wan mtu 1600 netns {far}\nlink set {near} master wan up"
        ))?;
        host.ns.ip(&format!("addr add {}/24 dev wan\nlink set wan up", host.wan()))?;
        host.serve()?;
    }
    let (from, to) = (Arc::new(from), Arc::new(to));
    act(&from, &to, &between).map_err(|error| {
        let logs = [&from, &to].map(|host| host.last_words()).join("\n----\n");
        LabError::Other(format!("{}\n{logs}", crate::shell::chain(&error)))
    })
}

fn start(count: usize, from: &Arc<Host>, to: &Arc<Host>) -> Result<Vec<Vm>> {
    (0..count).map(|number| Vm::start(number, from.clone(), to.clone())).collect()
}

fn limit(count: usize) -> Duration {
    LIMIT + EACH * count as u32
}

/// Each on a thread of its own.
fn together<T: Send + 'static>(vms: Vec<Vm>, act: impl Fn(Vm) -> Result<T> + Send + Clone + 'static) -> Result<Vec<T>> {
    let acts: Vec<_> = vms.into_iter().map(|vm| (vm, act.clone())).collect();
    let threads: Vec<_> = acts.into_iter().map(|(vm, act)| thread::spawn(move || act(vm))).collect();
    let ended =
        threads.into_iter().map(|one| one.join().map_err(|_| LabError::Other("a VM's thread panicked".into()))?);
    ended.collect()
}

fn all_over(hosts: &[&Arc<Host>], limit: Duration) -> Result<()> {
    for host in hosts {
        wait_for("all migrations to be over", limit, || {
            thread::sleep(Duration::from_millis(200));
            (host.status().ok()?["migrations"] == Value::Array(vec![])).then_some(())
        })?;
    }
    Ok(())
}

/// All are at this host, each with an address of its own and ears in its LAN, and no tunnel is left.
fn placed(vms: &[Vm], here: &Host, there: &Host) -> Result<()> {
    let addresses: BTreeSet<_> = vms.iter().map(Vm::address).collect();
    if addresses.len() != vms.len() || addresses.contains(&None) {
        return Err(LabError::Other(format!("{} VMs have {} addresses: {addresses:?}", vms.len(), addresses.len())));
    }
    vms.iter().try_for_each(Vm::hears)?;
    for (host, count) in [(here, vms.len()), (there, 0)] {
        let status = host.status()?;
        let known = status["vms"].as_array().map_or(0, Vec::len);
        if status["tunnels"] != Value::Array(vec![]) || known != count {
            return Err(LabError::Other(format!("{count} VMs should be at {}, and no tunnels: {status:#}", host.name)));
        }
    }
    Ok(())
}

fn move_all(count: usize, from: &Arc<Host>, to: &Arc<Host>) -> Result<Moved> {
    let vms = start(count, from, to)?;
    let limit = limit(count);
    let before = from.residue()?;
    let empty = to.residue()?;
    let mut steps: Vec<(&str, Vec<f64>)> = Vec::new();
    let mut arrived = Vec::new();
    for (vm, took) in together(vms, move |vm| vm.go(limit))? {
        add(&mut steps, took);
        arrived.push(vm);
    }
    all_over(&[from, to], limit)?;
    let reports = [from.reports()?, to.reports()?];
    // A service that has just come back may not hear of the stop.
    for vm in arrived.iter().filter(|_| to.client.get().is_none()) {
        add(&mut steps, vm.reported(&reports)?);
    }
    let memory = [from.peak()?, to.peak()?];
    placed(&arrived, to, from)?;
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
