//! A migration's own stream, memory and disks, over all paths between two hosts (`[stream] paths`).
//!
//! libvirt's and QEMU's sockets are made Multipath TCP's by the kernel, or they were started under `mptcpize`, and the
//! kernel's path manager says which paths such a connection takes. Both are set here for as long as migrations copy, and
//! put back: each path is an endpoint, `subflow` where the VM leaves and `signal` where it comes to (mptcp.7); the limits
//! let them all be used, and TCP's windows may grow to what several long paths hold. Whatever speaks plain TCP, or meets a
//! host or a firewall without Multipath TCP, takes one path as before.

mod carried;
mod force;
mod kernel;
pub mod stalled;

use std::{
    cell::RefCell,
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use self::force::Forced;
pub use self::{
    carried::Carried,
    force::{force, serve},
    kernel::card,
};
use crate::{clock, inventory::write_json, story};

/// The kernel takes no more endpoints into account (`MPTCP_PM_ADDR_MAX`).
pub const MOST_PATHS: usize = 8;

/// What was changed, in the service's directory.
const CHANGED: &str = "stream.json";

/// Which end of the stream this host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The VM leaves: this host opens the connection, and joins it from its further addresses.
    Source,
    /// The VM comes: this host tells its further addresses.
    Destination,
}

/// What was changed, and what it was before: written down before it is changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Changes {
    endpoints: BTreeSet<IpAddr>,
    limits: Option<kernel::Limits>,
    /// Of each file below `/proc/sys` its contents.
    windows: Vec<(PathBuf, String)>,
}

/// The paths of this host's streams.
#[derive(Debug)]
pub struct Streams {
    paths: Vec<IpAddr>,
    /// The service's.
    directory: PathBuf,
    open: RefCell<Open>,
    /// One change after the other.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Open {
    /// Migrations that copy now.
    count: usize,
    changes: Changes,
    /// Whether it was tried; once, for as long as migrations copy.
    forced: Option<Result<Forced, String>>,
}

/// Keeps the paths open. Dropped, they are closed with the last.
#[derive(Debug)]
pub struct Passage {
    streams: Rc<Streams>,
    began: Vec<Carried>,
}

impl Streams {
    /// `state`: the service's directory, where an earlier service may have left what it changed.
    pub fn new(paths: &[IpAddr], state: &Path) -> Rc<Streams> {
        let changes = fs::read(state.join(CHANGED))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        let open = RefCell::new(Open { changes, ..Open::default() });
        let (paths, directory) = (paths.to_vec(), state.to_owned());
        Rc::new(Streams { paths, directory, open, turn: tokio::sync::Mutex::default() })
    }

    /// A migration is about to copy. `None`: there are no paths to open.
    pub async fn enter(self: &Rc<Self>, role: Role) -> Option<Passage> {
        if self.paths.is_empty() {
            return None;
        }
        self.open.borrow_mut().count += 1;
        let passage = Passage { streams: self.clone(), began: carried::now(&self.paths) };
        let _turn = self.turn.lock().await;
        if let Err(error) = self.change(role).await {
            tracing::warn!(error = story(&error), "a migration's stream may take one path only");
        }
        self.force().await;
        Some(passage)
    }

    /// Puts back what an earlier service left, unless a migration still copies.
    pub async fn tidy(&self) {
        let _turn = self.turn.lock().await;
        if self.open.borrow().count > 0 {
            return;
        }
        self.open.borrow_mut().forced = None;
        if self.open.borrow().changes != Changes::default() {
            self.restore().await;
        }
    }

    async fn change(&self, role: Role) -> Result<(), StreamError> {
        let present = kernel::endpoints().await?;
        for path in &self.paths {
            // One that is there already is the operator's, or another migration's.
            if present.iter().any(|endpoint| endpoint.address == *path) {
                continue;
            }
            let Some(card) = card(*path) else {
                tracing::warn!(%path, "no card of this host has this address of [stream] paths; a migration's stream goes without it");
                continue;
            };
            self.note(|changes| changes.endpoints.insert(*path))?;
            kernel::add(*path, &card, role).await?;
        }
        let limits = kernel::limits().await?;
        let raised = limits.at_least(self.paths.len());
        if raised != limits {
            self.note(|changes| *changes.limits.get_or_insert(limits))?;
            kernel::limit(raised).await?;
        }
        for (file, before, larger) in kernel::windows()? {
            self.note(|changes| {
                if !changes.windows.iter().any(|(known, _)| *known == file) {
                    changes.windows.push((file.clone(), before));
                }
            })?;
            kernel::write(&file, &larger)?;
        }
        Ok(())
    }

    /// Before libvirt and QEMU make the stream's sockets.
    async fn force(&self) {
        if self.open.borrow().forced.is_some() {
            return;
        }
        let forced = force(&self.directory).await;
        if let Err(why) = &forced {
            tracing::info!(why, "libvirt's sockets are Multipath TCP's only under mptcpize");
        }
        self.open.borrow_mut().forced = Some(forced);
    }

    fn note<T>(&self, change: impl FnOnce(&mut Changes) -> T) -> Result<(), StreamError> {
        let mut open = self.open.borrow_mut();
        change(&mut open.changes);
        let file = self.directory.join(CHANGED);
        write_json(&file, &open.changes).map_err(|error| StreamError::State(file, error))
    }

    async fn restore(&self) {
        let changes = self.open.borrow().changes.clone();
        for path in &changes.endpoints {
            if let Err(error) = kernel::remove(*path).await {
                tracing::warn!(%path, error = story(&error), "this path stays an MPTCP endpoint; \"ip mptcp endpoint\" shows it");
            }
        }
        if let Some(limits) = changes.limits
            && let Err(error) = kernel::limit(limits).await
        {
            tracing::warn!(error = story(&error), "the kernel's limits of MPTCP stay raised");
        }
        for (file, before) in &changes.windows {
            if let Err(error) = kernel::shrink(file, before) {
                tracing::warn!(error = story(&error), "TCP's windows may stay larger than they were");
            }
        }
        self.open.borrow_mut().changes = Changes::default();
        let _ = fs::remove_file(self.directory.join(CHANGED));
    }
}

impl Passage {
    /// What each path has carried since it was opened, of everything: the card's counters know no streams.
    pub fn carried(&self) -> Vec<Carried> {
        carried::since(&self.began, carried::now(&self.streams.paths))
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.streams.open.borrow_mut().count -= 1;
        let streams = self.streams.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(clock::WAKING).await;
            streams.tidy().await;
        });
    }
}

/// Why the paths cannot be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("cannot run ip: is the package iproute2 installed?")]
    Run(#[source] io::Error),
    #[error("\"ip mptcp {asked}\" failed: {said}; has this kernel Multipath TCP (sysctl net.mptcp.enabled)?")]
    Refused { asked: String, said: String },
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
    #[error("cannot keep {}", .0.display())]
    State(PathBuf, #[source] io::Error),
}
