//! The new path: raised, proved by its gateway, announced, joined.

use alloc::{vec, vec::Vec};

use super::{
    ANNOUNCEMENTS, Arrival, Event, GATEWAY, Guest, HOLD, JOINS, MANY, Notice, OBTAIN, Order, Prepared, Preparing,
    Stage, Step, undo,
};
use crate::{Counts, Drain, FromGuest, Millis, Prepare, Refusal, ToGuest};

impl Preparing {
    /// An address that is held need not be got again.
    pub(super) fn begin(now: Millis, plan: Prepare, before: Guest) -> (Guest, Vec<Order>) {
        let (stage, step) = if plan.addressing.is_obtained() && matches!(before, Guest::Idle { .. }) {
            (Stage::Obtaining { until: now + OBTAIN }, Step::Obtain)
        } else {
            (Stage::Raising, Step::RaisePath)
        };
        let state = Preparing {
            arrival: if plan.arrived { Arrival::Sure } else { Arrival::No },
            plan,
            stage,
            counts: Counts::default(),
            held: None,
            held_most: now + HOLD,
            silent: None,
            aside: before.set_aside(),
        };
        (Guest::Preparing(state), vec![Order::Notify(Notice::Preparing), Order::Do(step)])
    }

    pub(super) fn handle(mut self, now: Millis, event: Event) -> (Guest, Vec<Order>) {
        match (self.stage, event) {
            (Stage::Obtaining { .. }, Event::Done(Step::Obtain)) => {
                self.stage = Stage::Raising;
                (Guest::Preparing(self), vec![Order::Do(Step::RaisePath)])
            }
            (Stage::Obtaining { until }, Event::Deadline) if now >= until => {
                let (mac, detail) = (self.plan.new, "nobody got one, nor said why not".into());
                undo(self.plan, Some(Refusal::NoAddress { mac, detail }), self.aside)
            }
            (Stage::Raising, Event::Done(Step::RaisePath)) => {
                self.stage = Stage::Probing { until: now + GATEWAY };
                (Guest::Preparing(self), vec![Order::Do(Step::ProbeGateway)])
            }
            (Stage::Probing { .. }, Event::Done(Step::ProbeGateway)) => {
                self.stage = Stage::Announcing;
                (Guest::Preparing(self), vec![Order::Do(Step::Announce)])
            }
            (Stage::Probing { until }, Event::Deadline) if now >= until => {
                let gateway = self.silent.or_else(|| self.plan.addressing.given().next().map(|given| given.gateway));
                undo(self.plan, Some(gateway.map_or(Refusal::Addressing, Refusal::GatewaySilent)), self.aside)
            }
            (Stage::Probing { .. }, Event::Silent(gateway)) => {
                self.silent = Some(gateway);
                (Guest::Preparing(self), vec![])
            }
            (Stage::Announcing, Event::Done(Step::Announce)) => {
                self.stage = Stage::Joining { until: now + JOINS, announced: 1, joined: 0 };
                (Guest::Preparing(self), vec![Order::Count])
            }
            (Stage::Joining { .. }, Event::SubflowsChanged | Event::Done(Step::Announce | Step::Reannounce)) => {
                (Guest::Preparing(self), vec![Order::Count])
            }
            (Stage::Joining { .. }, Event::Counted(counts)) => {
                self.counts = counts;
                if counts.waiting == 0 { self.joined(now) } else { (Guest::Preparing(self), vec![]) }
            }
            // Thousands take longer, and to announce it again would end what they have joined. Who is patient here waits for
            // ever fewer: of those left, a fifth must have come each time.
            (Stage::Joining { until, announced, joined }, Event::Deadline)
                if now >= until && self.many_since(joined) =>
            {
                self.stage = Stage::Joining { until: now + JOINS, announced, joined: self.counts.joined };
                (Guest::Preparing(self), vec![Order::Count])
            }
            (Stage::Joining { until, announced, .. }, Event::Deadline) if now >= until => {
                if announced >= ANNOUNCEMENTS {
                    return self.joined(now); // with stragglers: they keep the old address
                }
                self.stage = Stage::Joining { until: now + JOINS, announced: announced + 1, joined: 0 };
                (Guest::Preparing(self), vec![Order::Do(Step::Reannounce)])
            }
            (_, Event::Lost(why)) if self.arrival == Arrival::No => undo(self.plan, Some(why), self.aside),
            (Stage::Obtaining { .. }, Event::Failed(Step::Obtain, why))
            | (Stage::Raising, Event::Failed(Step::RaisePath, why))
            | (Stage::Probing { .. }, Event::Failed(Step::ProbeGateway, why))
            | (Stage::Announcing, Event::Failed(Step::Announce, why))
            | (Stage::Joining { .. }, Event::Failed(Step::Announce | Step::Reannounce, why)) => {
                undo(self.plan, Some(why), self.aside)
            }
            (stage, Event::Held { until }) => {
                self.held = Some(until.min(self.held_most)).filter(|at| now < *at);
                if matches!(stage, Stage::Held { .. }) { self.joined(now) } else { (Guest::Preparing(self), vec![]) }
            }
            (Stage::Held { until }, Event::Deadline) if now >= until => self.joined(now),
            (Stage::Held { .. }, Event::SubflowsChanged) => (Guest::Preparing(self), vec![Order::Count]),
            (Stage::Held { .. }, Event::Counted(counts)) => {
                self.counts = counts;
                (Guest::Preparing(self), vec![])
            }
            (_, Event::Told(ToGuest::Abort { .. })) => undo(self.plan, None, self.aside),
            (_, Event::Told(ToGuest::Prepare(Prepare { arrived: false, .. }) | ToGuest::KeepAlive { .. })) => {
                // The source still speaks: its service was restarted, and what we took for the arrival was that.
                if self.arrival == Arrival::Guessed {
                    self.arrival = Arrival::No;
                }
                (Guest::Preparing(self), vec![])
            }
            (_, Event::Told(ToGuest::Arrived { .. } | ToGuest::Prepare(_))) => self.arrive(now, Arrival::Sure),
            (_, Event::Told(ToGuest::Release { .. })) => {
                self.plan.drain = Drain::For(0);
                self.arrive(now, Arrival::Sure)
            }
            (_, Event::TransportReset) => {
                let arrival = self.arrival.max(Arrival::Guessed);
                self.arrive(now, arrival)
            }
            (_, Event::Told(ToGuest::Settle { migration, .. })) => {
                let why = Refusal::NotPrepared;
                (Guest::Preparing(self), vec![Order::Reply(FromGuest::Refused { migration, why })])
            }
            (_, Event::Told(ToGuest::Switch { migration, .. })) => {
                let why = Refusal::NotPrepared;
                (Guest::Preparing(self), vec![Order::Reply(FromGuest::Refused { migration, why })])
            }
            // Whoever held it back did so by a connection that went with the agent.
            (Stage::Held { .. }, Event::Restarted) => {
                self.held = None;
                self.joined(now)
            }
            (stage, Event::Restarted) => {
                self.held = None;
                let step = match stage {
                    Stage::Obtaining { .. } => {
                        self.stage = Stage::Obtaining { until: now + OBTAIN };
                        Step::Obtain
                    }
                    Stage::Raising => Step::RaisePath,
                    Stage::Probing { .. } => {
                        self.stage = Stage::Probing { until: now + GATEWAY };
                        Step::ProbeGateway
                    }
                    // Joining too: the agent may have died between the halves of a reannouncement.
                    Stage::Announcing | Stage::Joining { .. } | Stage::Held { .. } => Step::Announce,
                };
                (Guest::Preparing(self), vec![Order::Do(step)])
            }
            (_, _) => (Guest::Preparing(self), vec![]),
        }
    }

