//! Which sockets programs get, by the cgroup that they run in.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, ExitCode},
    time::Duration,
};

use nix::libc;
use socket2::{Domain, Socket, Type};

use crate::shell::{During as _, LabError, Process, Result, run, wait_for};

/// The word on the command line after which [`probe`] is to be called.
pub const PROBE: &str = "protocol";
/// As systemd and libvirt name them: a VM's, of its threads, of libvirt's daemon; and three of others.
const CGROUPS: [&str; 6] = [
    r"machine.slice/machine-qemu\x2d1\x2dvm.scope",
    r"machine.slice/machine-qemu\x2d1\x2dvm.scope/libvirt/emulator",
    "system.slice/libvirtd.service",
    r"machine.slice/machine-lxc\x2d1\x2dvm.scope",
    "system.slice/libvirtd.service.d",
    "system.slice",
];
/// What a program in each gets that asks for TCP.
pub(super) const PLAIN: [i32; 6] = [libc::IPPROTO_TCP; 6];
pub(super) const FORCED: [i32; 6] = [
    libc::IPPROTO_MPTCP,
    libc::IPPROTO_MPTCP,
    libc::IPPROTO_MPTCP,
    libc::IPPROTO_TCP,
    libc::IPPROTO_TCP,
    libc::IPPROTO_TCP,
];
const LIMIT: Duration = Duration::from_secs(30);

/// In a cgroup's process: says which protocol it gets.
pub fn probe() -> ExitCode {
    match Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.protocol()) {
        Ok(protocol) => println!("{}", protocol.map_or(0, i32::from)),
        Err(error) => println!("{error}"),
    }
    ExitCode::SUCCESS
}

/// Waits until it is so.
pub(super) fn are(expected: [i32; 6]) -> Result<()> {
    let mut seen = Vec::new();
    let so = wait_for("sockets of the right protocol", LIMIT, || {
        seen = CGROUPS.iter().map(|cgroup| protocol(cgroup)).collect();
        seen.iter().map(|one| one.as_ref().ok()).eq(expected.iter().map(Some)).then_some(())
    });
    so.map(drop).map_err(|error| LabError::Other(format!("{error}: {seen:?} instead of {expected:?}")))
}

fn protocol(cgroup: &str) -> Result<i32> {
    let cgroup = Path::new("/sys/fs/cgroup").join(cgroup);
    fs::create_dir_all(&cgroup).during(|| format!("make {}", cgroup.display()))?;
    let own = std::env::current_exe().during(|| "find this program".into())?;
    let mut probe = Command::new("sh");
    probe.args(["-c", "echo 0 >\"$0\"/cgroup.procs && exec \"$1\" \"$2\""]).arg(cgroup).arg(own).arg(PROBE);
    let said = run(&mut probe)?;
    said.trim().parse().map_err(|_| LabError::Other(said))
}

/// What the unit runs, with the capabilities that the unit has: for as long as somebody is there.
pub(super) fn unit(hook: &Path) -> Result<()> {
    let (ours, its) = UnixStream::pair().during(|| "make a pair of sockets".into())?;
    let mut unit = Command::new("setpriv");
    unit.arg("--bounding-set=-all,+bpf,+perfmon").arg(hook).arg("force").stdin(OwnedFd::from(its));
    let _process = Process::start_piped("lsm-hook force", &mut unit)?;
    drop(unit); // and with it the socket that is the process'
    let mut answer = String::new();
    BufReader::new(&ours).read_line(&mut answer).during(|| "hear of it".into())?;
    if answer != "\n" {
        return Err(LabError::Other(format!("lsm-hook force: {answer:?}")));
    }
    are(FORCED)?;
    drop(ours);
    are(PLAIN)
}
