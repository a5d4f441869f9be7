//! The old path is left: drained, withdrawn, released.

use alloc::{vec, vec::Vec};

use super::{
    Ended, Event, Guest, Leaving, Notice, Order, RECOUNT_MAX, Settling, Step, TRIES, later,
    switched::{held, without_end},
};
use crate::{Drain, FromGuest, Millis, Refusal, Side, ToGuest};

impl Settling {
    pub(super) fn handle(mut self, now: Millis, event: Event) -> (Guest, Vec<Order>) {
        match (self.leaving, event) {
            (Leaving::Draining { until, .. }, Event::Deadline) if now >= until => {
                self.leaving = Leaving::Draining { until: now + RECOUNT_MAX, landed: true };
                (Guest::Settling(self), vec![Order::Count])
            }
            (Leaving::Draining { landed: true, .. }, Event::Counted(counts)) => {
                self.counts = counts;
                if counts.waiting > 0 && self.cut.is_none_or(|at| now < at) {
                    return (Guest::Settling(self), vec![]); // opened to the old address since the flip
                }
                self.leaving = Leaving::Withdrawing;
                // ---- the point of no return ----
                (Guest::Settling(self), vec![Order::Do(Step::Withdraw(Side::Old))])
            }
            (Leaving::Draining { landed: true, .. }, Event::SubflowsChanged) => {
                (Guest::Settling(self), vec![Order::Count])
            }
            // Counted again before the next try: somebody may have come to the old path meanwhile.
            (Leaving::Withdrawing, Event::Failed(Step::Withdraw(_), _)) if self.failed + 1 < TRIES => {
                self.failed += 1;
                self.leaving = Leaving::Draining { until: now + later(self.failed), landed: false };
                (Guest::Settling(self), vec![])
            }
            (Leaving::Releasing, Event::Failed(Step::ReleaseOld, _)) if self.failed + 1 < TRIES => {
                self.failed += 1;
                self.leaving = Leaving::Holding { recount: now + later(self.failed) };
                (Guest::Settling(self), vec![])
            }
            (Leaving::Withdrawing, Event::Done(Step::Withdraw(_)) | Event::Failed(Step::Withdraw(_), _)) => {
                self.failed = 0;
                self.leaving = Leaving::Holding { recount: now + RECOUNT_MAX };
                (Guest::Settling(self), vec![Order::Count])
            }
            (Leaving::Holding { .. }, Event::Counted(counts)) => {
                self.counts = counts;
                let idle = counts.legacy == 0 && counts.waiting == 0;
                let release = match self.plan.drain {
                    Drain::Forever => false,
                    Drain::UntilIdle => idle,
                    Drain::For(_) => idle || self.cut.is_some_and(|at| now >= at),
                };
                if !release {
                    return (Guest::Settling(self), vec![]);
                }
                self.leaving = Leaving::Releasing;
                (Guest::Settling(self), vec![Order::Do(Step::ReleaseOld)])
            }
            (Leaving::Holding { recount }, Event::Deadline) if now >= recount => {
                self.leaving = Leaving::Holding { recount: now + RECOUNT_MAX };
                (Guest::Settling(self), vec![Order::Count])
            }
            (Leaving::Holding { .. }, Event::SubflowsChanged) => (Guest::Settling(self), vec![Order::Count]),
            (Leaving::Releasing, Event::Done(Step::ReleaseOld) | Event::Failed(Step::ReleaseOld, _)) => {
                let migration = self.plan.migration;
                let orders =
                    vec![Order::Reply(FromGuest::Settled { migration }), Order::Notify(Notice::Settled { migration })];
                (Guest::Idle { last: Some(Ended::Settled(migration)) }, orders)
            }
            (_, Event::Told(ToGuest::Arrived { migration } | ToGuest::Switch { migration, to: Side::New })) => {
                let reply = FromGuest::Switched { migration, to: Side::New, counts: self.counts };
                (Guest::Settling(self), vec![Order::Reply(reply)])
            }
            (leaving, Event::Told(ToGuest::Settle { migration, cut })) => {
                if !cut && let Some(refusal) = held(migration, self.counts) {
                    return (Guest::Settling(self), vec![refusal]);
                }
                if cut {
                    self.plan.drain = Drain::For(0);
                    self.cut = Some(now);
                } else {
                    self.plan.drain = without_end(self.plan.drain);
                }
                let reply = FromGuest::Switched { migration, to: Side::New, counts: self.counts };
                let counts = matches!(leaving, Leaving::Draining { landed: true, .. } | Leaving::Holding { .. });
                let count = counts.then_some(Order::Count);
                (Guest::Settling(self), [Order::Reply(reply)].into_iter().chain(count).collect())
            }
            (leaving, Event::Told(ToGuest::Release { .. })) => {
                self.plan.drain = Drain::For(0);
                self.cut = Some(now);
                let counts = matches!(leaving, Leaving::Draining { landed: true, .. } | Leaving::Holding { .. });
                (Guest::Settling(self), if counts { vec![Order::Count] } else { vec![] })
            }
            (_, Event::Told(ToGuest::Abort { migration } | ToGuest::Switch { migration, .. })) => {
                let reply = FromGuest::Refused { migration, why: Refusal::Arrived };
                (Guest::Settling(self), vec![Order::Reply(reply)])
            }
            (leaving, Event::Restarted) => {
                let orders = match leaving {
                    Leaving::Draining { .. } => vec![],
                    Leaving::Withdrawing => vec![Order::Do(Step::Withdraw(Side::Old))],
                    Leaving::Holding { .. } => vec![Order::Count],
                    Leaving::Releasing => vec![Order::Do(Step::ReleaseOld)],
                };
                (Guest::Settling(self), orders)
            }
            (_, _) => (Guest::Settling(self), vec![]),
        }
    }
}
