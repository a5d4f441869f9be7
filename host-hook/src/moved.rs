//! VMs that came here and have their new address for good: the operator's scripts in `/etc/lsm/moved.d`, and the list of
//! the last of them for `status`.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    rc::Rc,
};

use lsm_protocol::MigrationId;
use lsm_scripts::Ran;
use serde::{Deserialize, Serialize};

use crate::inventory::{read_json, write_json};

/// Where they are.
const DIRECTORY: &str = "/etc/lsm/moved.d";
/// Moves that are remembered.
const REMEMBERED: usize = 20;

/// From which address to which a VM's traffic went, on its move to this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    pub migration: String,
    pub vm: String,
    /// The host it came from.
    pub peer: String,
    pub lan: String,
    pub from: IpAddr,
    pub to: IpAddr,
    /// What became of the scripts; `None` until they have run.
    pub scripts: Option<Vec<Ran>>,
}

impl Move {
    fn is(&self, other: &Move) -> bool {
        (&self.migration, self.to) == (&other.migration, other.to)
    }

    fn variables(&self) -> [(&'static str, String); 6] {
        [
            ("LSM_DOMAIN", self.vm.clone()),
            ("LSM_OLD_ADDRESS", self.from.to_string()),
            ("LSM_NEW_ADDRESS", self.to.to_string()),
            ("LSM_LAN", self.lan.clone()),
            ("LSM_PEER", self.peer.clone()),
            ("LSM_MIGRATION", self.migration.clone()),
        ]
    }
}

/// The last moves to this host.
#[derive(Debug)]
pub struct Moves {
    file: PathBuf,
    last: RefCell<VecDeque<Move>>,
    /// Moves whose scripts run.
    running: Cell<usize>,
}

impl Moves {
    pub fn open(directory: &Path) -> io::Result<Moves> {
        let file = directory.join("moved.json");
        let last: VecDeque<Move> = read_json(&file)?.unwrap_or_default();
        Ok(Moves { file, last: last.into(), running: Cell::new(0) })
    }

    /// Each, the latest last.
    pub fn all(&self) -> Vec<Move> {
        self.last.borrow().iter().cloned().collect()
    }

    /// Scripts are running.
    pub fn is_busy(&self) -> bool {
        self.running.get() > 0
    }

    /// A guest says that it has moved: the first time, the scripts are run for it. It says so again and again, since
    /// it cannot know who has heard it. One that was switched back by hand has moved again.
    pub fn heard(self: &Rc<Self>, migration: MigrationId, of: Move) {
        let mut last = self.last.borrow_mut();
        let before = last.iter().rev().find(|one| one.migration == of.migration);
        if before.is_some_and(|one| one.is(&of)) {
            return;
        }
        tracing::info!(vm = of.vm, %migration, from = %of.from, to = %of.to, "the VM has its new address for good");
        last.push_back(of.clone());
        while last.len() > REMEMBERED {
            last.pop_front();
        }
        drop(last);
        self.save();
        self.run(of);
    }

    /// Runs the scripts that an earlier service owed.
    pub fn resume(self: &Rc<Self>) {
        self.all().into_iter().filter(|one| one.scripts.is_none()).for_each(|one| self.run(one));
    }

    fn run(self: &Rc<Self>, mut one: Move) {
        let moves = self.clone();
        moves.running.set(moves.running.get() + 1);
        tokio::task::spawn_local(async move {
            one.scripts = Some(lsm_scripts::run(Path::new(DIRECTORY), &one.variables(), lsm_scripts::DEADLINE).await);
            if let Some(of) = moves.last.borrow_mut().iter_mut().rev().find(|of| of.is(&one)) {
                *of = one;
            }
            moves.save();
            moves.running.set(moves.running.get() - 1);
        });
    }

    fn save(&self) {
        if let Err(error) = write_json(&self.file, &*self.last.borrow()) {
            tracing::warn!(%error, file = %self.file.display(), "cannot save the list of moves; a restart now would forget the last");
        }
    }
}
