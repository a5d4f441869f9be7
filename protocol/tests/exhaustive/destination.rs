//! The destination's machine in every order of events, with a service that dies while it carries out orders.

use std::collections::VecDeque;

use lsm_protocol::{
    Counts, Decline, Drain, FromGuest, GuestFailure, Join, Millis, Peer, Refusal, Side,
    destination::{Destination, Event, Impassable, Order, Policy, Unprepared},
    forecast::{Forecast, Survival},
};

use crate::world::{
    FOREIGN, OURS, START,
    explore::{Explored, Node, explore, most_states},
    hosts::{DestinationEnd, Hook, Vm},
    offer, relative,
};

type Handle = fn(Destination, Millis, Event) -> (Destination, Vec<Order>);

#[derive(Clone)]
struct InDestination {
    handle: Handle,
    now: Millis,
    machine: Destination,
    /// What the next start of the service would find: written after the orders, and only when the name changed.
    disk: Option<Destination>,
    orders: VecDeque<Order>,
    events: VecDeque<Event>,
    unsaved: bool,
    end: DestinationEnd,
    vm: Vm,
    join: Join,
    /// The guest settled, the operator released it, or both sides had given up before the VM came.
    home_over: bool,
    /// Full frames are on their way through the tunnels.
    trial: bool,
    /// They have come back.
    carried: bool,
    /// The VM's QEMU is there.
    begun: bool,
    /// Policy has a condition that only the preparation can show to be met, and it has not.
    uncounted: bool,
}

impl InDestination {
    fn new(handle: Handle, join: Join, policy: Policy) -> InDestination {
        let (machine, orders) = Destination::new(START, offer(join, Drain::UntilIdle), policy);
        InDestination {
            handle,
            now: START,
            disk: Some(machine.clone()),
            machine,
            orders: orders.into(),
            events: VecDeque::new(),
            unsaved: false,
            end: DestinationEnd::default(),
            vm: Vm::AtSource,
            join,
            home_over: false,
            trial: false,
            carried: false,
            begun: false,
            uncounted: join == Join::Before && policy.prepare_wait > 0 && policy.survival.demands_any(),
        }
    }

    fn feed(mut self, event: Event) -> Result<Self, String> {
        let aside = self.is_aside();
        match &event {
            Event::Begun => self.begun = true,
            Event::Carries => (self.trial, self.carried) = (false, true),
            Event::Impassable(_) => self.trial = false,
            Event::Peer(Peer::GuestPrepared { migration: OURS, .. }) => self.uncounted = false,
            // Of a VM on its way back the home tunnel is in use, whoever says what.
            Event::Release | Event::Peer(Peer::TakenDown { .. }) if aside => {}
            Event::Guest(FromGuest::Settled { migration: OURS }) | Event::Release => self.home_over = true,
            // The source gave up: it has taken down its end already.
            Event::Peer(
                Peer::Abort { migration: OURS }
                | Peer::Declined { migration: OURS, .. }
                | Peer::TakenDown { migration: OURS },
            ) => self.home_over = true,
            _ => {}
        }
        let (machine, orders) = (self.handle)(self.machine.clone(), self.now, event.clone());
        // Nothing of the old path works without its other end.
        self.home_over |= orders.iter().any(|order| matches!(order, Order::SourceLost(_)));
        let foreign = matches!(&event, Event::Peer(peer) if peer.migration() == Some(FOREIGN))
            || matches!(&event, Event::Guest(FromGuest::Settled { migration: FOREIGN }));
        if foreign && (machine != self.machine || !orders.is_empty()) {
            return Err("another migration's message changed something".to_owned());
        }
        if matches!(event, Event::Peer(_) | Event::Guest(_)) {
            let (_, repeated) = (self.handle)(machine.clone(), self.now, event);
            if let Some(order) = repeated.iter().find(|order| is_destructive(order) && orders.contains(order)) {
                return Err(format!("a repeated message repeats {order:?}"));
            }
        }
        self.unsaved |= machine.name() != self.machine.name();
        self.machine = machine;
        let another_s = |order: &Order| matches!(order, Order::TellGuest(_) | Order::PointAtTap | Order::PointAtTunnel);
        if self.is_aside() && orders.iter().any(another_s) {
            return Err(format!("meddles with a VM on its way back: {orders:?}"));
        }
        self.orders = orders.into();
        self.saved();
        Ok(self)
    }

