//! The whole product on the lab: two sites with `lsm-hook`, a VM with `lsm-guest`, and its traffic program.

mod given;
mod host_toml;
mod image;

use std::{
    io::Read as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use crate::{
    accelerator,
    cores::Cores,
    distribution::Owner,
    domain::{AGENT_PORT, Channel, Domain},
    guest::Guest,
    image::static_program,
    lan::{Lan, LanOptions},
    needs,
    pki::Authority,
    shell::{During as _, LabError, Process, Result, program, run, wait_for},
    site::{LabDir, Site, SiteOptions, Transport},
    topology::{Topology, TopologyOptions},
    vsock_device::VsockDevice,
};

pub use self::image::image;

/// Where the VM's traffic program listens.
pub const TCP: u16 = 5001;
/// The same for datagrams.
pub const UDP: u16 = 5002;

/// What the operator of the lab's hosts wants.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// Series of the VM's kernel: `6.12` or `6.1`.
    pub kernel: String,
    /// The keys of `[policy]` in every host's host.toml, as lines.
    pub policy: String,
    pub topology: TopologyOptions,
    /// Whether the VM has an agent.
    pub agent: bool,
    /// Whether its description names it as LSM's.
    pub metadata: bool,
    /// Virtual CPUs of the VM.
    pub vcpus: u32,
    /// Cores that are for them alone.
    pub cores: Option<Cores>,
    /// Its memory in MiB.
    pub memory_mib: u32,
    /// How hosts reach the VM's agent.
    pub channel: Channel,
    /// Programs of the lab's that the VM has too.
    pub programs: Vec<String>,
    /// Programs that are installed here and that it has too, with their libraries.
    pub installed: Vec<String>,
    /// More modules for its kernel.
    pub modules: Vec<String>,
    /// More devices, as XML.
    pub devices: String,
    /// The VM is a whole distribution, with this owner of its network cards.
    pub distribution: Option<Owner>,
    /// The same on a disk of its own, with an agent installed and somebody who owns its network cards.
    pub disk: Option<PathBuf>,
    /// How VMs get their addresses of each LAN, as in host.toml. A DHCP server and a router that advertises itself are on
    /// each LAN where that is not `static`, or the VM is a distribution.
    pub addressing: String,
}

impl Default for StageOptions {
    fn default() -> Self {
        StageOptions {
            kernel: "6.12".into(),
            policy: String::new(),
            topology: TopologyOptions::default(),
            agent: true,
            metadata: true,
            vcpus: 1,
            cores: None,
            memory_mib: 256,
            channel: Channel::Serial,
            programs: Vec::new(),
            installed: Vec::new(),
            modules: Vec::new(),
            devices: String::new(),
            distribution: None,
            disk: None,
            addressing: "static".into(),
        }
    }
}

/// The VM's CID, where the lab chooses it.
const CID: u32 = 4;

/// The VM's programs run by then.
const PROGRAMS: Duration = Duration::from_secs(30);
/// The same where systemd starts them, perhaps after an installation, on a busy machine.
const DISTRIBUTION: Duration = Duration::from_secs(360);

/// How the VM starts its agent: as the unit has it.
const AGENT: &str = "chrt -r 20 /bin/lsm-guest run";

/// `virsh migrate` under way.
#[derive(Debug)]
pub struct Migration(Process);

impl Migration {
    /// Waits for its end.
    ///
    /// # Errors
    /// What virsh complained of, or it did not end within `limit`.
    pub fn end(&mut self, limit: Duration) -> Result<()> {
        let status = self.0.wait(limit)?;
        let mut said = String::new();
        if let Some(stderr) = &mut self.0.child().stderr {
            let _ = stderr.read_to_string(&mut said);
        }
        if status.success() { Ok(()) } else { Err(LabError::Other(format!("virsh migrate: {status}: {said}"))) }
    }

    /// Whether it still goes on.
    pub fn goes_on(&mut self) -> bool {
        self.0.is_running()
    }
}

