//! The agent without a VM: it moves between two vNICs of a namespace. What moves is all that it sees of a migration, from
//! one vNIC to the other and back, on this machine's own kernel.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{
    image::static_program,
    netns::Netns,
    shell::{During as _, LabError, Process, Result, program, run, wait_for},
    traffic::{ClientOptions, ClientProcess, TrafficError, chain},
};

/// The client's one address.
pub const CLIENT: &str = "10.9.0.1";
/// Whatever is waited for comes within this.
pub const LIMIT: Duration = Duration::from_secs(60);

/// One of the places where the VM can be: its vNIC for that LAN, its address there, and the gateway.
#[derive(Debug, Clone, Copy)]
pub struct Lan {
    pub vnic: &'static str,
    pub mac: &'static str,
    pub gateway: &'static str,
    pub address: &'static str,
}

pub const A: Lan = Lan { vnic: "a", mac: "52:54:00:aa:00:01", gateway: "10.1.0.1", address: "10.1.0.7" };
pub const B: Lan = Lan { vnic: "b", mac: "52:54:00:aa:00:02", gateway: "10.2.0.1", address: "10.2.0.7" };

/// A VM in LAN A with the agent, and a client with one address, which is also the gateway of both LANs.
#[derive(Debug)]
pub struct Crossing {
    // Dropped in this order: programs before namespaces.
    programs: Vec<Process>,
    agent: Process,
    program: PathBuf,
    directory: PathBuf,
    pub client: Netns,
    pub vm: Netns,
}

impl Crossing {
    /// Builds it, under a name of its own.
    ///
    /// # Errors
    /// Not root, or the agent does not start.
    pub fn set(name: &str) -> Result<Crossing> {
        let unique = format!("cross{}-{name}", std::process::id());
        let (client, vm) = (Netns::new(&format!("{unique}-c"))?, Netns::new(&format!("{unique}-v"))?);
        client.ip(&format!("address add {CLIENT}/32 dev lo"))?;
        for Lan { vnic, mac, gateway, .. } in [A, B] {
            let lan = gateway.trim_end_matches(".1");
            let there = vm.name();
            client.ip(&format!("link add g{vnic} type veth peer name {vnic} address {mac} netns {there}"))?;
            client.ip(&format!("address add {gateway}/24 dev g{vnic}\nlink set dev g{vnic} up"))?;
            // With one address only, whichever way it goes; the same for whoever opens many connections.
            client.ip(&format!("route replace {lan}.0/24 dev g{vnic} src {CLIENT}"))?;
        }
        vm.ip(&format!("address add {}/24 dev a\nlink set dev a up\nroute add default via {}", A.address, A.gateway))?;
        client.ip("mptcp limits set subflows 8 add_addr_accepted 8")?;
        // The kernel binds joins to ports of their own, and looks for free ones ever longer: this client is many.
        client.sysctl(&[("net/ipv4/ip_local_port_range", "1024 65535")])?;
        let program = static_program("lsm-guest", "lsm-guest")?;
        let directory = std::env::temp_dir().join(&unique);
        fs::create_dir_all(&directory).during(|| format!("make {}", directory.display()))?;
        let log = File::create(directory.join("log")).during(|| "make the agent's log".into())?;
        let config = directory.join("guest.toml");
        let history = directory.join("history");
        fs::write(&config, format!("[reports]\nhistory = \"{}\"\n", history.display()))
            .during(|| format!("write {}", config.display()))?;
        let mut command = vm.command(&program.display().to_string());
        command.arg("--directory").arg(&directory).args(["run", "--config"]).arg(config).stderr(log);
        // The machine's own bus is no place for this agent.
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
        let agent = Process::start("lsm-guest", &mut command)?;
        let crossing = Crossing { programs: Vec::new(), agent, program, directory, client, vm };
        wait_for("the agent", LIMIT, || crossing.directory.join("guest.sock").exists().then_some(()))?;
        Ok(crossing)
    }

