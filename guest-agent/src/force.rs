//! Multipath TCP for programs that ask for TCP: a BPF program in the kernel, held by its name in the BPF file system, so
//! that it works whether or not the agent runs. And where that cannot be, `mptcpize` for single units.

mod btf;
mod dropin;
mod program;

use std::{
    ffi::CString,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};

use crate::{
    config::{Force, Mptcp},
    raw, sysctl,
};
use btf::Btf;
pub use dropin::{Error as DropinError, write as write_dropins};
use program::{Layout, Whose, program};

const TYPES: &str = "/sys/kernel/btf/vmlinux";
const BPF_FS: &str = "/sys/fs/bpf";
const DIRECTORY: &str = "/sys/fs/bpf/lsm";
const LINK: &str = "/sys/fs/bpf/lsm/force";
const CGROUPS: &str = "/sys/fs/cgroup";
/// The function that socket(2) asks which protocol it shall be.
const HOOK: &str = "update_socket_protocol";

/// Why plain sockets cannot be made Multipath TCP here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("net.mptcp.enabled is not 1: every new TCP socket would fail; sysctl -w net.mptcp.enabled=1")]
    Disabled,
    #[error("this kernel ({0}) does not describe its types in {TYPES} (CONFIG_DEBUG_INFO_BTF); {DROPIN}")]
    NoTypes(String),
    #[error("this kernel ({release}) cannot: {what}; Linux 6.6 and later can; {DROPIN}")]
    TooOld { release: String, what: String },
    #[error("cannot understand {TYPES} of this kernel ({release}): {what}; {DROPIN}")]
    Types { release: String, what: String },
    #[error(
        "the kernel is locked down (\"confidentiality\" in /sys/kernel/security/lockdown) and lets no BPF program read its \
         memory; boot without lockdown=confidentiality, or {DROPIN}"
    )]
    LockedDown,
    #[error(
        "the kernel does not let this process load a BPF program: it needs root with CAP_BPF and CAP_PERFMON; {DROPIN}"
    )]
    Denied(#[source] io::Error),
    #[error("the kernel refused the BPF program: {source}{}{verifier}", if verifier.is_empty() { "" } else { ": " })]
    Refused { verifier: String, source: io::Error },
    #[error(
        "units are told apart by their cgroups, and {CGROUPS} is not cgroup version 2; boot with \
         systemd.unified_cgroup_hierarchy=1, or use force = \"all\" with except = [], or {DROPIN}"
    )]
    NoCgroups,
    #[error("cannot {what}")]
    Files { what: String, source: io::Error },
}

/// What can be done all the same.
const DROPIN: &str = "make single units Multipath TCP with \"lsm-guest force --dropin UNIT\"";

/// Carries out what the configuration says, whatever was so before. `directory` holds the agent's state: there it is
/// written down.
///
/// # Errors
/// When it cannot be done here, or the files cannot be written. Then what was so before is so still.
pub fn apply(wanted: &Mptcp, directory: &Path) -> Result<(), Error> {
    let whose = match &wanted.force {
        Force::Off => return remove(directory),
        Force::All => Whose::AllBut(&wanted.except),
        Force::Units(units) => Whose::Only(units),
    };
    let link = attach(whose)?;
    pin(&link)?;
    let text = serde_json::to_string(wanted).unwrap_or_default();
    fs::create_dir_all(directory)
        .and_then(|()| fs::write(note(directory), text))
        .map_err(files("write down what was done"))
}

/// What is in force now: `None` when nothing is, `Some(None)` when it was not written down what.
#[must_use]
pub fn standing(directory: &Path) -> Option<Option<Mptcp>> {
    if !Path::new(LINK).exists() {
        return None;
    }
    let text = fs::read(note(directory)).ok();
    Some(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

fn remove(directory: &Path) -> Result<(), Error> {
    let gone = |done: io::Result<()>| match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    gone(fs::remove_file(LINK)).map_err(files(&format!("remove {LINK}")))?;
    let _ = fs::remove_dir(DIRECTORY);
    gone(fs::remove_file(note(directory))).map_err(files("forget what was in force"))
}

fn attach(whose: Whose) -> Result<std::os::fd::OwnedFd, Error> {
    if sysctl::get("net/mptcp/enabled").ok().as_deref() != Some("1") {
        return Err(Error::Disabled);
    }
    let release = || sysctl::get("kernel/osrelease").unwrap_or_default();
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
    let loaded = raw::bpf_load(c"lsm_force", program::LICENSE, &program(whose, &layout), function);
    let loaded = loaded.map_err(|(source, verifier)| refused(source, verifier))?;
    raw::bpf_attach(&loaded).map_err(|source| refused(source, String::new()))
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

/// Puts the link in the place of the one before it, if any. For a moment both are at work.
fn pin(link: &std::os::fd::OwnedFd) -> Result<(), Error> {
    if !statfs(BPF_FS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        let mounted = mount(Some("bpf"), BPF_FS, Some("bpf"), MsFlags::empty(), Some("mode=700"));
        mounted.map_err(|errno| files(&format!("mount the BPF file system on {BPF_FS}"))(errno.into()))?;
    }
    match fs::DirBuilder::new().mode(0o700).create(DIRECTORY) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(files(&format!("make {DIRECTORY}"))(error));
        }
        _ => {}
    }
    let fresh = Path::new(DIRECTORY).join("force_new");
    // What a run left that was killed here.
    let _ = fs::remove_file(&fresh);
    let name = CString::new(fresh.as_os_str().as_bytes()).map_err(io::Error::from);
    let done = name.and_then(|name| raw::bpf_pin(link, &name)).and_then(|()| fs::rename(&fresh, LINK));
    done.map_err(files(&format!("pin the BPF program as {LINK}")))
}

fn note(directory: &Path) -> PathBuf {
    directory.join("force.json")
}

fn files(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Files { what, source }
}
