//! VMs that came here and have their new address for good: the operator's scripts in `/etc/lsm/moved.d`, and the list of
//! the last of them for `status`.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    io,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use lsm_protocol::{Addresses, MigrationId};
use lsm_scripts::Ran;
use serde::{Deserialize, Serialize};

use crate::inventory::{read_json, write_json};

/// Where they are.
pub const DIRECTORY: &str = "/etc/lsm/moved.d";
/// Where the unit that runs them listens, in the service's directory.
const SOCKET: &str = "moved.sock";
/// Moves that are remembered after they are over.
const REMEMBERED: usize = 20;

/// From which addresses to which a VM's traffic went, on its move to this host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Move {
    pub migration: String,
    pub vm: String,
    /// The host it came from.
    pub peer: String,
    pub lan: String,
    pub from: Addresses,
    pub to: Addresses,
    /// What became of the scripts; `None` until they have run.
    pub scripts: Option<Vec<Ran>>,
    /// The guest says no more of it.
    #[serde(default)]
    pub over: bool,
}

impl Move {
    fn is(&self, other: &Move) -> bool {
        (&self.migration, self.to) == (&other.migration, other.to)
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut all = lsm_scripts::addresses(&self.from.all(), &self.to.all());
        all.extend([
            ("LSM_DOMAIN", self.vm.clone()),
            ("LSM_LAN", self.lan.clone()),
            ("LSM_PEER", self.peer.clone()),
            ("LSM_MIGRATION", self.migration.clone()),
        ]);
        all
    }
}

/// The last moves to this host.
#[derive(Debug)]
pub struct Moves {
    file: PathBuf,
    socket: PathBuf,
    /// One of each migration.
    last: RefCell<VecDeque<Move>>,
    /// Of each script.
    deadline: Duration,
    /// Migrations whose scripts run.
    running: RefCell<BTreeSet<String>>,
}

impl Moves {
    pub fn open(directory: &Path, deadline: Duration) -> io::Result<Moves> {
        let file = directory.join("moved.json");
        let last: VecDeque<Move> = read_json(&file)?.unwrap_or_default();
        let socket = directory.join(SOCKET);
        Ok(Moves { file, socket, last: last.into(), deadline, running: RefCell::default() })
    }

    /// Each, the latest last.
    pub fn all(&self) -> Vec<Move> {
        self.last.borrow().iter().cloned().collect()
    }

    /// What became of the scripts of a migration; `None` if none ran, or while they do.
    pub fn scripts(&self, migration: MigrationId) -> Option<Vec<Ran>> {
        let migration = migration.to_string();
        self.last.borrow().iter().find(|one| one.migration == migration)?.scripts.clone()
    }

    /// Scripts are running.
    pub fn is_busy(&self) -> bool {
        !self.running.borrow().is_empty()
    }

    /// A guest says that it has moved: the first time, the scripts are run for it. It says so again and again, since
    /// it cannot know who has heard it. One that was switched back by hand has moved again.
    pub fn heard(self: &Rc<Self>, migration: MigrationId, of: Move) {
        let mut last = self.last.borrow_mut();
        if last.iter().any(|one| one.is(&of)) {
            return;
        }
        tracing::info!(vm = of.vm, %migration, from = %of.from, to = %of.to, "the VM has its new address for good");
        last.retain(|one| one.migration != of.migration);
        last.push_back(of.clone());
        drop(last);
        self.forget();
        self.save();
        self.run(of);
    }

    /// The migration has ended.
    pub fn over(&self, migration: MigrationId) {
        let migration = migration.to_string();
        let mut last = self.last.borrow_mut();
        let Some(one) = last.iter_mut().find(|one| one.migration == migration) else { return };
        one.over = true;
        drop(last);
        self.forget();
        self.save();
    }

    /// The oldest that are too many, of those that are over: another would be new when its guest speaks next.
    fn forget(&self) {
        let mut last = self.last.borrow_mut();
        let many = last.iter().filter(|one| one.over).count().saturating_sub(REMEMBERED);
        for _ in 0..many {
            if let Some(oldest) = last.iter().position(|one| one.over) {
                last.remove(oldest);
            }
        }
    }

    /// Runs the scripts that an earlier service owed.
    pub fn resume(self: &Rc<Self>) {
        self.all().into_iter().filter(|one| one.scripts.is_none()).for_each(|one| self.run(one));
    }

    /// Of one migration one run at a time: the last word on where the VM is must come from the last of them.
    fn run(self: &Rc<Self>, one: Move) {
        if !self.running.borrow_mut().insert(one.migration.clone()) {
            return; // whoever runs them looks again
        }
        let moves = self.clone();
        tokio::task::spawn_local(async move {
            let migration = one.migration.clone();
            let mut next = Some(one);
            while let Some(one) = next {
                let ran = lsm_scripts::ask(&moves.socket, Path::new(DIRECTORY), &one.variables(), moves.deadline).await;
                if let Some(of) = moves.last.borrow_mut().iter_mut().find(|of| of.is(&one)) {
                    of.scripts = Some(ran);
                }
                moves.save();
                let owed = |of: &&Move| of.migration == migration && of.scripts.is_none();
                next = moves.last.borrow().iter().find(owed).cloned();
            }
            moves.running.borrow_mut().remove(&migration);
        });
    }

    fn save(&self) {
        if let Err(error) = write_json(&self.file, &*self.last.borrow()) {
            tracing::warn!(%error, file = %self.file.display(), "cannot save the list of moves; a restart now would forget the last");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Addresses {
        std::iter::once(text.parse::<std::net::IpAddr>().unwrap()).collect()
    }

    fn moved(number: u8, to: &str) -> (MigrationId, Move) {
        let migration = MigrationId([number; 16]);
        let of = Move {
            migration: migration.to_string(),
            vm: format!("vm{number}"),
            peer: "montreal".to_owned(),
            lan: "dallas".to_owned(),
            from: address("10.1.0.7"),
            to: address(to),
            scripts: None,
            over: false,
        };
        (migration, of)
    }

    #[tokio::test]
    async fn a_guest_that_repeats_itself_has_not_moved_again_however_many_have_come() {
        let directory = std::env::temp_dir().join(format!("lsm-moved-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let moves = Rc::new(Moves::open(&directory, lsm_scripts::DEADLINE).unwrap());
        let hear = |number: u8, to: &str| {
            let (migration, of) = moved(number, to);
            moves.heard(migration, of);
            moves.all().iter().map(|one| (one.vm.clone(), one.to.to_string())).collect::<Vec<_>>()
        };
        let local = tokio::task::LocalSet::new();
        let _entered = local.enter();
        let most = REMEMBERED as u8 + 5;
        for number in 1..most {
            let _ = hear(number, "10.2.0.7");
        }
        let all = hear(most, "10.2.0.7");
        assert_eq!(all.len(), usize::from(most));
        assert_eq!(hear(1, "10.2.0.7"), all, "known, as long as it is under way");
        let back = hear(1, "10.1.0.7");
        assert_eq!((back.len(), back.last().unwrap().1.as_str()), (all.len(), "10.1.0.7"), "switched back by hand");
        (1..=most).for_each(|number| moves.over(moved(number, "10.2.0.7").0));
        assert_eq!(moves.all().len(), REMEMBERED);
        assert_eq!(Moves::open(&directory, lsm_scripts::DEADLINE).unwrap().all().len(), REMEMBERED);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
