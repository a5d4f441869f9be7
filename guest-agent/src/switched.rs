//! What the VM is told when it is at its new site: the operator's scripts in `/etc/lsm/switched.d`. One run after the
//! other, beside the agent's own work.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use lsm_protocol::{Addresses, FromGuest, MigrationId, Side};
use lsm_scripts::Ran;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::record::Paths;

/// Where they are.
pub const DIRECTORY: &str = "/etc/lsm/switched.d";

/// From which addresses to which the VM's traffic went, for good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    pub migration: MigrationId,
    pub lan: String,
    pub from: Addresses,
    pub to: Addresses,
    /// What became of the scripts; `None` until they have run.
    pub scripts: Option<Vec<Ran>>,
}

impl Move {
    /// The move to one side of a migration's paths.
    pub fn to(side: Side, migration: MigrationId, lan: &str, paths: &Paths) -> Move {
        let [old, new] = [paths.old, paths.new].map(|plugged| plugged.addresses());
        let (from, to) = if side == Side::New { (old, new) } else { (new, old) };
        Move { migration, lan: lan.to_owned(), from, to, scripts: None }
    }

    /// For the hosts.
    pub fn message(&self) -> FromGuest {
        FromGuest::Moved { migration: self.migration, from: self.from, to: self.to }
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        let mut all = lsm_scripts::addresses(&self.from.all(), &self.to.all());
        all.extend([("LSM_LAN", self.lan.clone()), ("LSM_MIGRATION", self.migration.to_string())]);
        all
    }
}

/// Where the unit that runs them listens, in the agent's directory.
const SOCKET: &str = "switched.sock";

/// Has the scripts run for each move that comes in, and gives it back with what became of them. `deadline`: of each.
pub async fn tell(
    directory: PathBuf,
    mut moves: mpsc::UnboundedReceiver<Move>,
    told: mpsc::UnboundedSender<Move>,
    deadline: Duration,
) {
    let socket = directory.join(SOCKET);
    while let Some(mut one) = moves.recv().await {
        one.scripts = Some(lsm_scripts::ask(&socket, Path::new(DIRECTORY), &one.variables(), deadline).await);
        let _ = told.send(one);
    }
}