/// What is missing to run the product here, if anything. Where everything is expected (`LSM_EXPECT_ALL`), that is a
/// failure.
///
/// # Panics
/// Something is missing and `LSM_EXPECT_ALL` is set.
#[must_use]
pub fn lacking() -> bool {
    let needed = ["/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64", "/usr/sbin/nft", "/bin/busybox"];
    needs::lacking(needs::missing(&needed, "run tests/install"))
}

/// It runs. Dropping it takes everything down.
#[derive(Debug)]
pub struct Stage {
    pub guest: Guest,
    services: Vec<Process>,
    /// Where the VM has [`Channel::VsockDevice`].
    pub vsock: Option<VsockDevice>,
    pub sites: Vec<Arc<Site>>,
    hook: PathBuf,
    /// Who gives out addresses, in the order of the sites; see [`StageOptions::addressing`].
    pub lans: Vec<Lan>,
    _lab: LabDir,
    pub topology: Topology,
}

impl Stage {
    /// Builds everything and boots the VM on the first site. `told` hears what has been done.
    ///
    /// # Errors
    /// Whatever did not come up, with its own words.
    pub fn set(options: &StageOptions, told: impl FnMut(&str)) -> Result<Stage> {
        Stage::set_with(options, told, |_| Ok(()))
    }

    /// The same, with something done to each site before the VM boots.
    ///
    /// # Errors
    /// Whatever did not come up, with its own words.
    pub fn set_with(
        options: &StageOptions,
        mut told: impl FnMut(&str),
        mut prepare: impl FnMut(&Site) -> Result<()>,
    ) -> Result<Stage> {
        let hook = static_program("lsm-hook", "lsm-hook")?;
        let whole = options.distribution.is_some() || options.disk.is_some();
        let image = image(options)?.build()?;
        told(&format!("built lsm-guest, lsm-hook and a VM with Linux {}", image.release));
        let kvm = accelerator::kvm_works(&image);
        let topology = Topology::new(&options.topology)?;
        told("made the client, its router, two LANs with their gateways, and the WAN");
        let lab = LabDir::new(&topology)?;
        let authority = Authority::new("LSM lab")?;
        let (mut sites, mut services) = (Vec::new(), Vec::new());
        for plan in topology.sites() {
            let site_options = SiteOptions {
                hook: Some(program("lab-hook")?),
                files: vec![
                    ("/etc/lsm/host.toml".into(), host_toml::text(&topology, &plan.name, options)),
                    ("/etc/lsm/real-hook".into(), hook.display().to_string()),
                ],
                kvm,
            };
            let site = Site::start(&topology, &lab, &plan.name, &authority, &site_options)?;
            prepare(&site)?;
            services.push(serve(&site, &hook)?);
            services.push(monitor(&site)?);
            told(&format!("started libvirtd, libvirt-dbus and lsm-hook in {}", plan.name));
            sites.push(site);
        }
        let mut domain = Domain::new("vm", image, &topology.sites()[0]);
        domain.kvm = kvm;
        domain.vcpus = options.vcpus;
        domain.cores = options.cores.clone();
        domain.memory_mib = options.memory_mib;
        domain.family = options.topology.family;
        domain.channel = options.channel;
        domain.devices.clone_from(&options.devices);
        if !options.metadata {
            domain.metadata = None;
        }
        let vsock = match options.channel {
            Channel::VsockDevice => Some(VsockDevice::start(&sites[0], CID)?),
            Channel::Serial | Channel::Vsock => None,
        };
        let mut lans = Vec::new();
        if whole || options.addressing != "static" {
            let reserved = vec![(domain.mac_a.clone(), 10)];
            for plan in topology.sites() {
                let lan_options = LanOptions { reserved: reserved.clone(), ..LanOptions::default() };
                lans.push(Lan::serve(&topology, &plan.name, &lan_options)?);
            }
        }
        let guest = Guest::boot(&domain, &sites)?;
        let up = format!(
            "grep -qi ':{TCP:04X} ' /proc/net/tcp /proc/net/tcp6{}",
            if options.agent { " && test -S /run/lsm/guest.sock" } else { "" }
        );
        let up = if whole { format!("{up} && ip -4 route show default | grep -q eth0") } else { up };
        // A question costs an emulated CPU a good part of what it has.
        let up = if whole { format!("{up} || {{ sleep 1; false; }}") } else { up };
        wait_for("the VM's programs", if whole { DISTRIBUTION } else { PROGRAMS }, || {
            guest.exec(&up).ok().filter(|outcome| outcome.status == 0).map(drop)
        })
        .map_err(|error| LabError::Other(format!("{error}\nIts console:\n{}", guest.console())))?;
        told(&format!("booted the VM in {} ({})", sites[0].name(), if kvm { "KVM" } else { "emulation" }));
        Ok(Stage { guest, services, vsock, sites, hook, lans, _lab: lab, topology })
    }

