//! The flip, and what is known of the arrival since.

use alloc::{vec, vec::Vec};

use super::{
    Arrival, DRAIN, Event, GATEWAY, Guest, INVITE, INVITE_MAX, Leaving, Notice, Order, Prepared, RECOUNT, RECOUNT_MAX,
    RETRY, Settling, Step, Stragglers, Switched, Told, Undoing,
    fallback::{Fallback, Progress},
    returning::is_way_back,
};
use crate::{Counts, Drain, FromGuest, MigrationId, Millis, Refusal, Side, ToGuest};

impl Prepared {
    pub(super) fn answer(&self) -> Order {
        Order::Reply(FromGuest::Prepared { migration: self.plan.migration, counts: self.counts })
    }

    pub(super) fn switch(self, now: Millis, arrival: Arrival) -> (Guest, Vec<Order>) {
        let arrival = self.arrival.max(arrival);
        let state = Switched {
            counts: self.counts,
            arrival,
            confirmed: false,
            taken_over: false,
            recount: now + RETRY,
            pause: RECOUNT,
            lease: (arrival < Arrival::Sure).then_some(now + self.plan.lease),
            proving: false,
            cut: None,
            stragglers: None,
            moved: None,
            told: Told::Nothing,
            fallback: Fallback::default(),
            plan: self.plan,
            // What is surely there does not go back.
            aside: self.aside.filter(|_| arrival < Arrival::Sure),
        };
        (Guest::Switched(state.cut_from(now)), vec![Order::Do(Step::Prefer(Side::New))])
    }
}

impl Switched {
    pub(super) fn handle(self, now: Millis, event: Event) -> (Guest, Vec<Order>) {
        let (mut state, mut orders) = self.step(now, event);
        if let Guest::Switched(s) = &mut state {
            orders.extend(s.tell());
        }
        (state, orders)
    }

    /// What the VM has not been told yet: of the flip, and then that it will stay.
    fn tell(&mut self) -> Option<Order> {
        let told = match (self.confirmed, self.arrival) {
            (false, _) => Told::Nothing,
            (true, _) if self.has_fallen_back() => Told::Nothing,
            (true, Arrival::Sure) if self.stands() => Told::Sure,
            (true, _) => Told::Flipped,
        };
        if told <= self.told {
            return None;
        }
        self.told = told;
        Some(Order::Notify(Notice::Switched { to: Side::New, sure: told == Told::Sure }))
    }