    fn many_since(&self, joined: u32) -> bool {
        let since = self.counts.joined.saturating_sub(joined);
        since >= MANY && since >= self.counts.waiting / 4
    }

    /// Nobody holds a move back that has happened.
    fn arrive(mut self, now: Millis, arrival: Arrival) -> (Guest, Vec<Order>) {
        self.arrival = arrival;
        if matches!(self.stage, Stage::Held { .. }) { self.joined(now) } else { (Guest::Preparing(self), vec![]) }
    }

    fn joined(mut self, now: Millis) -> (Guest, Vec<Order>) {
        if let (Arrival::No, Some(until)) = (self.arrival, self.held.filter(|at| now < *at)) {
            self.stage = Stage::Held { until };
            return (Guest::Preparing(self), vec![]);
        }
        let Preparing { plan, arrival, counts, aside, .. } = self;
        let lease = (arrival == Arrival::No).then_some(now + plan.lease);
        let state = Prepared { plan, counts, arrival, lease, aside };
        if arrival == Arrival::No {
            let answer = state.answer();
            (Guest::Prepared(state), vec![answer, Order::Learn])
        } else {
            let (state, orders) = state.switch(now, arrival);
            (state, [orders, vec![Order::Learn]].concat())
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use super::*;
    use crate::{Addressing, Mac, MigrationId, V4, V6};

    #[test]
    fn nothing_is_announced_again_while_many_are_joining() {
        let plan = Prepare {
            migration: MigrationId([1; 16]),
            old: Mac([2; 6]),
            new: Mac([3; 6]),
            lan: String::new(),
            addressing: Addressing { v4: V4::None, v6: V6::None },
            mtu: 1500,
            arrived: false,
            drain: Drain::UntilIdle,
            lease: 60_000,
        };
        let counts = Counts::default();
        let stage = Stage::Joining { until: JOINS, announced: 1, joined: 0 };
        let arrival = Arrival::No;
        let preparing = Preparing { plan, stage, arrival, counts, held: None, held_most: 0, silent: None, aside: None };
        let mut state = Guest::Preparing(preparing);
        let mut now = 0;
        // Joined of 10,000 when the time is over; what is ordered then.
        for (joined, order) in [
            (4_000, Order::Count),
            (6_000, Order::Count),
            (9_000, Order::Count),
            (9_001, Order::Do(Step::Reannounce)), // 999 are left, and one has come
        ] {
            now += JOINS;
            let counts = Counts { joined, waiting: 10_000 - joined, ..Counts::default() };
            let (counted, orders) = state.handle(now, Event::Counted(counts));
            assert_eq!(orders, [], "{joined}");
            let (next, orders) = counted.handle(now, Event::Deadline);
            assert_eq!(orders, [order], "{joined}");
            state = next;
        }
    }
}
