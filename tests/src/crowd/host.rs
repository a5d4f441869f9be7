//! A host of the crowd: a network namespace with a LAN, a `/run` of its own, the service, and somebody who answers in
//! libvirt's place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use serde_json::Value;

use crate::{
    netns::Netns,
    pki::Authority,
    shell::{During as _, LabError, Process, Result, run, run_with_input, wait_for},
    topology::SPARE_BRIDGE,
};

const NAMES: [&str; 2] = ["montreal", "dallas"];

/// What a dead service of LSM's left, and a WireGuard interface that is somebody else's.
const LEFT: &str = "lsmw";
const LEFT_TABLE: &str = "lsm_wireguard";
const OWN: &str = "wg-own";

/// What it says of domains is in two files beside it.
const VIRSH: &str = r#"#!/bin/sh
cd "${0%/*}"
case "$*" in
*" event "*) exec tail -n +1 -f events ;;
*"--state-paused"*) cat paused ;;
*"list --uuid"*) cat running ;;
*domjobinfo*) echo "Job type: None" ;;
*) echo "error: not played here: $*" >&2; exit 1 ;;
esac
"#;

/// What its host.toml says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum More {
    Nothing,
    /// Its tunnels are inside WireGuard.
    Wireguard,
    /// A migration's stream has a path.
    Stream,
}

pub(super) struct Host {
    pub(super) name: &'static str,
    pub(super) ns: Netns,
    number: u8,
    pub(super) more: More,
    /// Its own copy of the program.
    pub(super) hook: PathBuf,
    dir: PathBuf,
    /// The process whose mount namespace has the host's `/run`.
    holder: Process,
    service: Mutex<Option<Process>>,
    /// A program on the LAN, where somebody watches.
    pub(super) client: OnceLock<fs::File>,
    events: Mutex<fs::File>,
    /// By UUID, and whether their CPUs run.
    domains: Mutex<BTreeMap<String, bool>>,
}

impl Host {
    pub(super) fn new(
        crowd: &str,
        number: u8,
        scratch: &Path,
        authority: &Authority,
        hook: &Path,
        more: More,
    ) -> Result<Host> {
        let name = NAMES[usize::from(number) - 1];
        let dir = scratch.join(name);
        fs::create_dir_all(&dir).during(|| format!("make {}", dir.display()))?;
        let write = |file: &str, text: &str| {
            fs::write(dir.join(file), text).during(|| format!("write {}", dir.join(file).display()))
        };
        write("virsh", VIRSH)?;
        write("running", "")?;
        write("paused", "")?;
        write("events", "")?;
        write("host.toml", &host_toml(&dir, number, more))?;
        fs::create_dir(dir.join("metrics")).during(|| "make the place of metrics".into())?;
        fs::set_permissions(dir.join("virsh"), fs::Permissions::from_mode(0o755)).during(|| "allow virsh".into())?;
        authority.equip(&dir.join("pki"), name, [127, 0, 0, number].into())?;
        let events = OpenOptions::new().append(true).open(dir.join("events")).during(|| "open the events".into())?;
        let ns = Netns::new(&format!("{crowd}-{number}"))?;
        for bridge in [format!("br-{name}"), SPARE_BRIDGE.to_owned()] {
            ns.ip(&format!("link add {bridge} type bridge forward_delay 0 mcast_snooping 0\nlink set {bridge} up"))?;
        }
        let script = "mount -t tmpfs tmpfs /run && mkdir -m 700 /run/lsm && exec sleep infinity";
        let holder = Process::start(name, ns.command("unshare").args(["--mount", "sh", "-c", script]))?;
        let ready = format!("/proc/{}/root/run", holder.pid());
        wait_for("the host's /run", Duration::from_secs(5), || {
            let entries: Vec<_> = fs::read_dir(&ready).ok()?.flatten().collect();
            (entries.len() == 1 && entries[0].file_name() == "lsm").then_some(())
        })?;
        let own = dir.join("lsm-hook");
        fs::copy(hook, &own).during(|| format!("copy {}", hook.display()))?;
        Ok(Host {
            name,
            ns,
            number,
            more,
            hook: own,
            dir,
            holder,
            service: Mutex::default(),
            client: OnceLock::new(),
            events: Mutex::new(events),
            domains: Mutex::default(),
        })
    }

    pub(super) fn wan(&self) -> String {
        wan(self.number)
    }

