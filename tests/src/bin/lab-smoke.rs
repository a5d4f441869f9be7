//! Brings the lab up, moves a plain VM there and back, and takes everything down.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use clap::Parser;
use lsm_tests::{
    accelerator,
    domain::Domain,
    guest::Guest,
    image::ImageBuilder,
    pki::Authority,
    shell::{LabError, Result, chain, run, wait_for},
    site::{LabDir, Site, SiteOptions},
    topology::{Topology, TopologyOptions},
};

/// Brings the lab up, moves a plain VM there and back, and takes everything down.
#[derive(Parser)]
struct Arguments {
    /// Series of the VM's kernel: 6.12 or 6.1.
    #[arg(long, default_value = "6.12")]
    kernel: String,
    /// Number of migrations.
    #[arg(long, default_value_t = 2)]
    moves: usize,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
}

/// Prints each step with the time it took.
struct Steps(Instant);

impl Steps {
    fn done(&mut self, what: &str) {
        println!("{:8.3} s  {what}", self.0.elapsed().as_secs_f64());
        self.0 = Instant::now();
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let before = Traces::now();
    let start = Instant::now();
    let result = smoke(&arguments);
    println!("{:8.3} s  all of it", start.elapsed().as_secs_f64());
    if let Err(error) = &result {
        eprintln!("lab-smoke: {}", chain(error));
    }
    // The keeper's own end comes last.
    let clean = wait_for("nothing to be left", Duration::from_secs(5), || (Traces::now() == before).then_some(()));
    if clean.is_err() {
        eprintln!("lab-smoke: left behind: {:?}", Traces::now().since(&before));
    }
    if result.is_ok() && clean.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn smoke(arguments: &Arguments) -> Result<()> {
    let mut steps = Steps(Instant::now());
    let image = ImageBuilder::new(&arguments.kernel).build()?;
    steps.done("image");
    let kvm = accelerator::kvm_works(&image);
    steps.done(if kvm { "KVM works" } else { "no KVM: emulation" });
    let topology = Topology::new(&TopologyOptions::default())?;
    // Nobody rewrites this VM's XML: it finds a bridge of the same name wherever it goes, without a LAN behind it.
    topology.ns("dallas").ip("link add br-montreal type bridge forward_delay 0\nlink set br-montreal up\n")?;
    steps.done("network");
    let lab = LabDir::new(&topology)?;
    let authority = Authority::new("LSM lab")?;
    let options = SiteOptions { kvm, ..SiteOptions::default() };
    let mut sites = Vec::new();
    for plan in topology.sites() {
        sites.push(Site::start(&topology, &lab, &plan.name, &authority, &options)?);
        steps.done(&format!("site {}", plan.name));
    }
    let mut domain = Domain::new("vm", image, topology.site("montreal"));
    domain.kvm = kvm;
    domain.vcpus = arguments.vcpus;
    let guest = Guest::boot(&domain, &sites)?;
    steps.done("VM booted");
    print!(
        "{}",
        guest.must("uname -r; cut -d' ' -f1 /proc/uptime; ip -br addr; ip mptcp limits; ls /dev/virtio-ports")?
    );
    steps.done("commands in the VM");
    let address = domain.address.to_string();
    let ping = || run(topology.ns("client").command("ping").args(["-n", "-c", "5", "-i", "0.1", "-W", "2", &address]));
    println!("{}", ping()?.lines().last().unwrap_or_default());
    steps.done("ping from the client");
    for number in 0..arguments.moves {
        let (from, to) = (&sites[number % 2], &sites[(number + 1) % 2]);
        from.virsh(&["migrate", "--live", "vm", &format!("qemu+tcp://{}/system", to.name())])?;
        steps.done(&format!("migrated to {}", to.name()));
        let job = to.virsh(&["domjobinfo", "--completed", "vm"])?;
        let told = job.lines().filter(|line| line.contains("downtime") || line.contains("processed"));
        told.for_each(|line| println!("            {}", line.trim()));
        if guest.site()?.name() != to.name() {
            return Err(LabError::Other(format!("the VM is not on {}", to.name())));
        }
        guest.must("echo there > /tmp/was && cat /proc/uptime")?;
        steps.done("command in the VM");
    }
    if arguments.moves.is_multiple_of(2) {
        println!("{}", ping()?.lines().last().unwrap_or_default());
        steps.done("ping from the client");
    }
    if guest.kernel_died() {
        return Err(LabError::Other(guest.console()));
    }
    drop(guest);
    steps.done("VM destroyed");
    drop(sites);
    steps.done("sites stopped");
    drop(lab);
    drop(topology);
    steps.done("network removed");
    Ok(())
}

/// What a lab could leave on the machine.
#[derive(Debug, PartialEq, Eq)]
struct Traces(BTreeSet<String>);

impl Traces {
    fn now() -> Traces {
        let mut seen = BTreeSet::new();
        let own = format!("lsm{}.", std::process::id());
        let namespaces = run(Command::new("ip").args(["netns", "list"])).unwrap_or_default();
        seen.extend(namespaces.lines().filter(|line| line.starts_with(&own)).map(|line| format!("netns {line}")));
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        seen.extend(mounts.lines().filter(|line| line.contains(&own)).map(|line| format!("mount {line}")));
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            // A child of ours, or one that names a directory or namespace of ours, or that lives in such a namespace.
            if command.contains(&own) {
                seen.insert(format!("process {} {command}", entry.file_name().to_string_lossy()));
            }
        }
        let temporary = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
        let names = temporary.map(|entry| entry.file_name().to_string_lossy().into_owned());
        seen.extend(names.filter(|name| name.starts_with(&own)).map(|name| format!("directory {name}")));
        Traces(seen)
    }

    fn since<'a>(&'a self, before: &'a Traces) -> Vec<&'a String> {
        self.0.difference(&before.0).collect()
    }
}
