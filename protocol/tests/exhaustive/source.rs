//! The source's machine in every order of events, with a service that dies while it carries out orders.

use std::collections::VecDeque;

use lsm_protocol::{
    Counts, Decline, Drain, FromGuest, Join, Millis, Peer, Refusal, Side, ToGuest,
    source::{Event, Order, Source, Switch, UNDO},
};

use crate::world::{
    FOREIGN, LEASE, OURS, START,
    explore::{Explored, Node, explore, most_states},
    hosts::{AtSource, SourceEnd, Vm},
    offer, relative,
};

type Handle = fn(Source, Millis, Event) -> (Source, Vec<Order>);

#[derive(Clone)]
struct InSource {
    handle: Handle,
    now: Millis,
    machine: Source,
    /// What the next start of the service would find: written after the orders, and only when the name changed.
    disk: Option<Source>,
    orders: VecDeque<Order>,
    events: VecDeque<Event>,
    unsaved: bool,
    end: SourceEnd,
    vm: Vm,
    join: Join,
    /// Said by the peer, or by its silence.
    home_over: bool,
    /// The last word from the peer.
    heard: Millis,
    /// The guest was told to prepare, and has not said since that it is out.
    inside: bool,
    /// When the guest was told to abort.
    aborted: Option<Millis>,
    gone_said: bool,
}

impl InSource {
    fn new(handle: Handle, join: Join, switch: Switch) -> InSource {
        let (machine, orders) = Source::new(START, offer(join, Drain::UntilIdle), switch);
        InSource {
            handle,
            now: START,
            disk: Some(machine.clone()),
            machine,
            orders: orders.into(),
            events: VecDeque::new(),
            unsaved: false,
            end: SourceEnd::default(),
            vm: Vm::AtSource,
            join,
            home_over: false,
            heard: START,
            inside: false,
            aborted: None,
            gone_said: false,
        }
    }

    fn feed(mut self, event: Event) -> Result<Self, String> {
        match &event {
            Event::Peer(Peer::TakeDown { migration: OURS } | Peer::Abort { migration: OURS }) => self.home_over = true,
            // Where the ends could not be built again, the guest finds out: it has its old path, and its lease.
            Event::BuildFailed(_) => (self.home_over, self.inside) = (true, false),
            Event::Peer(Peer::KeepAlive { migration: OURS } | Peer::Arrived { migration: OURS }) => {
                self.heard = self.now
            }
            Event::Guest(FromGuest::Aborted { migration: OURS } | FromGuest::Refused { migration: OURS, .. }) => {
                self.inside = false;
            }
            _ => {}
        }
        let (machine, orders) = (self.handle)(self.machine.clone(), self.now, event.clone());
        let foreign = match &event {
            Event::Peer(peer) => peer.migration() == Some(FOREIGN),
            Event::Guest(FromGuest::Prepared { migration, .. } | FromGuest::Aborted { migration }) => {
                *migration == FOREIGN
            }
            _ => false,
        };
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
        self.orders = orders.into();
        self.saved();
        Ok(self)
    }

    fn saved(&mut self) {
        if self.orders.is_empty() && self.unsaved {
            self.unsaved = false;
            self.disk = Some(self.machine.clone());
        }
    }

    fn truth(&self) -> AtSource {
        let had_time = self.aborted.is_some_and(|at| self.now >= at + UNDO);
        AtSource { vm: self.vm, join: self.join, home_over: self.home_over, guest_inside: self.inside && !had_time }
    }

    fn perform(mut self, works: bool) -> Result<Self, String> {
        let Some(order) = self.orders.pop_front() else { return Ok(self) };
        // The peer's word comes before our own eyes: it runs there although libvirt did not say so here.
        self.end.perform(&order, works, &self.truth())?;
        match &order {
            Order::BuildEnds if works => self.events.push_back(Event::Built),
            Order::BuildEnds => self.events.push_back(Event::BuildFailed(Decline::Tunnel("as tried".to_owned()))),
            Order::TellGuest(ToGuest::Prepare(_)) => self.inside = true,
            Order::TellGuest(ToGuest::Abort { .. }) => self.aborted = self.aborted.or(Some(self.now)),
            _ => {}
        }
        self.saved();
        Ok(self)
    }

