//! What each migration did, as it is collected, kept and told.

use std::path::{Path, PathBuf};

use lsm_protocol::{
    FromGuest, MigrationId,
    guest::Order,
    report::{Report, account::Account},
};
use lsm_records::{
    history::History,
    metrics::{Figures, Kept},
    places::Places,
};

use super::{Daemon, now};
use crate::{
    accounting,
    connections::Snapshot,
    record::{self, Paths},
    switched::Move,
};

/// Past migrations that are kept: 50 KiB each at most.
const KEPT: usize = 100;

/// The account of the migration under way, and the reports of those before.
pub(super) struct Reports {
    open: Option<Account>,
    /// Beside the agent's state: a restart in the middle goes on with it.
    file: PathBuf,
    /// The last one, for hosts that ask again.
    last: Option<Report>,
    history: History,
    numbers: Kept,
}

impl Reports {
    /// `under_way`: the migration that the machine is in.
    pub(super) fn open(directory: &Path, places: &Places, under_way: Option<MigrationId>) -> Reports {
        let file = directory.join("account.json");
        let mut open: Option<Account> = record::read(&file).unwrap_or_else(|error| {
            tracing::warn!(%error, file = %file.display(), "cannot read the account of a migration; its report begins here");
            None
        });
        // Of another migration it is what a crash left behind, between the report and the end.
        open = open.and_then(|account| account.of(under_way?));
        if let Some(account) = &mut open {
            account.resume();
        }
        let history = History::new(&places.history, KEPT);
        let last = history.all().pop();
        let numbers = Kept::new(&places.history, places.collector(), "lsm_guest");
        Reports { open, file, last, history, numbers }
    }

    /// The report of a migration that ended last.
    pub(super) fn last(&self, migration: MigrationId) -> Option<&Report> {
        self.last.as_ref().filter(|report| report.migration == migration)
    }

    pub(super) fn history(&self) -> Vec<Report> {
        self.history.all()
    }

    /// Of the migration under way: what a restart must find.
    pub(super) fn save(&self) {
        if self.open.is_some()
            && let Err(error) = record::write(&self.file, &self.open)
        {
            tracing::warn!(%error, "cannot save the account of this migration; a crash now would lose it");
        }
    }

    fn keep(&mut self, report: Report) {
        if let Err(error) = self.history.put(report.began, &report.migration.to_string(), &report) {
            tracing::warn!(%error, migration = %report.migration, "cannot keep the report of this migration");
        }
        self.last = Some(report);
    }

    fn close(&mut self, report: Report) {
        let _ = std::fs::remove_file(&self.file); // found again, it would be a migration without a machine
        let took = report.steps.last().map_or(0, |step| step.at);
        self.numbers.take(&Figures {
            role: "guest",
            outcome: report.outcome.name(),
            took,
            pause: None,
            gap: report.gap.map(|gap| gap.at_most),
            connections: Some(report.sums),
            ended: report.began + took,
        });
        tracing::info!(migration = %report.migration, outcome = report.outcome.name(), connections = %report.sums, "reported");
        self.keep(report);
    }
}

impl Daemon {
    /// What the machine has come to.
    pub(super) fn follow(&mut self, orders: &[Order]) {
        let reports = &mut self.reports;
        let Some(mut report) = Account::follow(&mut reports.open, now(), unix(), &self.record.guest, orders) else {
            return;
        };
        if let Some(Move { migration, scripts: Some(ran), .. }) = &self.record.moved
            && *migration == report.migration
        {
            report = report.with_scripts(accounting::scripts(ran));
        }
        reports.close(report);
    }

    /// What a count sees.
    pub(super) fn account_for(&mut self, snapshot: &Snapshot, paths: &Paths) {
        let Some(account) = &mut self.reports.open else { return };
        if !account.knows_addresses() {
            let sockets = self.kernel.diag.datagrams().unwrap_or_default();
            account.about(accounting::readdressed(paths), sockets.map(|all| accounting::left(all, paths)));
        }
        account.looked(now(), accounting::looks(snapshot, paths));
    }

    /// The scripts may end after the migration did.
    pub(super) fn scripts_ended(&mut self, one: &Move) {
        if let (Some(report), Some(ran)) = (self.reports.last(one.migration), &one.scripts) {
            let report = report.clone().with_scripts(accounting::scripts(ran));
            self.reports.keep(report.clone());
            self.tell_hosts(&FromGuest::Report(report.into()));
        }
    }

    /// A subflow ended with an error; of what, the next count shows.
    pub(super) fn subflow_failed(&mut self, token: u32, errno: u8) {
        if let Some(account) = &mut self.reports.open {
            account.failed(token, errno);
        }
    }
}

/// Milliseconds since 1970.
fn unix() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}
