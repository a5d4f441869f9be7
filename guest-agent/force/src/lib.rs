//! Multipath TCP for programs that ask for TCP: a BPF program in the kernel. The agent's, for what runs in the VM
//! (`lsm-guest force`), and the host's, for libvirt and its QEMUs while a VM is copied.

mod bpf;
mod btf;
mod program;

use std::{ffi::CString, fs, io, os::fd::OwnedFd, os::unix::ffi::OsStrExt, path::Path};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};

use btf::Btf;
use program::Layout;
pub use program::{LONGEST_UNIT, Unit, Whose};

const TYPES: &str = "/sys/kernel/btf/vmlinux";
const CGROUPS: &str = "/sys/fs/cgroup";
/// The function that socket(2) asks which protocol it shall be.
const HOOK: &str = "update_socket_protocol";

/// Why plain sockets cannot be made Multipath TCP here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("net.mptcp.enabled is not 1: every new TCP socket would fail; sysctl -w net.mptcp.enabled=1")]
    Disabled,
    #[error("this kernel ({0}) does not describe its types in {TYPES} (CONFIG_DEBUG_INFO_BTF)")]
    NoTypes(String),
    #[error("this kernel ({release}) cannot: {what}; Linux 6.6 and later can")]
    TooOld { release: String, what: String },
    #[error("cannot understand {TYPES} of this kernel ({release}): {what}")]
    Types { release: String, what: String },
    #[error(
        "the kernel is locked down (\"confidentiality\" in /sys/kernel/security/lockdown) and lets no BPF program read its \
         memory; boot without lockdown=confidentiality"
    )]
    LockedDown,
    #[error("the kernel does not let this process load a BPF program: it needs root with CAP_BPF and CAP_PERFMON")]
    Denied(#[source] io::Error),
    #[error("the kernel refused the BPF program: {source}{}{verifier}", if verifier.is_empty() { "" } else { ": " })]
    Refused { verifier: String, source: io::Error },
    #[error(
        "units are told apart by their cgroups, and {CGROUPS} is not cgroup version 2; boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroups,
}

/// Sets the program to work, for as long as what this returns is open somewhere, or has a name.
///
/// # Errors
/// It cannot be done here.
pub fn attach(whose: Whose) -> Result<OwnedFd, Error> {
    if setting("net/mptcp/enabled") != "1" {
        return Err(Error::Disabled);
    }
    let release = || setting("kernel/osrelease");
    let types = fs::read(TYPES).map_err(|_| Error::NoTypes(release()))?;
    let damaged = |what: btf::Error| Error::Types { release: release(), what: what.to_string() };
    let kernel = Btf::read(&types).map_err(damaged)?;
    let function =
        kernel.function(HOOK).map_err(|what| Error::TooOld { release: release(), what: what.to_string() })?;
    let by_unit = whose != Whose::AllBut(&[]);
    if by_unit && !statfs(CGROUPS).is_ok_and(|found| found.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        return Err(Error::NoCgroups);
    }
    let layout = if by_unit { Layout::of(&kernel).map_err(damaged)? } else { Layout::default() };
    let loaded = bpf::load(c"lsm_force", program::LICENSE, &program::program(whose, &layout), function);
    let loaded = loaded.map_err(|(source, verifier)| refused(source, verifier))?;
    bpf::attach(&loaded).map_err(|source| refused(source, String::new()))
}

/// Gives what [`attach`] returned a name in a BPF file system, which holds it from then on.
///
/// # Errors
/// The kernel's.
pub fn pin(link: &OwnedFd, name: &Path) -> io::Result<()> {
    bpf::pin(link, &CString::new(name.as_os_str().as_bytes())?)
}

fn refused(source: io::Error, verifier: String) -> Error {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") {
        Error::LockedDown
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        Error::Denied(source)
    } else {
        Error::Refused { verifier, source }
    }
}

/// Empty, where the kernel has no such setting.
fn setting(name: &str) -> String {
    fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap_or_default().trim().to_owned()
}
