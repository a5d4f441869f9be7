//! A host as people run it, in a VM: Debian 12 with systemd, libvirt and QEMU as Debian has them, on a kernel that has
//! what the machine's own may lack: vhost-vsock, BPF, and KVM on the SVM that QEMU emulates.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    accelerator, distribution,
    exec::{self, Line, Outcome},
    image::Image,
    shell::{LabError, Process, Result, wait_for},
    topology::{SPARE_BRIDGE, Topology},
};

/// From power on until systemd runs its services, all of it emulated, with another beside it.
const BOOT: Duration = Duration::from_secs(180);
/// Its network cards: the hosts' network, a second one, and the LAN of its VMs.
const CARDS: [&str; 3] = ["wan", "second", "lan"];

/// Killed when dropped.
#[derive(Debug)]
pub struct Hypervisor {
    name: String,
    console: PathBuf,
    line: Mutex<Line>,
    _vm: Process,
}

impl Hypervisor {
    /// Boots it in place of the topology's host of that name: what is `wan`, `second` and `lan` there are its own cards,
    /// `eth0` to `eth2`. `directory` is for its console and its port.
    ///
    /// # Errors
    /// QEMU does not start, or the VM does not come up (its console is in the error).
    pub fn boot(topology: &Topology, name: &str, image: &Image, directory: &Path) -> Result<Hypervisor> {
        let (plan, network) = (topology.site(name), topology.ns(name));
        let (console, port) = (directory.join(format!("{name}.console")), directory.join(format!("{name}.port")));
        let cards: String = CARDS.iter().map(|card| format!("tuntap add host-{card} mode tap\n")).collect();
        network.ip(&format!(
            "{cards}addr flush dev wan\nlink del {SPARE_BRIDGE}\nlink set host-lan master {} up\n\
             link add br-wan type bridge forward_delay 0 mcast_snooping 0\nlink set wan master br-wan\n\
             link set host-wan master br-wan up\nlink set br-wan up\n\
             link add br-second type bridge forward_delay 0 mcast_snooping 0\nlink set second master br-second\n\
             link set host-second master br-second up\nlink set br-second up\n",
            plan.bridge
        ))?;
        let mut qemu = network.command("qemu-system-x86_64");
        let accelerator = if accelerator::kvm_works(image) { "kvm" } else { "tcg,thread=multi" };
        qemu.args(["-machine", "q35", "-accel", accelerator, "-cpu", "max", "-m", "2048", "-smp", "2", "-nodefaults"]);
        // Two libvirts whose machines say they are the same one refuse to migrate to each other.
        qemu.arg("-uuid").arg(format!("4c534d00-0000-4000-8000-0000000000{:02x}", plan.number));
        qemu.args(["-display", "none", "-no-reboot", "-serial"]).arg(format!("file:{}", console.display()));
        qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
        let words = "console=ttyS0 quiet panic=-1 net.ifnames=0 mitigations=off random.trust_cpu=on lsm=apparmor";
        qemu.arg("-append").arg(format!("{words} lab.name={name} {}", distribution::WORD));
        if let Some(disk) = &image.disk {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,readonly=on", disk.display()));
        }
        for (number, card) in CARDS.iter().enumerate() {
            qemu.arg("-netdev").arg(format!("tap,id={card},ifname=host-{card},script=no,downscript=no"));
            let mac = format!("52:54:00:ac:{:02x}:{number:02x}", plan.number);
            qemu.arg("-device").arg(format!("virtio-net-pci,netdev={card},mac={mac},romfile="));
        }
        qemu.args(["-device", "virtio-serial", "-chardev"]);
        qemu.arg(format!("socket,id=lab,server=on,wait=off,path={}", port.display()));
        qemu.arg("-device").arg(format!("virtserialport,chardev=lab,name={}", exec::PORT));
        let vm = Process::start(name, qemu.stdout(Stdio::null()))?;
        let begun = Instant::now();
        let line = Mutex::new(wait_for("QEMU", Duration::from_secs(10), || Line::connect(&port).ok())?);
        let host = Hypervisor { name: name.into(), console, line, _vm: vm };
        host.exec("true", BOOT)
            .map_err(|error| LabError::Other(format!("{error}\nIts console:\n{}", host.console())))?;
        eprintln!("{name} is up after {:.1} s", begun.elapsed().as_secs_f64());
        Ok(host)
    }

    /// Runs a shell command in it.
    ///
    /// # Errors
    /// It does not answer in time. A failing command is not an error.
    pub fn exec(&self, command: &str, limit: Duration) -> Result<Outcome> {
        let mut line = self.line.lock().map_err(|_| LabError::Other("a thread panicked".into()))?;
        line.ask(command, Instant::now() + limit)
            .map_err(|error| LabError::Other(format!("on {}, {command}: {error}", self.name)))
    }

    /// The same, where anything but status 0 is an error; returns the standard output.
    ///
    /// # Errors
    /// It does not answer in time, or the command failed.
    pub fn must(&self, command: &str, limit: Duration) -> Result<String> {
        let Outcome { status, stdout, stderr } = self.exec(command, limit)?;
        if status == 0 {
            return Ok(stdout);
        }
        Err(LabError::Other(format!("on {}, {command}: status {status}\n{stdout}{stderr}", self.name)))
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }
}
