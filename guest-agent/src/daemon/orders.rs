//! Events to the machine, and its orders carried out.

use std::collections::VecDeque;

use lsm_protocol::{
    Refusal, Side,
    guest::{Event, Guest, Order, Step},
};

use super::{Daemon, log::summary, now};
use crate::{
    endpoints,
    farewell::{Farewell, HELD, SAID},
    invitation,
    obtain::Owner,
    path::{self, chain},
};

impl Daemon {
    /// One event, and whatever follows from it at once.
    pub(super) async fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let was = self.record.guest.name();
            let was_awaiting = self.record.guest.deadline().map(|d| d.awaited);
            let why = summary(&event);
            let in_time = event != Event::Deadline;
            let was_held = self.record.guest.is_held();
            let (state, orders) = std::mem::take(&mut self.record.guest).handle(now(), event);
            self.record.guest = state;
            self.follow(&orders);
            if !matches!(self.record.guest, Guest::Preparing(_) | Guest::Switched(_)) {
                self.stop_probe();
            }
            if !matches!(self.record.guest, Guest::Preparing(_)) {
                self.stop_obtaining();
            }
            if was_held && !self.record.guest.is_held() && !in_time {
                tracing::warn!(by = self.holders(), "held back for as long as may be; going on without them");
            }
            self.watch_closures();
            self.note_moves(&orders);
            // The flip goes first and is written down after: it can be repeated, the time cannot.
            let urgent = orders.first() == Some(&Order::Do(Step::Prefer(Side::New)));
            // What orders nothing can be learnt again.
            if !urgent && !orders.is_empty() {
                self.save();
            }
            for order in orders {
                events.extend(self.carry_out(order).await);
            }
            if urgent {
                self.save();
            }
            self.log(was, was_awaiting, &why);
        }
    }

    pub(super) async fn do_step(&mut self, step: Step) -> Event {
        match self.perform(step).await {
            Ok(()) => Event::Done(step),
            Err(why) => {
                tracing::warn!(?step, %why, "a step failed");
                Event::Failed(step, why)
            }
        }
    }

    async fn carry_out(&mut self, order: Order) -> Vec<Event> {
        let event = match order {
            Order::Do(step) => {
                if step == Step::Obtain {
                    self.begin_obtaining().await
                } else if step == Step::ProbeGateway {
                    self.probe_gateway();
                    None
                } else if step == Step::ReleaseOld && self.release_is_put_off() {
                    None
                } else {
                    Some(self.do_step(step).await)
                }
            }
            Order::Count => return self.count(),
            Order::Learn => {
                self.record.evidence.learn(now(), self.tally.outcomes());
                if let Err(error) = self.record.save_evidence() {
                    tracing::warn!(%error, "cannot write down who has joined; a restart would forget it");
                }
                None
            }
            Order::Reply(reply) => {
                self.reply(reply);
                None
            }
            Order::Notify(notice) => self.notify(notice),
        };
        event.into_iter().collect()
    }

    /// One dump, told twice: what became of the paths since the last, and how many connections are where.
    fn count(&mut self) -> Vec<Event> {
        let Some(paths) = self.record.paths() else { return Vec::new() };
        let arrived = self.record.guest.has_arrived();
        let begun = std::time::Instant::now();
        let snapshot = self.kernel.diag.snapshot();
        self.counting.set(begun.elapsed());
        match snapshot {
            Ok(snapshot) => {
                self.account_for(&snapshot, &paths);
                let counts = self.tally.count(&snapshot, &paths, arrived);
                vec![Event::Carried(self.tally.progress()), Event::Counted(counts)]
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "cannot count the connections; trying again on schedule");
                Vec::new()
            }
        }
    }

    /// A network manager of the VM has the old vNIC.
    pub(super) fn old_is_owned(&self) -> bool {
        let old = self.record.guest.plan().map(|plan| plan.old);
        self.record.obtained.iter().any(|kept| Some(kept.card.mac) == old && kept.owner != Owner::Nobody)
    }

    /// Of the old addresses, while they are withdrawn. It is a favour to peers: where it cannot be done, the move goes on.
    pub(super) fn hold_farewell(&mut self) {
        let Some(paths) = self.record.paths() else { return };
        match Farewell::hold(&paths.old.addresses().all()) {
            Ok(farewell) => {
                self.release.withdrawn(SAID);
                tokio::spawn(async move {
                    tokio::time::sleep(HELD).await;
                    drop(farewell);
                });
            }
            Err(error) => {
                tracing::info!(error = %chain(&error), "a peer may go on counting an address that is withdrawn");
            }
        }
    }

    async fn perform(&mut self, step: Step) -> Result<(), Refusal> {
        let (kernel, record) = (&mut self.kernel, &mut self.record);
        match step {
            Step::RaisePath => {
                let plan = record.guest.plan().cloned().ok_or(Refusal::NoSuchMigration)?;
                path::raise(kernel, record, &plan).await
            }
            Step::Obtain | Step::ProbeGateway => Ok(()),
            Step::Announce => endpoints::announce(kernel, record),
            Step::Reannounce => endpoints::announce_again(kernel, record),
            Step::Invite => invitation::invite(kernel, record),
            Step::Prefer(side) => endpoints::prefer(kernel, record, side),
            Step::TakeOver => {
                self.release.arrived();
                self.announce_again_later();
                path::take_over(&mut self.kernel, &mut self.record).await
            }
            Step::Withdraw(Side::Old) => {
                self.hold_farewell();
                endpoints::withdraw(&mut self.kernel, &mut self.record, Side::Old)
            }
            Step::Withdraw(side) => endpoints::withdraw(kernel, record, side),
            Step::LowerPath => {
                // What is held is kept alive as before.
                let given = record.guest.plan().filter(|_| !record.guest.is_on_way_back());
                if let Some(new) = given.map(|plan| plan.new) {
                    self.give_up(new).await;
                }
                path::lower(&mut self.kernel, &mut self.record).await
            }
            Step::ReleaseOld => {
                let old = record.guest.plan().map(|plan| plan.old);
                if let Some(old) = old {
                    self.give_up(old).await;
                }
                let paths = self.record.paths();
                let mut released = path::release_old(&mut self.kernel, &mut self.record).await;
                if released.is_ok() && self.release.is_quiet() {
                    released = path::set_spare_down(&mut self.kernel, &mut self.record).await;
                }
                self.follow_routers(paths);
                released
            }
        }
    }
}