    pub(super) fn lan_bridge(&self) -> String {
        format!("br-{}", self.name)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.pid().to_string(), "--mount", "--net", "--"]).arg(program);
        let path = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.dir.display());
        command.env("PATH", path);
        command
    }

    /// Starts the service, in place of one that is killed.
    pub(super) fn serve(&self) -> Result<()> {
        let mut service = self.service.lock().map_err(|_| LabError::Other("a VM's thread panicked".into()))?;
        if service.take().is_none() && self.more == More::Wireguard {
            self.ns.ip(&format!("link add {LEFT} type wireguard\nlink add {OWN} type wireguard"))?;
            let left = format!("add table inet {LEFT_TABLE}\nadd chain inet {LEFT_TABLE} arriving\n");
            run_with_input(self.ns.command("nft").args(["-f", "-"]), &left)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("log"));
        let log = log.during(|| "make the log".into())?;
        let errors = log.try_clone().during(|| "share the log".into())?;
        // As the unit has it: AppArmor lets nothing leave its profile then.
        let mut command = self.command(Path::new("setpriv"));
        command
            .args(["--no-new-privs", "--"])
            .arg(&self.hook)
            .arg("serve")
            .arg("--config")
            .arg(self.dir.join("host.toml"))
            .stdout(log)
            .stderr(errors);
        *service = Some(Process::start(self.name, &mut command)?);
        let serves = wait_for("the service", Duration::from_secs(10), || self.status().ok());
        serves.map(drop).map_err(|error| LabError::Other(format!("{error}; {}", self.last_words())))
    }

    /// Whether its service runs under the profile that comes with the package, enforced.
    pub(super) fn is_confined(&self) -> bool {
        let service = self.service.lock().ok().and_then(|service| Some(service.as_ref()?.pid()));
        let label = service.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/attr/current")).ok());
        label.is_some_and(|label| label.trim_end() == "lsm-hook (enforce)")
    }

    /// Has another key than the one it has told its peers.
    pub(super) fn with_another_key(&self, act: impl FnOnce() -> Result<()>) -> Result<()> {
        let wg = || self.ns.command("wg");
        let set = |key: &str| run_with_input(wg().args(["set", LEFT, "private-key", "/proc/self/fd/0"]), key);
        let own = run(wg().args(["show", LEFT, "private-key"]))?;
        set(&run(wg().arg("genkey"))?)?;
        act()?;
        set(&own).map(drop)
    }

    /// What a dead service has left is gone, and what is not LSM's is there.
    pub(super) fn has_its_own(&self) -> Result<()> {
        let links = run(self.ns.command("ip").args(["-o", "link", "show"]))?;
        let tables = run(self.ns.command("nft").args(["list", "tables"]))?;
        if links.contains(&format!(": {OWN}:")) && !links.contains(LEFT) && !tables.contains(LEFT_TABLE) {
            return Ok(());
        }
        Err(LabError::Other(format!("{} has\n{links}{tables}", self.name)))
    }

    /// What libvirt's hook does, and prints.
    pub(super) fn hook(&self, vm: &str, operation: &str, sub: &str, xml: &str) -> Result<String> {
        let mut command = self.command(&self.hook);
        run_with_input(command.args(["hook", vm, operation, sub, "-"]), xml)
    }

    pub(super) fn status(&self) -> Result<Value> {
        let said = run(self.command(&self.hook).args(["status", "--json"]))?;
        serde_json::from_str(&said).map_err(|error| LabError::Other(format!("{error}: {said}")))
    }

    /// Libvirt says that something happened to a domain.
    pub(super) fn event(&self, vm: &str, what: &str) -> Result<()> {
        let line = format!("2026-01-01 00:00:00.000+0000: event 'lifecycle' for domain '{vm}': {what}\n");
        let mut events = self.events.lock().map_err(|_| LabError::Other("a VM's thread panicked".into()))?;
        events.write_all(line.as_bytes()).during(|| "write an event".into())
    }

    /// What libvirt says when it is asked for its domains: from now on this one has CPUs that run, or stand, or is none.
    pub(super) fn has(&self, uuid: &str, runs: Option<bool>) -> Result<()> {
        let mut domains = self.domains.lock().map_err(|_| LabError::Other("a VM's thread panicked".into()))?;
        match runs {
            Some(runs) => domains.insert(uuid.to_owned(), runs),
            None => domains.remove(uuid),
        };
        for (file, all) in [("running", true), ("paused", false)] {
            let listed = domains.iter().filter(|(_, runs)| all || !**runs).map(|(uuid, _)| format!("{uuid}\n"));
            let partial = self.dir.join("partial");
            fs::write(&partial, listed.collect::<String>()).during(|| format!("write {}", partial.display()))?;
            fs::rename(&partial, self.dir.join(file)).during(|| format!("write {file}"))?;
        }
        Ok(())
    }

    /// Where a guest's channel is on this host.
    pub(super) fn channel(&self, vm: &str) -> PathBuf {
        self.dir.join(format!("{vm}.sock"))
    }

    /// The most memory that the service has had, in KiB.
    pub(super) fn peak(&self) -> Result<u64> {
        let service = self.service.lock().map_err(|_| LabError::Other("a VM's thread panicked".into()))?;
        let pid = service.as_ref().map_or(0, Process::pid);
        let file = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&file).during(|| format!("read {file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        peak.ok_or_else(|| LabError::Other(format!("no VmHWM in {file}")))
    }

    /// When each VM whose move is over entered each step of it.
    pub(super) fn reports(&self) -> Result<BTreeMap<String, Vec<(String, u64)>>> {
        let place = self.dir.join("history");
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&place).during(|| format!("read {}", place.display()))?.flatten() {
            let text = fs::read(entry.path()).during(|| format!("read {}", entry.path().display()))?;
            let Ok(report) = serde_json::from_slice::<Value>(&text) else { continue };
            let step = |step: &Value| Some((step["name"].as_str()?.to_owned(), step["at_unix_ms"].as_u64()?));
            let steps = report["steps"].as_array().into_iter().flatten().filter_map(step).collect();
            all.insert(report["vm"].as_str().unwrap_or_default().to_owned(), steps);
        }
        Ok(all)
    }

    /// All that moves leave if they leave anything.
    pub(super) fn residue(&self) -> Result<BTreeMap<&'static str, BTreeSet<String>>> {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        let links = run(self.ns.command("ip").args(["-o", "link", "show"]))?;
        let names = links
            .lines()
            .filter_map(|line| line.split(": ").nth(1))
            .map(|name| name.split('@').next().unwrap_or(name).to_owned());
        let fdb = run(self.ns.command("bridge").args(["fdb", "show"]))?;
        let fdb = fdb.lines().filter(|line| line.contains("52:54:00:")).map(str::to_owned).collect();
        let rules = run(self.ns.command("nft").args(["-s", "list", "ruleset"]))?;
        // The tables themselves stay, empty.
        let ours = |line: &&str| ["lsmt", "lsmw", "52:54:00:"].iter().any(|sign| line.contains(sign));
        let rules = rules.lines().filter(ours).map(str::to_owned);
        let state = format!("/proc/{}/root/run/lsm/migrations", self.holder.pid());
        let state = fs::read_dir(&state).during(|| format!("read {state}"))?.flatten();
        let state = state.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        let routes = lines(run(self.ns.command("ip").args(["route", "show", "table", "all"]))?);
        Ok(BTreeMap::from([
            ("link", names.collect()),
            ("bridge entry", fdb),
            ("rule", rules.collect()),
            ("record", state),
            ("route", routes),
        ]))
    }

    pub(super) fn last_words(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(60).collect();
        format!("{}:\n{}", self.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    pub(super) fn plug(&self, tap: &str, bridge: &str) -> Result<()> {
        run(self.ns.command("ip").args(["link", "set", tap, "master", bridge, "up"]).stdout(Stdio::null())).map(drop)
    }
}

fn wan(number: u8) -> String {
    format!("172.31.0.{number}")
}

fn host_toml(dir: &Path, number: u8, more: More) -> String {
    let (name, peer) = (NAMES[usize::from(number) - 1], NAMES[2 - usize::from(number)]);
    let encrypt = if more == More::Wireguard { "wireguard" } else { "none" };
    let (wan, there, dir) = (wan(number), wan(3 - number), dir.display());
    let stream = if more == More::Stream { format!("[stream]\npaths = [\"{wan}\"]\n") } else { String::new() };
    format!(
        "name = \"{name}\"\n[tunnel]\naddress = \"{wan}\"\nencrypt = \"{encrypt}\"\n[peer.{peer}]\naddress = \"{there}:16519\"\n\
         [lan.{name}]\nbridge = \"br-{name}\"\nprefix = \"10.{number}.0.0/16\"\ngateway = \"10.{number}.0.1\"\n\
         pool = \"10.{number}.1.0-10.{number}.4.255\"\n\
         [policy]\nunprepared = \"refuse\"\nprepare_wait_ms = 20000\n\
         [tls]\nca = \"{dir}/pki/CA/cacert.pem\"\ncert = \"{dir}/pki/libvirt/servercert.pem\"\n\
         key = \"{dir}/pki/libvirt/private/serverkey.pem\"\nclient_cert = \"{dir}/pki/libvirt/clientcert.pem\"\n\
         client_key = \"{dir}/pki/libvirt/private/clientkey.pem\"\n\
         [reports]\nhistory = \"{dir}/history\"\nmetrics = \"{dir}/metrics\"\n{stream}"
    )
}