    fn step(mut self, now: Millis, event: Event) -> (Guest, Vec<Order>) {
        match event {
            Event::Done(Step::Prefer(side)) if side == self.fallback.side() => {
                self.confirmed = true;
                self.recount = now + self.pause;
                let answer = self.answer();
                (Guest::Switched(self), vec![answer])
            }
            // No host knows of us. If the VM did arrive, its LAN answers; if not, the tunnel is gone or soon will be. But for
            // a held address, whose tunnel stays: from there it is back to what was, and a host that knows better says so.
            Event::Deadline
                if self.arrival == Arrival::Guessed
                    && !self.proving
                    && !is_way_back(self.aside.as_deref())
                    && self.lease.is_some_and(|at| now >= at) =>
            {
                self.proving = true;
                self.lease = Some(now + GATEWAY);
                (Guest::Switched(self), vec![Order::Do(Step::ProbeGateway)])
            }
            Event::Done(Step::ProbeGateway) if self.proving => {
                self.heard(now);
                (Guest::Switched(self), vec![])
            }
            Event::Failed(Step::ProbeGateway, _) if self.proving => self.undo(now),
            Event::Deadline if self.lease.is_some_and(|at| now >= at) => self.undo(now),
            Event::Done(Step::TakeOver) => {
                self.taken_over = true;
                (Guest::Switched(self), vec![])
            }
            Event::Deadline if now >= self.recount && !self.stands() => {
                self.recount = now + RETRY;
                let orders = self.missing();
                (Guest::Switched(self), orders)
            }
            Event::Deadline if self.stands() && self.stragglers.is_some_and(|s| now >= s.invite) => {
                self.stragglers = self.stragglers.map(|s| s.invited(now));
                (Guest::Switched(self), vec![Order::Do(Step::Invite)])
            }
            Event::Deadline if now >= self.recount => {
                self.pause = (self.pause * 2).min(RECOUNT_MAX);
                self.recount = now + self.pause;
                (Guest::Switched(self), vec![Order::Count])
            }
            Event::SubflowsChanged => (Guest::Switched(self), vec![Order::Count]),
            Event::Carried(progress) => {
                let orders = self.judge(now, progress);
                (Guest::Switched(self), orders)
            }
            Event::Counted(counts) => {
                self.counts = counts;
                self.stragglers = Stragglers::after(now, self.stragglers, counts);
                self.settle(now)
            }
            Event::TransportReset if self.arrival == Arrival::No => self.arrive(now, Arrival::Guessed),
            Event::Told(ToGuest::Arrived { .. }) if self.arrival < Arrival::Sure => {
                let known = self.arrival > Arrival::No;
                let answer = self.confirmed.then(|| self.answer());
                let (state, mut orders) = self.arrive(now, Arrival::Sure);
                if known {
                    orders.clear();
                }
                orders.extend(answer);
                (state, orders)
            }
            Event::Told(ToGuest::Switch { to: Side::New, .. }) if self.has_fallen_back() => {
                let orders = self.insist(now);
                (Guest::Switched(self), orders)
            }
            Event::Told(ToGuest::Switch { to: Side::New, .. } | ToGuest::Arrived { .. }) => {
                let answer = self.confirmed.then(|| self.answer());
                (Guest::Switched(self), answer.into_iter().collect())
            }
            Event::Told(ToGuest::Release { .. }) => {
                let known = self.arrival > Arrival::No;
                self.plan.drain = Drain::For(0);
                self.cut = Some(now);
                let insisted = self.insist(now);
                let (state, mut orders) = self.arrive(now, Arrival::Sure);
                if known {
                    orders.clear();
                }
                orders.extend(insisted);
                orders.push(Order::Count);
                (state, orders)
            }
            Event::Told(ToGuest::Settle { migration, .. }) if self.arrival < Arrival::Sure => {
                let why = Refusal::NotArrived;
                (Guest::Switched(self), vec![Order::Reply(FromGuest::Refused { migration, why })])
            }
            Event::Told(ToGuest::Settle { migration, cut: false }) => {
                if let Some(refusal) = held(migration, self.counts) {
                    return (Guest::Switched(self), vec![refusal]);
                }
                self.plan.drain = without_end(self.plan.drain);
                let answer = self.answer();
                (Guest::Switched(self), vec![Order::Count, answer])
            }
            Event::Told(ToGuest::Settle { cut: true, .. }) => {
                self.plan.drain = Drain::For(0);
                self.cut = Some(now);
                let mut orders = self.insist(now);
                orders.extend([Order::Count, self.answer()]);
                (Guest::Switched(self), orders)
            }
            Event::Told(ToGuest::Prepare(_) | ToGuest::KeepAlive { .. }) => {
                // The source still speaks. If we took its service's restart for the arrival, we know better now.
                self.arrival = if self.arrival < Arrival::Sure { Arrival::No } else { Arrival::Sure };
                self.heard(now);
                let answer =
                    (self.confirmed && matches!(event, Event::Told(ToGuest::Prepare(_)))).then(|| self.answer());
                (Guest::Switched(self), answer.into_iter().collect())
            }
            Event::Told(ToGuest::Switch { to: Side::Old, .. }) => {
                let migration = self.plan.migration;
                let reply = FromGuest::Switched { migration, to: Side::Old, counts: self.counts };
                let lease = (self.arrival < Arrival::Sure).then_some(now + self.plan.lease);
                let (plan, counts, arrival, aside) = (self.plan, self.counts, self.arrival, self.aside);
                let state = Prepared { plan, counts, arrival, lease, aside };
                let mut orders = vec![Order::Do(Step::Prefer(Side::Old)), Order::Reply(reply)];
                if self.told > Told::Nothing {
                    let sure = self.told == Told::Sure;
                    orders.push(Order::Notify(Notice::Switched { to: Side::Old, sure }));
                }
                (Guest::Prepared(state), orders)
            }
            Event::Told(ToGuest::Abort { .. }) if self.arrival < Arrival::Sure => self.undo(now),
            Event::Told(ToGuest::Abort { migration }) => {
                (Guest::Switched(self), vec![Order::Reply(FromGuest::Refused { migration, why: Refusal::Arrived })])
            }
            Event::Restarted => {
                self.recount = now + RETRY;
                (self.confirmed, self.taken_over, self.moved) = (false, false, None);
                self.heard(now); // the hosts could not reach us meanwhile
                let orders = self.missing();
                (Guest::Switched(self), orders)
            }
            _ => (Guest::Switched(self), vec![]),
        }
    }

