//! What the agent knows and has changed, kept under /run/lsm: whoever starts after a crash goes on from here, and
//! whoever aborts knows what to put back.

use std::{
    fs, io,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use lsm_protocol::{Addresses, Mac, MigrationId, Millis, Side, forecast::Evidence, guest::Guest};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    dhcp::{Card, Lease},
    mptcp::Limits,
    obtain::Owner,
    routing::{DefaultRoute, Exit, Rule},
    switched::Move,
};

/// One change, as needed to take it back. It is written down before it is made, so taking it back must put up with its
/// never having happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    VnicUp(Mac),
    Mtu {
        vnic: Mac,
        was: u32,
    },
    Address {
        vnic: Mac,
        address: IpAddr,
        prefix_len: u8,
    },
    Rule(RuleKey),
    Table(u32),
    Sysctl {
        name: String,
        was: String,
    },
    /// The main table's default route as it was before it moved to the new vNIC.
    DefaultRoute {
        was: DefaultRoute,
    },
    /// The main table knows the prefix as the vNIC's.
    Connected(Exit),
    /// The longest packet that leaves by the exit, in bytes, where it is not the card's. Of several the last one holds.
    PathMtu {
        exit: Exit,
        was: Option<u32>,
        now: Option<u32>,
    },
}

/// A rule of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleKey {
    pub source: IpAddr,
    pub table: u32,
    pub priority: u32,
}

impl From<RuleKey> for Rule {
    fn from(RuleKey { source, table, priority }: RuleKey) -> Rule {
        Rule { source, table, priority }
    }
}

/// A vNIC with the addresses it carries, each with its way out: one of each family at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plugged {
    pub mac: Mac,
    pub v4: Option<Exit>,
    pub v6: Option<Exit>,
}

impl Plugged {
    /// A vNIC without addresses, so far.
    pub fn bare(mac: Mac) -> Plugged {
        Plugged { mac, v4: None, v6: None }
    }

    pub fn exits(&self) -> impl Iterator<Item = Exit> + use<> {
        self.v4.into_iter().chain(self.v6)
    }

    /// IPv4 first.
    pub fn addresses(&self) -> Addresses {
        self.exits().map(|exit| exit.source).collect()
    }

    pub fn carries(&self, address: IpAddr) -> bool {
        self.exits().any(|exit| exit.source == address)
    }

    /// In place of what it had of the same family.
    pub fn put(&mut self, exit: Exit) {
        let place = if exit.source.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *place = Some(exit);
    }
}

/// Who keeps the addresses of a vNIC alive, and what was changed for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub card: Card,
    pub owner: Owner,
    /// Ours to extend, and when that is to be tried next.
    pub lease: Option<(Lease, Option<Millis>)>,
    /// As they were.
    pub parameters: Vec<Change>,
}

/// The two paths of the migration under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paths {
    pub old: Plugged,
    pub new: Plugged,
    /// There are endpoints that cover the old addresses, so that their priority can be set.
    pub old_covered: bool,
}

impl Paths {
    /// As a migration the other way round sees them. Who covers the other one is to be looked up.
    fn turned(self) -> Paths {
        Paths { old: self.new, new: self.old, old_covered: false }
    }

    pub fn side(&self, side: Side) -> &Plugged {
        match side {
            Side::Old => &self.old,
            Side::New => &self.new,
        }
    }
}

/// What is not a way back's to undo: the migration that is set aside needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    /// The way back.
    pub migration: MigrationId,
    /// So many changes are older.
    pub changes: usize,
    /// The ids of the held addresses' endpoints.
    pub endpoints: Vec<u8>,
}