    fn restart(mut self) -> Result<Self, String> {
        self.orders.clear();
        self.events.clear();
        self.unsaved = false;
        self.aborted = None;
        match self.disk.clone() {
            Some(disk) => {
                self.machine = disk;
                let mut at = self.feed(Event::Restarted)?;
                // The service asks libvirt what became of the VM meanwhile.
                at.gone_said |= matches!(at.vm, Vm::AtDestination | Vm::Dead);
                at.events.push_back(match at.vm {
                    Vm::AtSource => Event::Resumed,
                    Vm::Paused => Event::Suspended,
                    Vm::AtDestination | Vm::Dead => Event::VmGone,
                });
                Ok(at)
            }
            None => {
                // Nothing is known of it: the service removes what it finds.
                (self.machine, self.end, self.inside) = (Source::Gone, SourceEnd::default(), false);
                Ok(self)
            }
        }
    }

    fn deadline(mut self) -> Result<Self, String> {
        let Some(deadline) = self.machine.deadline() else { return Ok(self) };
        self.now = self.now.max(deadline.at);
        self.home_over |= self.now >= self.heard + LEASE; // given up for good
        let before = self.machine.clone();
        let after = self.feed(Event::Deadline)?;
        if after.machine == before && after.orders.is_empty() {
            return Err(format!("spins on a deadline that changes nothing: {}", deadline.awaited));
        }
        Ok(after)
    }

    fn outside(&self) -> Vec<(Vm, bool, Event)> {
        let (migration, counts) = (OURS, Counts { joined: 2, early: 2, ..Counts::default() });
        let guest = [
            FromGuest::Prepared { migration, counts },
            FromGuest::Refused { migration, why: Refusal::NoSuchMigration },
            FromGuest::Refused { migration, why: Refusal::Busy(FOREIGN) },
            FromGuest::Switched { migration, to: Side::New, counts },
            FromGuest::Switched { migration, to: Side::Old, counts },
            FromGuest::Settled { migration },
            FromGuest::Aborted { migration },
            FromGuest::Prepared { migration: FOREIGN, counts },
            FromGuest::Aborted { migration: FOREIGN },
        ];
        let mut peer = vec![
            Peer::KeepAlive { migration },
            Peer::Offer(offer(self.join, Drain::UntilIdle)),
            Peer::KeepAlive { migration: FOREIGN },
            Peer::Abort { migration: FOREIGN },
            Peer::Arrived { migration: FOREIGN },
            Peer::TakeDown { migration: FOREIGN },
        ];
        match self.vm {
            Vm::AtDestination => peer.extend([Peer::Arrived { migration }, Peer::TakeDown { migration }]),
            _ => peer.push(Peer::Abort { migration }),
        }
        let mut events: Vec<Event> =
            guest.into_iter().map(Event::Guest).chain(peer.into_iter().map(Event::Peer)).collect();
        events.extend([Event::Progress { left: 0 }, Event::Progress { left: 60_000 }]);
        let mut all: Vec<_> = events.into_iter().map(|event| (self.vm, self.gone_said, event)).collect();
        match self.vm {
            Vm::AtSource => {
                all.push((Vm::Paused, false, Event::Suspended));
                all.push((Vm::Dead, true, Event::VmGone));
            }
            Vm::Paused => {
                all.push((Vm::AtSource, false, Event::Resumed));
                all.push((Vm::Dead, true, Event::VmGone));
            }
            Vm::AtDestination if !self.gone_said => all.push((self.vm, true, Event::VmGone)),
            _ => {}
        }
        all
    }

    /// Its peer gone or saying what is so, does it come to an end?
    fn comes_to_an_end(&self, silent: bool) -> Result<(), String> {
        let mut at = self.clone();
        for _ in 0..60 {
            at = if !at.orders.is_empty() {
                at.perform(true)?
            } else if let Some(event) = at.events.pop_front() {
                at.feed(event)?
            } else if at.machine == Source::Gone {
                return Ok(());
            } else if silent {
                at.deadline()?
            } else {
                let migration = OURS;
                let word = match at.vm {
                    Vm::AtDestination => Peer::TakeDown { migration },
                    _ if at.machine.name() == "undoing" => return Ok(()), // by its deadlines: tried above
                    _ => Peer::Abort { migration },
                };
                at.feed(Event::Peer(word))?
            };
        }
        // A VM that is paused here waits for libvirt, or its peer.
        if silent && matches!(at.machine, Source::Stopped(_)) {
            Ok(())
        } else {
            Err(format!("never comes to an end: {}", self.key()))
        }
    }
}