    fn is_aside(&self) -> bool {
        matches!(self.machine, Destination::Arrived { aside: true, .. })
    }

    fn saved(&mut self) {
        if self.orders.is_empty() && self.unsaved {
            self.unsaved = false;
            self.disk = Some(self.machine.clone());
        }
    }

    fn perform(mut self, works: bool) -> Result<Self, String> {
        let Some(order) = self.orders.pop_front() else { return Ok(self) };
        self.end.perform(&order, works, self.vm, self.join, self.home_over)?;
        if matches!(order, Order::Admit { .. }) && !self.carried {
            return Err("admits a VM whose tunnels were not tried".to_owned());
        }
        if matches!(order, Order::Admit { .. }) && self.uncounted {
            return Err("admits a VM though nobody has counted who can move".to_owned());
        }
        self.trial |= order == Order::TryTunnels;
        if order == Order::BuildEnds {
            self.events.push_back(match works {
                true => Event::Built,
                false => Event::BuildFailed(Decline::Tunnel("as tried".to_owned())),
            });
        }
        self.saved();
        Ok(self)
    }

    fn restart(mut self) -> Result<Self, String> {
        self.orders.clear();
        self.events.clear();
        (self.unsaved, self.trial) = (false, false);
        if self.end.hook == Hook::Waits {
            self.end.hook = Hook::Lost; // and libvirt has refused the migration
        }
        match self.disk.clone() {
            Some(disk) => {
                self.machine = disk;
                let mut at = self.feed(Event::Restarted)?;
                // The service asks libvirt what became of the VM meanwhile.
                match at.vm {
                    Vm::AtDestination => at.events.push_back(Event::Arrived),
                    Vm::Dead => at.events.push_back(Event::VmGone),
                    _ if at.begun => at.events.push_back(Event::Begun),
                    _ => {}
                }
                Ok(at)
            }
            None => {
                let hook = self.end.hook;
                (self.machine, self.end) = (Destination::Gone, DestinationEnd { hook, ..DestinationEnd::default() });
                Ok(self)
            }
        }
    }

    fn deadline(mut self) -> Result<Self, String> {
        let Some(deadline) = self.machine.deadline() else { return Ok(self) };
        self.now = self.now.max(deadline.at);
        let before = self.machine.clone();
        let after = self.feed(Event::Deadline)?;
        if after.machine == before && after.orders.is_empty() {
            return Err(format!("spins on a deadline that changes nothing: {}", deadline.awaited));
        }
        Ok(after)
    }

    fn outside(&self) -> Vec<(Vm, Event)> {
        let (migration, counts) = (OURS, Counts::default());
        let mut peer = vec![
            Peer::Accepted { migration },
            Peer::Declined { migration, why: Decline::Busy(FOREIGN) },
            Peer::GuestPrepared { migration, counts },
            Peer::GuestPrepared { migration, counts: Counts { legacy: 1, ..counts } },
            Peer::Foreseen { vm: offer(Join::Before, Drain::UntilIdle).vm, forecast: Some(Forecast::default()) },
            Peer::GuestRefused { migration, why: GuestFailure::Silent(1) },
            Peer::Flipped { migration },
            Peer::Stopped { migration },
            Peer::TakenDown { migration },
            Peer::Accepted { migration: FOREIGN },
            Peer::Abort { migration: FOREIGN },
            Peer::TakenDown { migration: FOREIGN },
        ];
        let mut guest = vec![FromGuest::Settled { migration: FOREIGN }];
        if self.vm == Vm::AtDestination {
            guest.extend([
                FromGuest::Prepared { migration, counts },
                FromGuest::Refused { migration, why: Refusal::NoSuchMigration },
                FromGuest::Refused { migration, why: Refusal::Busy(FOREIGN) },
                FromGuest::Switched { migration, to: Side::New, counts },
                FromGuest::Switched { migration, to: Side::Old, counts },
                FromGuest::Settled { migration },
                FromGuest::Aborted { migration },
            ]);
            guest.remove(0);
        } else {
            peer.extend([Peer::Resumed { migration }, Peer::Abort { migration }]);
            guest.clear();
        }
        let mut all: Vec<_> = guest
            .into_iter()
            .map(Event::Guest)
            .chain(peer.into_iter().map(Event::Peer))
            .map(|e| (self.vm, e))
            .collect();
        all.push((self.vm, Event::Release));
        if self.machine.holds() {
            all.push((self.vm, Event::Departs));
        }
        if self.is_aside() {
            all.push((self.vm, Event::Stays));
        }
        if self.trial {
            all.push((self.vm, Event::Carries));
            all.push((self.vm, Event::Impassable(Impassable::Closed { port: 4789 })));
        }
        if self.end.hook == Hook::Admitted {
            all.push((self.vm, Event::Begun));
        }
        if self.begun && self.vm == Vm::AtSource {
            all.push((Vm::AtDestination, Event::Arrived));
        }
        if self.vm == Vm::AtDestination {
            all.push((self.vm, Event::Arrived));
            all.push((self.vm, Event::Crossed));
            all.push((self.vm, Event::Peer(Peer::KeepAlive { migration })));
        }
        all.push((Vm::Dead, Event::VmGone));
        all
    }