    /// The site of that name.
    ///
    /// # Panics
    /// There is none: the test is wrong.
    #[must_use]
    pub fn site(&self, name: &str) -> &Arc<Site> {
        self.sites.iter().find(|site| site.name() == name).unwrap_or_else(|| panic!("the stage has no site {name}"))
    }

    /// `virsh migrate --live` to that site, as an operator types it on the site where the VM is.
    ///
    /// # Errors
    /// What virsh said.
    pub fn migrate(&self, to: &str) -> Result<()> {
        let from = self.guest.site()?;
        let name = self.guest.domain().name.as_str();
        from.virsh(&["migrate", "--live", name, &format!("qemu+tcp://{to}/system")]).map(drop)
    }

    /// The same in the background, with more arguments for virsh: `--bandwidth`, say, for time to do something meanwhile.
    ///
    /// # Errors
    /// virsh could not be started.
    pub fn begin(&self, to: &str, more: &[&str]) -> Result<Migration> {
        let mut virsh = self.guest.site()?.command("virsh");
        virsh.args(["--quiet", "--connect", "qemu:///system", "migrate", "--live", &self.guest.domain().name]);
        virsh.arg(format!("qemu+tcp://{to}/system")).args(more).stdout(Stdio::null()).stderr(Stdio::piped());
        Process::start("virsh migrate", &mut virsh).map(Migration)
    }

    /// Waits until the agent is in one of these states.
    ///
    /// # Errors
    /// It is not, after `limit`.
    pub fn agent_is(&self, states: &[&str], limit: Duration) -> Result<serde_json::Value> {
        let mut last = String::new();
        let found = wait_for(&format!("the agent to be {}", states.join(" or ")), limit, || {
            let outcome = self.guest.exec("lsm-guest status --json").ok()?;
            last = format!("{}{}", outcome.stdout, outcome.stderr);
            let status: serde_json::Value = serde_json::from_str(&outcome.stdout).ok()?;
            states.contains(&status["state"].as_str()?).then_some(status)
        });
        found.map_err(|error| LabError::Other(format!("{error}; it said last: {last}")))
    }

    /// Waits until nothing but plain connections is left of the old path.
    ///
    /// # Errors
    /// More is, or less, after `limit`.
    pub fn holds_old_address(&self, limit: Duration) -> Result<()> {
        wait_for("the old address to be held", limit, || {
            let status = self.agent_is(&["settling"], limit).ok()?;
            status["awaiting"].as_str()?.contains("legacy").then_some(())
        })
    }

    /// The host's end of the agent's virtio-serial port: the service opens it during migrations only.
    ///
    /// # Errors
    /// libvirt does not know the VM, or its description has no such channel.
    pub fn agent_port(&self) -> Result<PathBuf> {
        let site = self.guest.site()?;
        let xml = site.virsh(&["dumpxml", &self.guest.domain().name])?;
        let channel = xml.split("<channel").find(|channel| channel.contains(AGENT_PORT));
        let path = channel.and_then(|channel| channel.split("path='").nth(1)?.split('\'').next());
        path.map(|path| site.inside(path)).ok_or_else(|| LabError::Other(format!("the VM has no port {AGENT_PORT}")))
    }