impl Node for InSource {
    fn key(&self) -> String {
        let InSource {
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
            heard,
            inside,
            aborted,
            gone_said,
            ..
        } = self;
        let (silent, had_time) = (heard + LEASE, aborted.map(|at| at + UNDO));
        let disk = (disk.as_ref() != Some(machine)).then_some(disk);
        let world = (end, vm, join, home_over, silent, inside, had_time, gone_said);
        let all = (machine, disk, orders, events, unsaved, world);
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
        if self.machine == Source::Gone {
            return next;
        }
        for (vm, gone_said, event) in self.outside() {
            add(format!("{event:?}"), InSource { vm, gone_said, ..self.clone() }.feed(event));
        }
        if let Some(deadline) = self.machine.deadline() {
            add(format!("in vain awaited {}", deadline.awaited), self.clone().deadline());
        }
        add("the service is restarted".to_owned(), self.clone().restart());
        // What libvirt does without our hearing of it: the service was down, or the event is late.
        match self.vm {
            Vm::AtSource => {
                add("the VM is paused, unheard".to_owned(), Ok(InSource { vm: Vm::Paused, ..self.clone() }))
            }
            Vm::Paused => add("the VM moves".to_owned(), Ok(InSource { vm: Vm::AtDestination, ..self.clone() })),
            _ => {}
        }
        next
    }

    fn check(&self) -> Result<(), String> {
        if !self.orders.is_empty() || !self.events.is_empty() {
            return Ok(());
        }
        if self.vm == Vm::AtSource && self.end.diverted {
            return Err("the VM runs here and its traffic is diverted".to_owned());
        }
        if self.machine == Source::Gone && !self.end.is_clean() {
            return Err(format!("something is left: {:?}", self.end));
        }
        if self.machine != Source::Gone && self.machine.deadline().is_none() {
            return Err(format!("{} waits for nobody", self.machine.name()));
        }
        self.comes_to_an_end(true)?;
        self.comes_to_an_end(false)
    }
}

fn is_destructive(order: &Order) -> bool {
    matches!(
        order,
        Order::RemoveAdvance | Order::RemoveHome | Order::UndoDivert | Order::TellGuest(ToGuest::Abort { .. })
    )
}

fn try_all(handle: Handle) -> Result<Explored, String> {
    let ways = [
        (Join::Before, Switch::Auto),
        (Join::Before, Switch::Early),
        (Join::Before, Switch::Arrival),
        (Join::After, Switch::Auto),
        (Join::Never, Switch::Auto),
    ];
    let roots =
        ways.map(|(join, switch)| (format!("join {join:?}, switch {switch:?}"), InSource::new(handle, join, switch)));
    explore(roots.into(), 400, most_states(150_000))
}

#[test]
fn the_old_path_outlives_the_doubt() {
    match try_all(Source::handle) {
        Ok(explored) => {
            println!("source: {explored}");
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
        |machine, now, event| match (machine, event) {
            (machine, Event::Peer(Peer::Arrived { migration: OURS })) => {
                let (state, mut orders) = machine.handle(now, Event::Peer(Peer::TakeDown { migration: OURS }));
                orders.retain(|order| *order != Order::UndoDivert);
                (state, orders)
            }
            (machine, event) => machine.handle(now, event),
        },
        "removes the tunnel in use",
    );
}

#[test]
fn a_diversion_left_is_noticed() {
    noticed(
        |machine, now, event| {
            let (state, mut orders) = machine.handle(now, event);
            orders.retain(|order| *order != Order::UndoDivert);
            (state, orders)
        },
        "its traffic is diverted",
    );
}

#[test]
fn a_tunnel_removed_under_the_guest_is_noticed() {
    noticed(
        |machine, now, event| match (machine, event) {
            (machine @ Source::Undoing { .. }, _) => {
                machine.handle(now, Event::Guest(FromGuest::Aborted { migration: OURS }))
            }
            (machine, event) => machine.handle(now, event),
        },
        "removes the tunnel under the guest",
    );
}

#[test]
fn a_machine_that_waits_for_ever_is_noticed() {
    noticed(
        |machine, now, event| match (machine, event) {
            (machine @ Source::Departed { .. }, Event::Peer(Peer::TakeDown { .. })) => (machine, vec![]),
            (machine, event) => machine.handle(now, event),
        },
        "never comes to an end",
    );
}