    /// With everybody doing their part, or with the peer silent, does it come to an end?
    fn comes_to_an_end(&self, silent: bool) -> Result<(), String> {
        let mut at = self.clone();
        for _ in 0..150 {
            at = if !at.orders.is_empty() {
                at.perform(true)?
            } else if let Some(event) = at.events.pop_front() {
                at.feed(event)?
            } else {
                match (&at.machine, at.vm) {
                    (Destination::Gone, _) => return Ok(()),
                    (Destination::Incoming { .. }, Vm::AtDestination) => at.feed(Event::Arrived)?,
                    // An incoming VM that libvirt has not started is given up in time.
                    (Destination::Incoming { begin: Some(_), .. }, _) => at.deadline()?,
                    (Destination::Incoming { .. }, _) => InDestination { vm: Vm::Dead, ..at }.feed(Event::VmGone)?,
                    (Destination::Arrived { aside: true, .. }, _) => at.feed(Event::Stays)?,
                    (Destination::Arrived { .. }, _) if at.join == Join::Never => at.feed(Event::Release)?,
                    (Destination::Arrived { .. }, _) => {
                        at.feed(Event::Guest(FromGuest::Settled { migration: OURS }))?
                    }
                    (Destination::TakingDown { .. } | Destination::Undoing { .. }, _) if !silent => {
                        at.feed(Event::Peer(Peer::TakenDown { migration: OURS }))?
                    }
                    _ => at.deadline()?,
                }
            };
        }
        Err(format!("never comes to an end: {}", self.key()))
    }
}

impl Node for InDestination {
    fn key(&self) -> String {
        let InDestination {
            now,
            machine,
            disk,
            orders,
            events,
            unsaved,
            end,
            vm,
            join,
            home_over,
            trial,
            carried,
            begun,
            uncounted,
            ..
        } = self;
        let disk = (disk.as_ref() != Some(machine)).then_some(disk);
        let all =
            (machine, disk, orders, events, unsaved, end, vm, join, home_over, (trial, carried, begun, uncounted));
        relative(&format!("{all:?}"), *now)
    }

    fn next(&self) -> Vec<(String, Result<Self, String>)> {
        let mut next = Vec::new();
        let mut add = |name: String, result| next.push((name, result));
        if let Some(order) = self.orders.front() {
            add(format!("{order:?}"), self.clone().perform(true));
            if *order == Order::BuildEnds {
                add("BuildEnds fails".to_owned(), self.clone().perform(false));
            }
            add("the service dies".to_owned(), self.clone().restart());
            return next;
        }
        if !self.events.is_empty() {
            let mut at = self.clone();
            if let Some(event) = at.events.pop_front() {
                add(format!("{event:?}"), at.feed(event));
            }
            add("the service dies".to_owned(), self.clone().restart());
            return next;
        }
        if self.machine == Destination::Gone {
            return next;
        }
        for (vm, event) in self.outside() {
            add(format!("{event:?}"), InDestination { vm, ..self.clone() }.feed(event));
        }
        if let Some(deadline) = self.machine.deadline() {
            add(format!("in vain awaited {}", deadline.awaited), self.clone().deadline());
        }
        add("the service is restarted".to_owned(), self.clone().restart());
        if self.begun && self.vm == Vm::AtSource {
            add("the VM arrives, unheard".to_owned(), Ok(InDestination { vm: Vm::AtDestination, ..self.clone() }));
        }
        next
    }

