//! The first process of the lab's VMs: mounts, modules, network, services, and the lab's commands. In a VM that is a host
//! itself, `ask SOCKET COMMAND` has such a command run by a VM of its own.

use std::{
    ffi::CStr,
    fs::{self, File},
    io,
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use lsm_tests::{distribution, exec, shell::chain};
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    sys::wait::wait,
};

/// A command's time, in a VM of a VM.
const ASK: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["exec"] => return serve(),
        ["ask", socket, command] => return ask(Path::new(socket), command),
        _ => {}
    }
    // After a failure the VM stays up: its console says what failed.
    for (what, result) in [
        ("mounts", mounts()),
        ("modules", modules()),
        ("distribution", distribution()),
        ("network", network()),
        ("services", services()),
    ] {
        if let Err(error) = result {
            println!("lab-init: {what}: {error}");
        }
    }
    let exec = Command::new("/init").arg("exec").spawn();
    println!("lab-init: up {}", fs::read_to_string("/proc/uptime").unwrap_or_default().trim());
    if let Err(error) = exec {
        println!("lab-init: exec: {error}");
    }
    loop {
        if wait().is_err() {
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
}

fn mounts() -> io::Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)?;
    }
    fs::create_dir_all("/sys/fs/cgroup")?;
    let _ = mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), None::<&str>);
    fs::create_dir_all("/run/lsm")
}

/// A whole batch of 64 frames takes an emulated CPU long that has to translate the code first, and nothing else runs
/// meanwhile.
const CARD_PARAMETERS: &CStr = c"napi_weight=8";

fn modules() -> io::Result<()> {
    for path in fs::read_to_string("/etc/lab/modules")?.lines() {
        let parameters = if path.ends_with("/virtio_net.ko") { CARD_PARAMETERS } else { c"" };
        if let Err(error) = finit_module(File::open(path)?, parameters, ModuleInitFlags::empty()) {
            println!("lab-init: {path}: {error}");
        }
    }
    // As udev would.
    fs::create_dir_all("/dev/virtio-ports")?;
    for port in fs::read_dir("/sys/class/virtio-ports")?.flatten() {
        let name = fs::read_to_string(port.path().join("name"))?;
        let device = Path::new("/dev").join(port.file_name());
        std::os::unix::fs::symlink(device, Path::new("/dev/virtio-ports").join(name.trim()))?;
    }
    Ok(())
}

/// `lab.address=A/LEN lab.gateway=G lab.mtu=M lab.name=N` of the kernel's command line, for the first card; of IPv6
/// `lab.address6=` and `lab.gateway6=`.
fn network() -> io::Result<()> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    if let Some(name) = value("lab.name=") {
        fs::write("/proc/sys/kernel/hostname", name)?;
    }
    let mut commands = String::from("link set lo up\n");
    if let Some(mtu) = value("lab.mtu=") {
        commands.push_str(&format!("link set eth0 mtu {mtu}\nlink set eth1 mtu {mtu}\n"));
    }
    if let Some(address) = value("lab.address=") {
        commands.push_str(&format!("addr add {address} dev eth0\nlink set eth0 up\n"));
    }
    if let Some(gateway) = value("lab.gateway=") {
        commands.push_str(&format!("route add default via {gateway}\n"));
    }
    // No IPv6 chatter from the lab's cards unless a test wants it.
    let v6 = value("lab.address6=");
    if let (Some(address), Some(gateway)) = (v6, value("lab.gateway6=")) {
        commands.push_str(&format!(
            "addr add {address} dev eth0 nodad\nlink set eth0 up\nroute add default via {gateway} dev eth0\n"
        ));
    }
    fs::write("/tmp/network", commands)?;
    for card in ["default", "eth0", "eth1"] {
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{card}/disable_ipv6"), if v6.is_some() { "0" } else { "1" });
    }
    for card in ["eth0", "eth1"] {
        // Received frames are a thread's work, which programs of a real-time priority need not wait for.
        let _ = fs::write(format!("/sys/class/net/{card}/threaded"), "1");
    }
    let _ = fs::write("/proc/sys/net/mptcp/enabled", "1");
    let status = Command::new("/sbin/ip").args(["-batch", "/tmp/network"]).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip: {status}"))) }
}

/// Where the VM is one, nothing after it is ours to do.
fn distribution() -> io::Result<()> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let said = |what: &str| line.split_whitespace().any(|word| word == what);
    if said(distribution::WORD) {
        distribution::enter(said(distribution::AS_IT_IS))?;
    }
    Ok(())
}

fn services() -> io::Result<()> {
    for line in fs::read_to_string("/etc/lab/services")?.lines() {
        let Some((name, command)) = line.split_once(' ') else { continue };
        let log = File::create(format!("/var/log/{name}.log"))?;
        let errors = log.try_clone()?;
        let exec = format!("exec {command}");
        let mut service = Command::new("/bin/sh");
        service.args(["-c", &exec]).stdin(Stdio::null()).stdout(log).stderr(errors);
        let id = service.spawn()?.id();
        fs::write(format!("/run/{name}.pid"), id.to_string())?;
    }
    Ok(())
}

fn serve() -> ExitCode {
    let port = Path::new("/dev/virtio-ports").join(exec::PORT);
    if let Err(error) = exec::serve(&port) {
        println!("lab-init: {}: {error}", port.display());
    }
    ExitCode::FAILURE
}

/// Its output and its status.
fn ask(socket: &Path, command: &str) -> ExitCode {
    match exec::ask(socket, command, ASK) {
        Ok(outcome) => {
            print!("{}", outcome.stdout);
            eprint!("{}", outcome.stderr);
            u8::try_from(outcome.status).map_or(ExitCode::FAILURE, ExitCode::from)
        }
        Err(error) => {
            eprintln!("lab-init: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}