    /// The last line of the agent's log that says this.
    ///
    /// # Errors
    /// None does, after `limit`.
    pub fn agent_said(&self, words: &str, limit: Duration) -> Result<String> {
        wait_for(&format!("the agent to log {words:?}"), limit, || {
            let log = self.guest.exec("cat /var/log/lsm-guest.log").ok()?.stdout;
            log.lines().rev().find(|line| line.contains(words)).map(str::to_owned)
        })
    }

    /// Kills the agent without warning.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn kill_agent(&self) -> Result<()> {
        self.guest.must("kill -KILL $(pidof lsm-guest); while pidof lsm-guest >/dev/null; do sleep 0.1; done").map(drop)
    }

    /// Starts it again, as the image does.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn start_agent(&self) -> Result<()> {
        self.guest.must(&format!("({AGENT} </dev/null >>/var/log/lsm-guest.log 2>&1 &)")).map(drop)
    }

    /// The host's program, as sites can run it.
    #[must_use]
    pub fn hook(&self) -> &std::path::Path {
        &self.hook
    }

    /// The operator's `lsm-hook` there.
    ///
    /// # Errors
    /// What it complained of.
    pub fn lsm_hook(&self, site: &str, arguments: &[&str]) -> Result<String> {
        run(self.site(site).command(&self.hook).args(arguments))
    }

    /// What `lsm-hook status --json` says there.
    ///
    /// # Errors
    /// The service does not answer.
    pub fn status(&self, site: &str) -> Result<serde_json::Value> {
        let text = self.lsm_hook(site, &["status", "--json"])?;
        serde_json::from_str(&text).map_err(|error| LabError::Other(format!("{error} in {text}")))
    }

    /// What `lsm-hook history --json` says there, the oldest first.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn history(&self, site: &str) -> Result<Vec<serde_json::Value>> {
        let text = self.lsm_hook(site, &["history", "--json"])?;
        serde_json::from_str(&text).map_err(|error| LabError::Other(format!("{error} in {text}")))
    }

    /// What `lsm-guest history --json` says in the VM, the oldest first.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn guest_history(&self) -> Result<Vec<serde_json::Value>> {
        let text = self.guest.must("lsm-guest history --json")?;
        serde_json::from_str(&text).map_err(|error| LabError::Other(format!("{error} in {text}")))
    }

    /// How many tunnel devices stand in that host's namespace, whatever the service says of them.
    ///
    /// # Errors
    /// `ip` failed.
    pub fn tunnels(&self, site: &str) -> Result<usize> {
        let text = run(self.topology.ns(site).command("ip").args(["-o", "link", "show", "type", "vxlan"]))?;
        Ok(text.lines().count())
    }

    /// Waits until no host has a tunnel, nor a migration under way.
    ///
    /// # Errors
    /// One has, after `limit`.
    pub fn settled(&self, limit: Duration) -> Result<()> {
        wait_for("every tunnel to be taken down", limit, || {
            let idle = |site: &Arc<Site>| {
                let none = self.status(site.name()).ok()?["migrations"].as_array()?.is_empty();
                (none && self.tunnels(site.name()).ok()? == 0).then_some(())
            };
            self.sites.iter().all(|site| idle(site).is_some()).then_some(())
        })
    }

    /// Waits until one of the VM's two cards is down: a move may be over some seconds before its old card is.
    ///
    /// # Errors
    /// Both are up, after `limit`.
    pub fn spare_is_down(&self, limit: Duration) -> Result<()> {
        wait_for("the spare vNIC to be down", limit, || {
            self.guest.exec("ip -o link show up").ok().filter(|up| up.stdout.matches(": eth").count() == 1).map(drop)
        })
    }

    /// Kills the host service there.
    pub fn stop_service(&mut self, site: &str) {
        let index = self.service(site);
        self.services[index].kill();
        // It is a grandchild: dead at once, gone a little later.
        let socket = self.site(site).inside("/run/lsm/hook.sock");
        let _ = wait_for("the service to go", Duration::from_secs(5), || {
            std::os::unix::net::UnixStream::connect(&socket).is_err().then_some(())
        });
    }

    fn service(&self, site: &str) -> usize {
        2 * self.sites.iter().position(|known| known.name() == site).unwrap_or_default()
    }

    /// Kills the host service there and starts it again.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_service(&mut self, site: &str) -> Result<()> {
        let site = self.site(site).clone();
        self.stop_service(site.name());
        let index = self.service(site.name());
        self.services[index] = serve(&site, &self.hook)?;
        Ok(())
    }

    /// Ends libvirtd there with SIGKILL and starts it again; VMs run on.
    ///
    /// # Errors
    /// It does not start.
    pub fn restart_libvirtd(&mut self, site: &str, transport: Transport) -> Result<()> {
        let site = self.site(site).clone();
        site.restart_libvirtd(transport)?;
        let index = self.service(site.name()) + 1;
        self.services[index] = monitor(&site)?;
        Ok(())
    }

    /// Puts `text` into the host's configuration in place of `old`, without a word to the service. Gives the whole as it
    /// was.
    ///
    /// # Errors
    /// It cannot be read or written, or has no such text.
    pub fn reconfigure(&self, site: &str, old: &str, text: &str) -> Result<String> {
        let file = self.site(site).dir().join("etc/lsm/host.toml");
        let was = std::fs::read_to_string(&file).during(|| format!("read {}", file.display()))?;
        if !was.contains(old) {
            return Err(LabError::Other(format!("{} has no {old:?}: {was}", file.display())));
        }
        std::fs::write(&file, was.replacen(old, text, 1)).during(|| format!("write {}", file.display()))?;
        Ok(was)
    }

    /// What everybody has to say when something went wrong: both services, the agent, the VM's network, the LANs' servers.
    #[must_use]
    pub fn story(&self) -> String {
        let ask = "cat /var/log/lsm-guest.log 2>/dev/null || journalctl --no-pager -o short-monotonic -u lsm-guest; \
                   ip addr; ip rule; ip -6 rule; ip route show table all; ip mptcp endpoint; ip neigh; ss -tinHO; \
                   timeout 5 lsm-guest status";
        let guest = self.guest.exec(ask).map_or_else(|error| crate::shell::chain(&error), |outcome| outcome.stdout);
        let hosts = self.sites.iter().map(|site| format!("---- {}\n{}\n", site.name(), self.log(site.name())));
        let lans = self.lans.iter().map(|lan| format!("---- a LAN's servers\n{}\n", lan.log()));
        hosts.chain([format!("---- the VM\n{guest}\n")]).chain(lans).collect()
    }

    /// What the host service there has logged.
    #[must_use]
    pub fn log(&self, site: &str) -> String {
        std::fs::read_to_string(self.site(site).dir().join("lsm-hook.log")).unwrap_or_default()
    }
}

/// Writes QEMU's events down, for as long as libvirtd runs.
fn monitor(site: &Site) -> Result<Process> {
    let mut monitor = site.command("virsh");
    monitor.args(["--quiet", "--connect", "qemu:///system", "qemu-monitor-event", "--loop"]);
    site.service("monitor", &mut monitor)
}

fn serve(site: &Site, hook: &Path) -> Result<Process> {
    let service = site.service("lsm-hook", site.command("chrt").args(["-r", "1"]).arg(hook).arg("serve"))?;
    let socket = site.inside("/run/lsm/hook.sock");
    wait_for("lsm-hook to listen", Duration::from_secs(10), || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok().then_some(())
    })
    .map_err(|error| {
        let log = std::fs::read_to_string(site.dir().join("lsm-hook.log")).unwrap_or_default();
        LabError::Other(format!("{error}; it said: {log}"))
    })?;
    Ok(service)
}