    fn answer(&self) -> Order {
        let migration = self.plan.migration;
        Order::Reply(FromGuest::Switched { migration, to: self.fallback.side(), counts: self.counts })
    }

    /// The new path is dead, and the old one preferred.
    pub fn has_fallen_back(&self) -> bool {
        self.fallback.side() == Side::Old
    }

    /// All that the kernel is to do for the flip is done.
    pub(super) fn stands(&self) -> bool {
        self.missing().is_empty()
    }

    fn missing(&self) -> Vec<Order> {
        let flip = (!self.confirmed).then_some(Order::Do(Step::Prefer(self.fallback.side())));
        let take_over = (self.arrival > Arrival::No && !self.taken_over).then_some(Order::Do(Step::TakeOver));
        flip.into_iter().chain(take_over).collect()
    }

    /// The traffic is on its new path already, or on its way there: what else there is to do at the arrival waits until
    /// the VM's programs have had the CPU for the frames that piled up.
    fn arrive(mut self, now: Millis, arrival: Arrival) -> (Guest, Vec<Order>) {
        self.taken_over &= self.arrival > Arrival::No; // what was told before the move was told to another LAN's host
        (self.arrival, self.moved) = (arrival, None);
        self.aside = self.aside.filter(|_| arrival < Arrival::Sure);
        self.heard(now);
        self.recount = now + RETRY;
        self.pause = RECOUNT;
        (Guest::Switched(self.cut_from(now)), vec![])
    }

    /// The path that is to be used after this count, if it is the other one. What the advance tunnel does before the
    /// arrival is not judged, it is as good as the hosts; nor is anything where the old path is not to be kept at all.
    fn judge(&mut self, now: Millis, progress: Progress) -> Vec<Order> {
        let judges = self.arrival > Arrival::No && self.confirmed && self.plan.drain != Drain::For(0);
        if judges && self.fallback.judge(now, progress) { self.change_path(now) } else { vec![] }
    }

    /// The operator wants the new path, dead or not.
    fn insist(&mut self, now: Millis) -> Vec<Order> {
        if self.fallback.rise() { self.change_path(now) } else { vec![] }
    }

    /// It is no other site: whoever was told that the VM has moved is not told that it has not.
    fn change_path(&mut self, now: Millis) -> Vec<Order> {
        let to = self.fallback.side();
        (self.confirmed, self.moved) = (false, None);
        self.recount = now + RETRY;
        self.pause = RECOUNT;
        let told = (self.told > Told::Nothing).then_some(Order::Notify(Notice::Switched { to, sure: false }));
        [Order::Do(Step::Prefer(to))].into_iter().chain(told).collect()
    }

    /// The lease begins anew, where there is one.
    fn heard(&mut self, now: Millis) {
        self.lease = (self.arrival < Arrival::Sure).then_some(now + self.plan.lease);
        self.proving = false;
    }

    fn cut_from(mut self, now: Millis) -> Self {
        if let (Arrival::Sure, Drain::For(time), None) = (self.arrival, self.plan.drain, self.cut) {
            self.cut = Some(now + time);
        }
        self
    }

    /// Leaves the old path once nobody needs it, or policy says that they had time enough.
    fn settle(mut self, now: Millis) -> (Guest, Vec<Order>) {
        let landing = (self.counts.moved >= self.counts.joined).then(|| self.moved.unwrap_or(now));
        self.moved = landing;
        let moved = self.counts.waiting == 0 && landing.is_some();
        let cut = self.cut.is_some_and(|at| now >= at);
        // In doubt the old path stays, whatever the policy's time; an operator who gives it up has seen to that.
        let doubtful = self.fallback.is_in_doubt() && self.plan.drain != Drain::For(0);
        if self.arrival < Arrival::Sure || !self.stands() || doubtful || !(moved || cut) {
            return (Guest::Switched(self), vec![]);
        }
        let Switched { plan, counts, cut, .. } = self;
        (
            Guest::Settling(Settling {
                plan,
                counts,
                // Where a straggler kept the old path, the others' data has landed meanwhile.
                leaving: Leaving::Draining { until: landing.unwrap_or(now) + DRAIN, landed: false },
                cut,
                failed: 0,
            }),
            vec![Order::Learn],
        )
    }