    fn check(&self) -> Result<(), String> {
        if !self.orders.is_empty() || !self.events.is_empty() {
            return Ok(());
        }
        if self.machine == Destination::Gone && !self.end.is_clean() {
            return Err(format!("something is left: {:?}", self.end));
        }
        if self.machine != Destination::Gone && self.machine.deadline().is_none() {
            return Err(format!("{} waits for nobody", self.machine.name()));
        }
        let asked = matches!(self.machine, Destination::Building { .. } | Destination::Waiting { .. });
        if !asked && self.end.hook == Hook::Waits {
            return Err("the hook is left waiting".to_owned());
        }
        self.comes_to_an_end(true)?;
        self.comes_to_an_end(false)
    }
}

fn is_destructive(order: &Order) -> bool {
    matches!(order, Order::RemoveAdvance | Order::RemoveHome | Order::Refuse(_) | Order::Admit { .. })
}

fn try_all(handle: Handle) -> Result<Explored, String> {
    let mut roots = Vec::new();
    for join in [Join::Before, Join::After, Join::Never] {
        for unprepared in [Unprepared::Refuse, Unprepared::PostJoin] {
            for (prepare_wait, survival) in
                [(0, Survival::ANY), (5_000, Survival::ANY), (5_000, Survival::Percent(100))]
            {
                let policy = Policy { unprepared, prepare_wait, survival };
                roots.push((format!("join {join:?}, {policy:?}"), InDestination::new(handle, join, policy)));
            }
        }
    }
    explore(roots, 60, most_states(150_000))
}

#[test]
fn the_hook_is_answered_and_the_old_path_outlives_the_doubt() {
    match try_all(Destination::handle) {
        Ok(explored) => {
            println!("destination: {explored}");
            assert!(explored.depth >= 6 || explored.whole);
        }
        Err(story) => panic!("{story}"),
    }
}

fn noticed(handle: Handle, promise: &str) {
    let story = try_all(handle).expect_err(promise);
    assert!(story.contains(promise), "{story}");
}

#[test]
fn a_tunnel_removed_too_early_is_noticed() {
    noticed(
        |machine, now, event| {
            let event = match event {
                Event::Guest(FromGuest::Switched { migration, .. }) => Event::Guest(FromGuest::Settled { migration }),
                event => event,
            };
            machine.handle(now, event)
        },
        "removes the tunnel in use",
    );
}

#[test]
fn a_hook_without_an_answer_is_noticed() {
    noticed(
        |machine, now, event| {
            let (state, mut orders) = machine.handle(now, event);
            orders.retain(|order| !matches!(order, Order::Refuse(_)));
            (state, orders)
        },
        "the hook is left waiting",
    );
}

#[test]
fn a_mac_that_leads_nowhere_is_noticed() {
    noticed(
        |machine, now, event| {
            let (state, mut orders) = machine.handle(now, event);
            orders.retain(|order| *order != Order::PointAtTap);
            (state, orders)
        },
        "leaves the new MAC without a way",
    );
}

#[test]
fn ends_left_behind_are_noticed() {
    noticed(
        |machine, now, event| match machine.handle(now, event) {
            (Destination::Gone, _) => (Destination::Gone, vec![]),
            other => other,
        },
        "something is left",
    );
}

#[test]
fn a_vm_admitted_before_its_tunnels_were_tried_is_noticed() {
    noticed(
        |machine, now, event| {
            let (state, orders) = machine.handle(now, event);
            if !orders.contains(&Order::TryTunnels) {
                return (state, orders);
            }
            let (state, more) = state.handle(now, Event::Carries);
            (state, [orders, more].concat())
        },
        "whose tunnels were not tried",
    );
}
