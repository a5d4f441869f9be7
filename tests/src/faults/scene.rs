//! The stage that all faults of a run share, and what is known of the move under way.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{Fault, Step};
use crate::{
    channel_proxy::ChannelProxy,
    connections::Connections,
    shell::{During as _, LabError, Result, chain, run, wait_for},
    snapshot::Snapshot,
    stage::{Migration, Stage, StageOptions},
};

const LIMIT: Duration = Duration::from_secs(60);
/// MiB/s of a copy that must last: some 80 MiB are copied.
const SLOW: &str = "16";
/// The stop begins with this much left to copy, and the WAN does no more than [`STOP_MBIT`] from then on: some seconds.
const STOP_LEFT: u64 = 12 << 20;
const STOP_MBIT: u32 = 24;
const STOP_MS: &str = "6000";

/// A stage, the connections of its client, and one move after the other.
#[derive(Debug)]
pub struct Scene {
    pub stage: Stage,
    pub connections: Connections,
    /// Of another client, which a fault is about.
    pub(super) others: Option<Connections>,
    pub(super) proxy: Option<ChannelProxy>,
    /// Where the VM is when the move begins, and where it is to go.
    pub(super) from: String,
    pub(super) to: String,
    /// The VM's address when the move began.
    pub(super) address: String,
    /// How long the address was silent after the source had gone on with the VM.
    pub(super) silent_ms: Option<u64>,
    /// What virsh complained of.
    pub(super) complaint: String,
    /// Differences that this fault is meant to make, each with its reason where it is said.
    pub(super) meant: Vec<String>,
    /// How everything is when the VM has come there undisturbed.
    homes: BTreeMap<String, Snapshot>,
    /// What QEMU had said at each site when the move began, in bytes.
    heard: BTreeMap<String, usize>,
    /// What puts the network right again.
    pub(super) undo: Vec<Undo>,
    verbose: bool,
    begun: Instant,
}

pub(super) type Undo = fn(&Scene) -> Result<()>;

impl Scene {
    /// Boots the VM and opens connections. [`Scene::rehearse`] comes next.
    ///
    /// # Errors
    /// The lab itself failed.
    pub fn set(verbose: bool) -> Result<Scene> {
        let policy = "switch = \"early\"\nlease_s = 20".into();
        let begun = Instant::now();
        let told = |what: &str| note(verbose, begun, what);
        let stage = Stage::set(&StageOptions { policy, ..StageOptions::default() }, told)?;
        let connections = Connections::open(&stage, 0)?;
        Ok(Scene {
            stage,
            connections,
            others: None,
            proxy: None,
            from: String::new(),
            to: String::new(),
            address: String::new(),
            silent_ms: None,
            complaint: String::new(),
            meant: Vec::new(),
            homes: BTreeMap::new(),
            heard: BTreeMap::new(),
            undo: Vec::new(),
            verbose,
            begun,
        })
    }

    /// Moves the VM there and back once, undisturbed: so everything should be after each move.
    ///
    /// # Errors
    /// An undisturbed move failed; [`Scene::logs`] say more.
    pub fn rehearse(&mut self) -> Result<()> {
        for _ in 0..2 {
            self.begin()?;
            self.stage.migrate(&self.to)?;
            self.connections.alive()?;
            self.stage.agent_is(&["idle"], LIMIT)?;
            self.stage.settled(LIMIT)?;
            self.stage.spare_is_down(LIMIT)?;
            let home = Snapshot::take(&self.stage)?;
            self.homes.insert(self.to.clone(), home);
            self.note(&format!("moved to {} undisturbed", self.to));
        }
        Ok(())
    }

    /// What has been done, for whoever watches.
    pub(super) fn note(&self, what: &str) {
        note(self.verbose, self.begun, what);
    }

    pub(super) fn begin(&mut self) -> Result<()> {
        let here = self.stage.guest.site()?.name().to_owned();
        let there = self.stage.sites.iter().find(|site| site.name() != here);
        self.to = there.map(|site| site.name().to_owned()).unwrap_or_default();
        self.from = here;
        self.address = crate::connections::address(&self.stage)?.to_string();
        self.complaint.clear();
        self.meant.clear();
        self.heard =
            self.stage.sites.iter().map(|site| (site.name().into(), self.qemu_log(site.name()).len())).collect();
        Ok(())
    }

    pub(super) fn migrate(&self, fault: &Fault, step: Step) -> Result<Migration> {
        let pace = fault.pace.or(step.wants_time().then_some(SLOW));
        let more: Vec<&str> = pace.iter().flat_map(|pace| ["--bandwidth", pace]).collect();
        let migration = self.stage.begin(&self.to, &more)?;
        if step == Step::Stopped {
            self.prolong_stop()?;
        }
        Ok(migration)
    }

    /// So that there is time to break something between STOP and RESUME.
    fn prolong_stop(&self) -> Result<()> {
        wait_for("the copy to be nearly over", LIMIT, || self.copied().filter(|left| *left < STOP_LEFT))?;
        self.stage.topology.wire("wan-montreal")?.set_rate(STOP_MBIT)?;
        self.stage.site(&self.from).virsh(&["migrate-setmaxdowntime", "vm", STOP_MS]).map(drop)
    }

    /// What is left to copy, in bytes.
    pub(super) fn copied(&self) -> Option<u64> {
        let job = self.stage.site(&self.from).virsh(&["domjobinfo", "vm", "--rawstats"]).ok()?;
        let number =
            |name: &str| job.lines().find_map(|line| line.trim().strip_prefix(name)?.trim().parse::<u64>().ok());
        number("memory_processed:").filter(|done| *done > 0)?;
        number("memory_remaining:")
    }

