//! Who is told: the hosts, programs in the VM, the operator's scripts.

use lsm_protocol::{
    FromGuest,
    guest::{Event, Notice, Order},
};

use super::{Daemon, now};
use crate::{signals::Signal, switched::Move};

impl Daemon {
    /// The scripts have run.
    pub(super) fn told(&mut self, one: Move) {
        let is = |moved: &Move| (moved.migration, moved.to) == (one.migration, one.to);
        if self.record.moved.as_ref().is_some_and(is) {
            self.scripts_ended(&one);
            self.record.moved = Some(one);
            self.save();
        }
    }

    /// Has the scripts run for a switch that they have not been run for.
    pub(super) fn tell_scripts(&self) {
        if let Some(one @ Move { scripts: None, .. }) = &self.record.moved {
            let _ = self.moves.send(one.clone());
        }
    }

    /// Before the state is written down: the scripts are owed from the same moment on.
    pub(super) fn note_moves(&mut self, orders: &[Order]) {
        for order in orders {
            if let (Order::Notify(Notice::Switched { to, sure: true }), Some(plan), Some(paths)) =
                (order, self.record.guest.plan(), &self.record.paths())
            {
                self.record.moved = Some(Move::to(*to, plan.migration, &plan.lan, paths));
            }
        }
    }

    pub(super) fn notify(&mut self, notice: Notice) -> Option<Event> {
        let migration = match notice {
            Notice::Settled { migration } | Notice::Aborted { migration } => migration,
            Notice::Preparing | Notice::Switched { .. } => self.record.guest.migration()?,
        };
        let about = migration.to_string();
        let signal = match notice {
            Notice::Preparing => {
                self.holds.begin(now());
                let plan = self.record.guest.plan()?;
                let held = self.record.paths().filter(|_| self.record.guest.is_on_way_back());
                Signal::Preparing {
                    migration: about,
                    lan: plan.lan.clone(),
                    addresses: held.map_or_else(|| plan.addressing.addresses(), |paths| paths.new.addresses()),
                    most_ms: self.holds.limit() as u32,
                }
            }
            Notice::Switched { to, sure } => {
                let Move { from, to, .. } = Move::to(to, migration, "", &self.record.paths()?);
                if sure && let Some(moved) = &self.record.moved {
                    let message = moved.message();
                    self.tell_hosts(&message);
                    self.tell_scripts();
                }
                Signal::Switched { migration: about, from, to, sure }
            }
            Notice::Settled { .. } => Signal::Settled { migration: about },
            Notice::Aborted { .. } => Signal::Aborted { migration: about },
        };
        let _ = self.signals.send(signal); // an error: nobody is there to hear it
        (notice == Notice::Preparing).then(|| Event::Held { until: self.holds.until() })
    }

    pub(super) fn reply(&mut self, reply: FromGuest) {
        let about = match &reply {
            FromGuest::Prepared { migration, .. }
            | FromGuest::Refused { migration, .. }
            | FromGuest::Switched { migration, .. }
            | FromGuest::Settled { migration }
            | FromGuest::Aborted { migration } => *migration,
            FromGuest::Status(_)
            | FromGuest::Forecast(_)
            | FromGuest::Moved { .. }
            | FromGuest::Report(_)
            | FromGuest::Addressed { .. } => return,
        };
        if matches!(reply, FromGuest::Prepared { .. }) {
            self.tell_addresses();
        }
        // A host that was not listening when the VM moved hears of it with every answer since.
        let moved = self.record.moved.as_ref().filter(|moved| moved.migration == about).map(Move::message);
        if let (FromGuest::Switched { .. } | FromGuest::Settled { .. }, Some(moved)) = (&reply, moved) {
            self.tell_hosts(&moved);
        }
        // What ends a migration comes with its report, however often it is said.
        let ends = matches!(reply, FromGuest::Settled { .. } | FromGuest::Aborted { .. } | FromGuest::Refused { .. });
        if let Some(report) = self.reports.last(about).filter(|_| ends).cloned() {
            self.tell_hosts(&FromGuest::Report(report.into()));
        }
        self.callers.answer(about, &reply);
        self.tell_hosts(&reply);
    }

    /// All that are listening.
    pub(super) fn tell_hosts(&mut self, message: &FromGuest) {
        self.hosts.retain(|(_, host)| host.send(message.clone()).is_ok());
    }
}
