//! Multipath TCP for programs that ask for TCP: a BPF program in the kernel, held by its name in the BPF file system, so
//! that it works whether or not the agent runs. And where that cannot be, `mptcpize` for single units.

mod dropin;

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use lsm_force::{Unit, Whose};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::config::{Force, Mptcp};
pub use dropin::{Error as DropinError, write as write_dropins};

const BPF_FS: &str = "/sys/fs/bpf";
const DIRECTORY: &str = "/sys/fs/bpf/lsm";
const LINK: &str = "/sys/fs/bpf/lsm/force";

/// Why plain sockets cannot be made Multipath TCP as configured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Disabled(lsm_force::Error),
    #[error("{0}, or use force = \"all\" with except = [], or {DROPIN}")]
    NoCgroups(lsm_force::Error),
    #[error("{0}; {DROPIN}")]
    Impossible(lsm_force::Error),
    #[error("cannot {what}")]
    Files { what: String, source: io::Error },
}

/// What can be done all the same.
const DROPIN: &str = "make single units Multipath TCP with \"lsm-guest force --dropin UNIT\"";

impl From<lsm_force::Error> for Error {
    fn from(error: lsm_force::Error) -> Error {
        match error {
            lsm_force::Error::Disabled => Error::Disabled(error),
            lsm_force::Error::NoCgroups => Error::NoCgroups(error),
            other => Error::Impossible(other),
        }
    }
}

/// Carries out what the configuration says, whatever was so before. `directory` holds the agent's state: there it is
/// written down.
///
/// # Errors
/// When it cannot be done here, or the files cannot be written. Then what was so before is so still.
pub fn apply(wanted: &Mptcp, directory: &Path) -> Result<(), Error> {
    let link = match &wanted.force {
        Force::Off => return remove(directory),
        Force::All => lsm_force::attach(Whose::AllBut(&named(&wanted.except))),
        Force::Units(units) => lsm_force::attach(Whose::Only(&named(units))),
    }?;
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

/// Puts the link in the place of the one before it, if any. For a moment both are at work.
fn pin(link: &OwnedFd) -> Result<(), Error> {
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
    let done = lsm_force::pin(link, &fresh).and_then(|()| fs::rename(&fresh, LINK));
    done.map_err(files(&format!("pin the BPF program as {LINK}")))
}

fn named(units: &[String]) -> Vec<Unit<'_>> {
    units.iter().map(|unit| Unit::Named(unit)).collect()
}

fn note(directory: &Path) -> PathBuf {
    directory.join("force.json")
}

fn files(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = what.to_owned();
    move |source| Error::Files { what, source }
}