    /// The machine of the migration under way there, as its service wrote it down last: state and what is in it.
    pub(super) fn machine(&self, site: &str, role: &str) -> Option<(String, serde_json::Value)> {
        let directory = self.stage.site(site).inside("/run/lsm/migrations");
        let mut files = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.path());
        let is = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(role) && name.ends_with(".json")
        };
        let saved: serde_json::Value = serde_json::from_slice(&fs::read(files.find(is)?).ok()?).ok()?;
        let (name, state) = saved["machine"].as_object()?.iter().next()?;
        Some((name.clone(), state.clone()))
    }

    fn qemu_log(&self, site: &str) -> String {
        fs::read_to_string(self.stage.site(site).dir().join("monitor.log")).unwrap_or_default()
    }

    /// Whether QEMU has said so there since the move began.
    pub(super) fn qemu_said(&self, site: &str, words: &str) -> bool {
        let heard = self.heard.get(site).copied().unwrap_or_default();
        self.qemu_log(site).get(heard..).is_some_and(|said| said.contains(words))
    }

    pub(super) fn virsh_said(&mut self, said: &Result<()>) {
        self.complaint = said.as_ref().err().map(|error| chain(error)).unwrap_or_default();
    }

    pub(super) fn home(&self, site: &str) -> Result<&Snapshot> {
        self.homes.get(site).ok_or_else(|| LabError::Other(format!("no undisturbed move to {site} was seen")))
    }

    /// Differences that are meant to be, each with its reason.
    pub(super) fn explained(&self, settled: bool) -> Vec<String> {
        if settled {
            // A port that the kernel listens at for who could not join by his own stays as long as its address: who joined by
            // it uses it.
            return self.meant.iter().cloned().chain(["port 1954".into()]).collect();
        }
        // The endpoint that covers the address in use: made by a flip that was taken back, it cannot be deleted without
        // closing the initial subflow of every connection (ARCHITECTURE.md).
        vec![format!("endpoints and limits of the VM: + {} id", self.address)]
    }

    /// After the source went on with the VM: from QEMU's word to the first answer from its address.
    pub(super) fn time_silence(&mut self) -> Result<()> {
        wait_for("the source to go on with the VM", Duration::from_secs(90), || {
            self.qemu_said(&self.from, "event RESUME").then_some(())
        })?;
        let resumed = Instant::now();
        wait_for("an answer from the VM's address", Duration::from_secs(40), || {
            let mut ping = self.stage.topology.ns("client").command("ping");
            run(ping.args(["-n", "-c", "1", "-W", "1", &self.address])).ok()
        })?;
        self.silent_ms = Some(resumed.elapsed().as_millis() as u64);
        Ok(())
    }

    /// A file of a site's, for as long as the fault lasts.
    pub(super) fn file(&self, site: &str, path: &str) -> PathBuf {
        self.stage.site(site).dir().join(path)
    }

    pub(super) fn write(&self, site: &str, path: &str, text: &str) -> Result<()> {
        let file = self.file(site, path);
        fs::write(&file, text).during(|| format!("write {}", file.display()))
    }

    /// Every wire, rule and proxy as without a fault.
    pub(super) fn heal(&mut self) -> Result<()> {
        self.proxy = None;
        let mut healed = Ok(());
        for undo in std::mem::take(&mut self.undo) {
            healed = healed.and(undo(self));
        }
        self.stage.topology.wire("wan-montreal")?.set_rate(200)?;
        healed
    }

    /// Every subflow, as the kernels of VM and client have it.
    pub(super) fn subflows(&self) -> String {
        let vm = self.stage.guest.exec("lsm-guest status; ss -tin").map(|seen| seen.stdout).unwrap_or_default();
        let client = run(self.stage.topology.ns("client").command("ss").arg("-tin")).unwrap_or_default();
        format!("not settled yet; in the VM:\n{vm}\nat the client:\n{client}")
    }

    /// What everybody said, for whoever has to find out why.
    #[must_use]
    pub fn logs(&self) -> String {
        let look = "cat /var/log/lsm-guest.log; ss -Mtnai; ip mptcp endpoint; timeout 5 lsm-guest status";
        let agent = match self.stage.guest.exec(look) {
            Ok(seen) => seen.stdout + &seen.stderr,
            // Then its kernel and QEMU are all that there is to ask.
            Err(error) => format!(
                "{}\n==== the VM's processors\n{}\n==== its ports\n{}\n==== its console\n{}",
                chain(&error),
                self.stage.guest.processors(),
                self.stage.guest.ports(),
                self.stage.guest.console()
            ),
        };
        let hosts = self.stage.sites.iter().map(|site| {
            let calls = fs::read_to_string(site.dir().join("var/log/libvirt/hook-calls.log")).unwrap_or_default();
            let (name, qemu) = (site.name(), self.qemu_log(site.name()));
            format!("==== lsm-hook in {name}\n{}\n{calls}\n==== QEMU in {name}\n{qemu}", self.stage.log(name))
        });
        let hosts = hosts.collect::<Vec<_>>().join("\n");
        format!("virsh: {}\n{hosts}\n==== lsm-guest\n{agent}\n", self.complaint)
    }
}

fn note(verbose: bool, begun: Instant, what: &str) {
    if verbose {
        eprintln!("{:7.1} s  {what}", begun.elapsed().as_secs_f64());
    }
}