    /// Traffic with the VM at the first address, on ports that begin with `port`; `at`: more that is said to the VM's program.
    ///
    /// # Errors
    /// A connection did not come about.
    pub fn traffic(
        &mut self,
        at: &[&str],
        port: u16,
        connections: u16,
        by_vm: u16,
        period: Duration,
    ) -> Result<ClientProcess> {
        let traffic = program("lsm-traffic")?;
        let traffic = traffic.display().to_string();
        let mut serve = self.vm.command(&traffic);
        serve.args(["serve", "--tcp", &port.to_string()]).args(at);
        self.programs.push(Process::start("lsm-traffic serve", &mut serve)?);
        wait_for("the server to listen", LIMIT, || {
            let ss = run(self.vm.command("ss").args(["-Hltn", &format!("sport = :{port}")])).ok()?;
            (!ss.is_empty()).then_some(())
        })?;
        let to = A.address.parse().map_err(|_| LabError::Other(format!("{} is no address", A.address)))?;
        let options = ClientOptions {
            tcp: port,
            udp: None,
            connections,
            listen: port + 1,
            accept: by_vm,
            plain: 0,
            period,
            probe: Duration::from_secs(3_600),
            ..ClientOptions::new(to)
        };
        let mut client = ClientProcess::spawn(self.client.command(&traffic), &options).map_err(lab)?;
        if by_vm > 0 {
            let mut open = self.vm.command(&traffic);
            open.args(["open", "--to", &format!("{CLIENT}:{}", port + 1), "--count", &by_vm.to_string()]);
            self.programs.push(Process::start("lsm-traffic open", &mut open)?);
        }
        client.ready(LIMIT).map_err(lab)?;
        Ok(client)
    }

    /// A command of the agent's.
    #[must_use]
    pub fn command(&self, words: &str) -> Command {
        let mut command = self.vm.command(&self.program.display().to_string());
        command.arg("--directory").arg(&self.directory).args(words.split(' '));
        command
    }

    /// What it answers.
    ///
    /// # Errors
    /// What it complained of, with the agent's log.
    pub fn ask(&self, words: &str) -> Result<Value> {
        let text = run(self.command(words).arg("--json")).map_err(|error| self.with_log(&error))?;
        serde_json::from_str(&text).map_err(|error| LabError::Other(format!("{error} in {text}")))
    }

    /// What the agent has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// # Errors
    /// As [`Crossing::ask`].
    pub fn prepare(&self, old: Lan, new: Lan) -> Result<Value> {
        let Lan { mac, address, gateway, .. } = new;
        self.ask(&format!("prepare --old {} --new {mac} --address {address}/24 --gateway {gateway}", old.mac))
    }

    /// The same, and so many have joined and have not. Of thousands at once some wait for the kernel to repeat a SYN, for
    /// longer than the preparation waits for them.
    ///
    /// # Errors
    /// They have not, with the agent's log.
    pub fn prepare_with(&self, old: Lan, new: Lan, joined: usize, waiting: usize) -> Result<()> {
        let mut counts = self.prepare(old, new)?;
        wait_for(&format!("{joined} to have joined and {waiting} not"), LIMIT, || {
            if counts["joined"] == joined && counts["waiting"] == waiting {
                return Some(());
            }
            counts = self.ask("status").ok()?;
            None
        })
        .map_err(|error| self.with_log(&error))
    }

    /// The flip and all that follows from it, until the old vNIC is the spare.
    ///
    /// # Errors
    /// It does not settle, with the agent's log.
    pub fn settle(&self) -> Result<()> {
        self.ask("switch --settle")?;
        let idle = || (self.ask("status").ok()?["state"] == "idle").then_some(());
        wait_for("the agent to settle", LIMIT, idle).map_err(|error| self.with_log(&error))
    }

    /// CPU time of the agent so far, and the most memory that it ever had, in KiB.
    ///
    /// # Errors
    /// It is gone.
    pub fn spent(&self) -> Result<(Duration, u64)> {
        let of = |file: &str| {
            let path = Path::new("/proc").join(self.agent.pid().to_string()).join(file);
            fs::read_to_string(&path).during(|| format!("read {}", path.display()))
        };
        let (stat, status) = (of("stat")?, of("status")?);
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        // utime and stime, fields 14 and 15, in hundredths of a second (USER_HZ, the same everywhere).
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let peak =
            status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().trim_end_matches(" kB").parse().ok());
        Ok((Duration::from_millis(ticks * 10), peak.unwrap_or(0)))
    }

    fn with_log(&self, error: &LabError) -> LabError {
        LabError::Other(format!("{}\n{}", crate::shell::chain(error), self.log()))
    }
}

impl Drop for Crossing {
    fn drop(&mut self) {
        self.agent.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn lab(error: TrafficError) -> LabError {
    LabError::Other(chain(&error))
}