    fn undo(self, now: Millis) -> (Guest, Vec<Order>) {
        let (plan, aside) = (self.plan, self.aside);
        let state = Undoing { plan, drain: Some(now + DRAIN), why: None, failed: 0, refused: false, aside };
        (Guest::Undoing(state), vec![Order::Do(Step::Prefer(Side::Old))])
    }
}

impl Stragglers {
    /// Who is left after a count; those who are new among them have their time first.
    fn after(now: Millis, before: Option<Stragglers>, counts: Counts) -> Option<Stragglers> {
        let fresh = Stragglers { invite: now + INVITE, pause: INVITE, invited: 0 };
        (counts.waiting > 0).then(|| before.unwrap_or(fresh))
    }

    fn invited(self, now: Millis) -> Stragglers {
        let pause = (self.pause * 2).min(INVITE_MAX);
        Stragglers { invite: now + pause, pause, invited: self.invited.saturating_add(1) }
    }
}

/// Why the old path is not left at once, if somebody is on it.
pub(super) fn held(migration: MigrationId, counts: Counts) -> Option<Order> {
    let Counts { waiting, legacy, .. } = counts;
    let why = Refusal::Held { waiting, legacy };
    (waiting > 0 || legacy > 0).then_some(Order::Reply(FromGuest::Refused { migration, why }))
}

/// Nobody is on the old path that was to stay for good, and the operator gives it up: but for whoever has come since.
pub(super) fn without_end(drain: Drain) -> Drain {
    if drain == Drain::Forever { Drain::UntilIdle } else { drain }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Addressing, Mac, Prepare, V4, V6};

    #[test]
    fn stragglers_are_invited_ever_more_seldom_and_only_while_there_are_any() {
        let counts = Counts { waiting: 1, ..Counts::default() };
        let mut now = 1_000;
        let mut pauses = Vec::new();
        let mut stragglers = Stragglers::after(now, None, counts);
        for _ in 0..300 {
            let Some(at) = stragglers else { panic!("one is left") };
            pauses.push(at.invite - now);
            now = at.invite;
            stragglers = Stragglers::after(now, Some(at.invited(now)), counts);
        }
        assert_eq!(pauses[..4], [2_000, 4_000, 8_000, 16_000]);
        assert_eq!(pauses[299], INVITE_MAX);
        assert_eq!(stragglers.map(|s| s.invited), Some(u8::MAX), "the number does not overflow");
        assert_eq!(Stragglers::after(now, stragglers, Counts::default()), None);
    }

    #[test]
    fn what_has_landed_before_the_last_straggler_is_gone_is_not_waited_for_again() {
        let prepare = Prepare {
            migration: MigrationId([1; 16]),
            old: Mac([2; 6]),
            new: Mac([3; 6]),
            lan: "there".into(),
            addressing: Addressing { v4: V4::None, v6: V6::None },
            mtu: 1500,
            arrived: false,
            drain: Drain::UntilIdle,
            lease: 60_000,
        };
        let (plan, counts, migration) = (prepare.clone(), Counts::default(), prepare.migration);
        let prepared = Prepared { plan, counts, arrival: Arrival::No, lease: None, aside: None };
        let (mut guest, _) = prepared.switch(0, Arrival::No);
        for event in [
            Event::Done(Step::Prefer(Side::New)),
            Event::Told(ToGuest::Arrived { migration }),
            Event::Done(Step::TakeOver),
        ] {
            guest = guest.handle(0, event).0;
        }
        let straggler = Counts { joined: 2, moved: 2, waiting: 1, ..Counts::default() };
        let none = Counts { waiting: 0, ..straggler };
        let leaving = |guest: Guest, now| match guest.handle(now, Event::Counted(none)).0 {
            Guest::Settling(Settling { leaving: Leaving::Draining { until, .. }, .. }) => until,
            other => panic!("{other:?}"),
        };
        assert_eq!(leaving(guest.clone(), 1_000), 1_000 + DRAIN, "nobody was waited for");
        let (waiting, _) = guest.clone().handle(1_000, Event::Counted(straggler));
        assert_eq!(leaving(waiting.clone(), 9_000), 1_000 + DRAIN);
        let (one_more, _) = waiting.handle(8_000, Event::Counted(Counts { joined: 3, ..straggler }));
        assert_eq!(leaving(one_more, 9_000), 9_000 + DRAIN, "it has just joined");
    }
}