/// All of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    pub guest: Guest,
    paths: Option<Paths>,
    /// In the order they were made.
    pub changes: Vec<Change>,
    /// The endpoint id used last: a fresh one each time keeps peers from taking the new address for the old.
    pub endpoint_id: u8,
    /// Before the agent's first start: limits and parameters of the whole namespace.
    pub limits: Option<Limits>,
    pub parameters: Vec<Change>,
    /// vNICs whose addresses were got from a LAN.
    #[serde(default)]
    pub obtained: Vec<Kept>,
    /// The vNICs that a host said LSM manages.
    #[serde(default)]
    pub managed: Vec<Mac>,
    /// The last switch for good. Its scripts are still to be run if they have not been.
    #[serde(default)]
    pub moved: Option<Move>,
    /// The spare vNIC, which is to be set down when that does no harm.
    #[serde(default)]
    pub left_up: Option<Mac>,
    #[serde(default)]
    before: Option<Before>,
    /// Whose connections joined and whose did not. In a file of its own: large, and seldom changed.
    #[serde(skip)]
    pub evidence: Evidence,
    #[serde(skip)]
    file: PathBuf,
}

impl Record {
    /// Reads what an earlier run left, or begins anew. A file that cannot be understood (another version's) is set aside,
    /// not deleted: it says what is to be put back.
    pub fn open(directory: &Path) -> io::Result<Record> {
        fs::create_dir_all(directory)?;
        let file = directory.join("guest.json");
        let mut record: Record = read(&file)?;
        record.evidence = read(&file.with_file_name(EVIDENCE))?;
        record.file = file;
        Ok(record)
    }

    /// The two paths as the migration under way has them, whichever way round they were written down.
    pub fn paths(&self) -> Option<Paths> {
        let (paths, plan) = (self.paths?, self.guest.plan());
        let turned = plan.is_some_and(|plan| (plan.old, plan.new) == (paths.new.mac, paths.old.mac));
        Some(if turned { paths.turned() } else { paths })
    }

    pub fn set_paths(&mut self, paths: Option<Paths>) {
        self.paths = paths;
    }

    /// A way back begins: what is there from before is not its own. Once for each.
    pub fn keep_before(&mut self, migration: MigrationId, endpoints: impl Iterator<Item = u8>) {
        if self.before().is_none() {
            self.before = Some(Before { migration, changes: self.changes.len(), endpoints: endpoints.collect() });
        }
    }

    /// Of the way back that is under way.
    pub fn before(&self) -> Option<&Before> {
        let current = |before: &&Before| self.guest.migration() == Some(before.migration);
        self.before.as_ref().filter(|_| self.guest.is_on_way_back()).filter(current)
    }

    /// The changes that an abort takes back: all of them, but for those from before a way back.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let before =
            if self.guest.is_on_way_back() { self.before().map_or(usize::MAX, |before| before.changes) } else { 0 };
        self.changes.split_off(before.min(self.changes.len()))
    }

    /// Writes it whole or not at all.
    pub fn save(&self) -> io::Result<()> {
        write(&self.file, self)
    }

    /// The same with what was learned of peers.
    pub fn save_evidence(&self) -> io::Result<()> {
        write(&self.file.with_file_name(EVIDENCE), &self.evidence)
    }

    /// Writes a change down, before it is made.
    pub fn note(&mut self, change: Change) {
        if !self.changes.contains(&change) {
            self.append(change);
        }
    }

    /// The same of one that may come more than once.
    pub fn append(&mut self, change: Change) {
        self.changes.push(change);
        if let Err(error) = self.save() {
            tracing::warn!(%error, "cannot write down a change; a crash now would leave it behind");
        }
    }
}

/// Beside the state.
const EVIDENCE: &str = "peers.json";

pub(crate) fn read<T: DeserializeOwned + Default>(file: &Path) -> io::Result<T> {
    match fs::read(file) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            let aside = file.with_extension("json.unreadable");
            tracing::warn!(%error, file = %file.display(), aside = %aside.display(), "cannot understand the state of an earlier run; starting anew");
            let _ = fs::rename(file, aside);
            T::default()
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error),
    }
}

pub(crate) fn write(file: &Path, what: &impl Serialize) -> io::Result<()> {
    let fresh = file.with_extension("json.new");
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    io::Write::write_all(&mut out, &serde_json::to_vec(what)?)?;
    fs::rename(fresh, file)
}
