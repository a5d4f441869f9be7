//! One run: the clock, what is on its way, and what holds at every step.

use lsm_protocol::{Drain, FromGuest, Join, Millis, Offer, Peer, Side, ToGuest, destination, guest, source};

use crate::{
    before::Before,
    chance::Chance,
    destination_host::DestinationHost,
    guest_side::GuestSide,
    scenario::Scenario,
    source_host::SourceHost,
    world::{
        START, brief, holding,
        hosts::Vm,
        kernel::{Kernel, Truth},
        offer, relative,
    },
};

/// The machines, or broken ones to see that it is noticed.
#[derive(Clone, Copy)]
pub struct Machines {
    pub guest: fn(guest::Guest, Millis, guest::Event) -> (guest::Guest, Vec<guest::Order>),
    pub source: fn(source::Source, Millis, source::Event) -> (source::Source, Vec<source::Order>),
    pub destination:
        fn(destination::Destination, Millis, destination::Event) -> (destination::Destination, Vec<destination::Order>),
}

impl Default for Machines {
    fn default() -> Self {
        Machines {
            guest: guest::Guest::handle,
            source: source::Source::handle,
            destination: destination::Destination::handle,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Source,
    Destination,
}

/// Something that happens at its time.
#[derive(Clone, Debug)]
pub enum What {
    ToSource(Peer),
    ToDestination(Peer),
    ToGuest(Host, ToGuest),
    FromGuest(Host, FromGuest),
    /// Of the guest's own making, in this life of its agent.
    InGuest(u32, guest::Event),
    AtSource(source::Event),
    AtDestination(destination::Event),
    GuestStarts,
    SourceStarts,
    DestinationStarts,
    Dies(Who),
    Libvirt(crate::libvirt::Step),
    StragglerGoes,
    LegacyGoes,
    /// Nobody needs the address any more that was held before.
    HeldGoes,
    BeforeAtSource(destination::Event),
    BeforeAtDestination(source::Event),
    /// From here on nothing goes wrong any more.
    Heals,
    /// Whatever waits for the operator gets its word.
    OperatorEnds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Guest,
    Source,
    Destination,
}

/// How long it may be dark while a service is down or an event is on its way: then the clients only stall.
const DARK: Millis = 6_000;
/// A new path that dies is noticed after this at the latest, though the agent dies in between and the kernel refuses.
const DEAD_NOTICED: Millis = 9_000;
/// Faults end after this.
const TROUBLE: Millis = 45_000;
/// By then everything is over: the longest lease, and what must be said again after it.
pub const LIMIT: Millis = 240_000;

#[derive(Clone)]
pub struct Run {
    pub machines: Machines,
    pub scenario: Scenario,
    pub chance: Chance,
    pub now: Millis,
    pub agenda: Vec<(Millis, u64, What)>,
    sequence: u64,
    pub healthy: bool,
    pub offer: Offer,
    pub vm: Vm,
    /// The destination's QEMU exists.
    pub incoming: bool,
    /// It has existed.
    pub begun: bool,
    pub truth: Truth,
    pub guest: GuestSide,
    pub source: SourceHost,
    pub destination: DestinationHost,
    pub before: Option<Before>,
    /// The operator has ended the old path.
    pub released: bool,
    pub dark_since: Option<Millis>,
    lost_before: Vec<String>,
    /// At which of the orders to come a program dies, where that is not left to chance.
    pub dies_at: Option<u32>,
    /// What happened, told when it goes wrong.
    pub log: Vec<String>,
}

impl Run {
    pub fn new(machines: Machines, seed: u64) -> Run {
        let mut chance = Chance::new(seed);
        let scenario = Scenario::new(&mut chance);
        Run::of(machines, scenario, chance)
    }

    /// That goes so.
    pub fn of(machines: Machines, scenario: Scenario, chance: Chance) -> Run {
        let offer = offer(scenario.join, scenario.drain);
        let truth = Truth {
            there: false,
            straggler: scenario.straggler.is_some(),
            legacy: scenario.legacy.is_some(),
            drain: scenario.drain,
            cut: false,
            held: scenario.held.is_some(),
            held_cut: false,
        };
        let mut run = Run {
            machines,
            chance,
            now: START,
            agenda: Vec::new(),
            sequence: 0,
            healthy: false,
            offer,
            vm: Vm::AtSource,
            incoming: false,
            begun: false,
            truth,
            guest: GuestSide::default(),
            source: SourceHost::default(),
            destination: DestinationHost::default(),
            before: None,
            released: false,
            dark_since: None,
            lost_before: Vec::new(),
            dies_at: None,
            log: vec![format!("{scenario:?}")],
            scenario,
        };
        if run.truth.held {
            run.before = Some(Before::new(Drain::UntilIdle));
            run.guest.machine = holding(Drain::UntilIdle);
            run.guest.disk = run.guest.machine.clone();
            run.guest.kernel = Kernel::holding();
            (run.source.end.held, run.destination.end.held) = (true, true);
        }
        run
    }

    /// Plays it to its end.
    ///
    /// # Errors
    /// The first broken promise.
    pub fn play(&mut self) -> Result<(), String> {
        self.plan();
        self.begin_at_destination()?;
        for _ in 0..100_000 {
            let Some((at, what)) = self.next() else { return self.end() };
            if at > START + LIMIT {
                return Err(format!("stuck: {}", self.states()));
            }
            if self.healthy && self.is_over() {
                return self.end();
            }
            self.now = at;
            self.happens(what)?;
            self.watch()?;
        }
        Err(format!("goes round in circles: {}", self.states()))
    }

    pub fn plan(&mut self) {
        if let Some(after) = self.scenario.straggler {
            self.after(after, What::StragglerGoes);
        }
        if let Some(after) = self.scenario.legacy {
            self.after(after, What::LegacyGoes);
        }
        if let Some(after) = self.scenario.held {
            self.after(after, What::HeldGoes);
        }
        if self.scenario.deaths > 0 {
            for who in [Who::Guest, Who::Source, Who::Destination] {
                let at = self.chance.between(0, 20_000);
                self.after(at, What::Dies(who));
            }
        }
        // Somebody types at the guest's command line.
        let migration = self.offer.migration;
        for told in [
            ToGuest::Abort { migration },
            ToGuest::Switch { migration, to: Side::New },
            ToGuest::Switch { migration, to: Side::Old },
        ] {
            if self.chance.in_thousand(50) {
                let at = self.chance.between(0, 25_000);
                self.after(at, What::InGuest(0, guest::Event::Told(told)));
            }
        }
        self.after(TROUBLE, What::Heals);
        self.after(TROUBLE + 10_000, What::OperatorEnds);
    }

    /// Puts something on the agenda.
    pub fn after(&mut self, wait: Millis, what: What) {
        self.sequence += 1;
        self.agenda.push((self.now + wait, self.sequence, what));
    }

    /// What comes next: from the agenda, or a machine's deadline.
    pub fn next(&mut self) -> Option<(Millis, What)> {
        let listed = self.agenda.iter().enumerate().min_by_key(|(_, (at, sequence, _))| (*at, *sequence));
        let listed = listed.map(|(index, (at, _, _))| (*at, index));
        let before = self.before.as_ref();
        let arrival = before.filter(|_| self.source.up).and_then(|before| before.arrival.deadline());
        let departure = before.filter(|_| self.destination.up).and_then(|before| before.departure.deadline());
        let deadlines = [
            arrival.map(|deadline| (deadline.at, What::BeforeAtSource(destination::Event::Deadline))),
            departure.map(|deadline| (deadline.at, What::BeforeAtDestination(source::Event::Deadline))),
            self.guest.deadline(self.vm).map(|at| (at, What::InGuest(self.guest.life, guest::Event::Deadline))),
            self.source.deadline().map(|at| (at, What::AtSource(source::Event::Deadline))),
            self.destination.deadline().map(|at| (at, What::AtDestination(destination::Event::Deadline))),
        ];
        let deadline = deadlines.into_iter().flatten().min_by_key(|(at, _)| *at);
        match (listed, deadline) {
            (Some((at, _)), Some((due, what))) if due.max(self.now) <= at => Some((due.max(self.now), what)),
            (None, Some((due, what))) => Some((due.max(self.now), what)),
            (Some((at, index)), _) => Some((at, self.agenda.swap_remove(index).2)),
            (None, None) => None,
        }
    }

    pub fn happens(&mut self, what: What) -> Result<(), String> {
        if !self.chance.is_none() {
            self.log.push(format!("{:>6} {}", self.now - START, brief(&relative(&format!("{what:?}"), self.now))));
        }
        match what {
            What::ToSource(message) => self.source_hears(message),
            What::ToDestination(message) => self.destination_hears(message),
            What::ToGuest(host, told) => self.guest_hears(host, told),
            What::FromGuest(host, said) => self.host_hears(host, said),
            What::InGuest(life, event) => self.in_guest(life, event),
            What::AtSource(event) => self.at_source(event),
            What::AtDestination(event) => self.at_destination(event),
            What::GuestStarts => self.guest_starts(),
            What::SourceStarts => self.source_starts(),
            What::DestinationStarts => self.destination_starts(),
            What::Dies(who) => {
                self.dies(who);
                Ok(())
            }
            What::Libvirt(step) => self.libvirt(step),
            What::StragglerGoes => {
                self.truth.straggler = false;
                self.in_guest(self.guest.life, guest::Event::SubflowsChanged)
            }
            What::LegacyGoes => {
                self.truth.legacy = false;
                Ok(())
            }
            What::HeldGoes => {
                self.truth.held = false;
                Ok(())
            }
            What::BeforeAtSource(event) => self.before_at_source(event),
            What::BeforeAtDestination(event) => self.before_at_destination(event),
            What::Heals => {
                self.healthy = true;
                Ok(())
            }
            What::OperatorEnds => self.operator_ends(),
        }
    }

    /// Nothing goes from one host to the other now.
    pub fn is_cut(&self) -> bool {
        let since = self.now - START;
        !self.healthy && self.scenario.cut.is_some_and(|(from, to)| since >= from && since < to)
    }

    /// How long the clients have not reached the new LAN; 0 where they do.
    pub fn dead_for(&self) -> Millis {
        let since = self.now - START;
        let dead = self.scenario.dead.filter(|(from, to)| !self.healthy && since >= *from && since < *to);
        dead.map_or(0, |(from, _)| since - from + 1)
    }

    pub fn is_new_dead(&self) -> bool {
        self.dead_for() > 0 && self.vm == Vm::AtDestination
    }

    /// A message on its way between the hosts, or between a host and the guest: lost, late, or twice. The same kind is
    /// not lost twice in a row: what is silent for longer than a lease is a cut, which the scenario has.
    pub fn send(&mut self, what: What) {
        let between_hosts = matches!(what, What::ToSource(_) | What::ToDestination(_));
        if between_hosts && self.is_cut() {
            return;
        }
        if self.chance.is_none() {
            return self.after(1, what); // who tries everything loses and repeats by itself
        }
        let kind = brief(&format!("{what:?}")).chars().take(28).collect::<String>();
        let before = self.lost_before.iter().position(|lost| *lost == kind);
        if let Some(before) = before {
            self.lost_before.swap_remove(before);
        } else if !self.healthy && self.chance.in_thousand(self.scenario.lost) {
            self.log.push(format!("{:>6} lost: {kind}", self.now - START));
            self.lost_before.push(kind);
            return;
        }
        if !self.healthy && self.chance.in_thousand(self.scenario.repeated) {
            let late = self.chance.between(1, self.scenario.delay * 2);
            self.after(late, what.clone());
        }
        let late = if self.healthy { 1 } else { self.chance.between(1, self.scenario.delay) };
        self.after(late, what);
    }

    /// A program dies while it carries out an order.
    pub fn dies_at_this(&mut self) -> bool {
        if let Some(orders) = &mut self.dies_at {
            *orders = orders.wrapping_sub(1);
            return *orders == u32::MAX;
        }
        !self.healthy && self.chance.in_thousand(self.scenario.deaths)
    }

    pub fn dies(&mut self, who: Who) {
        let down = self.chance.between(50, 2_000);
        match who {
            Who::Guest => {
                self.guest.die();
                self.after(down, What::GuestStarts);
            }
            Who::Source => {
                self.source.die();
                self.after(down, What::SourceStarts);
                if self.vm == Vm::AtSource {
                    self.after(1, What::InGuest(self.guest.life, guest::Event::TransportReset));
                }
            }
            Who::Destination => {
                self.destination.die();
                self.after(down, What::DestinationStarts);
            }
        }
    }

    fn operator_ends(&mut self) -> Result<(), String> {
        let migration = self.offer.migration;
        if let guest::Guest::Prepared(s) = &self.guest.machine
            && s.arrival == guest::Arrival::Sure
        {
            // Who switched back by hand switches again by hand.
            let told = guest::Event::Told(ToGuest::Switch { migration, to: Side::New });
            self.in_guest(self.guest.life, told)?;
        }
        let for_ever = self.offer.drain == Drain::Forever || self.offer.join == Join::Never;
        if for_ever && matches!(self.destination.machine, destination::Destination::Arrived { .. }) {
            self.released = true;
            self.at_destination(destination::Event::Release)?;
        }
        self.after(5_000, What::OperatorEnds);
        Ok(())
    }

    /// What must hold whenever nobody is in the middle of something.
    pub fn watch(&mut self) -> Result<(), String> {
        if self.is_usable() {
            self.dark_since = None;
            return Ok(());
        }
        let since = *self.dark_since.get_or_insert(self.now);
        let noticed = if self.scenario.dead.is_some() { DEAD_NOTICED } else { 0 };
        if self.now - since > DARK + noticed {
            return Err(format!("no usable path since {}: {}", since - START, self.states()));
        }
        Ok(())
    }

    fn is_usable(&self) -> bool {
        let (kernel, source, destination) = (&self.guest.kernel, &self.source.end, &self.destination.end);
        let tunnel = source.leads_to_new() && destination.leads_to_source();
        let held_stands = match self.vm {
            Vm::AtSource => kernel.new_up && tunnel,
            Vm::AtDestination => kernel.new_up,
            Vm::Paused | Vm::Dead => true,
        };
        if self.is_held() && !held_stands {
            return false;
        }
        let old_stands = !kernel.old_withdrawn && !kernel.old_released;
        let given_up = kernel.old_withdrawn || self.truth.cut; // before it died, or by whoever wanted it so
        let new_stands = kernel.new_up && kernel.announced && (!self.is_new_dead() || given_up);
        match self.vm {
            Vm::AtSource => old_stands && !source.diverted || new_stands && tunnel,
            Vm::AtDestination => {
                // Who never joins has the old path until the operator ends it.
                let ended = self.released && self.offer.join == Join::Never;
                let old_stands = old_stands && source.home && destination.home;
                let in_use = !self.is_new_dead() || kernel.preferred == Side::Old;
                old_stands && in_use || new_stands || ended
            }
            Vm::Paused | Vm::Dead => true,
        }
    }

    pub fn is_over(&self) -> bool {
        let guest = matches!(self.guest.machine, guest::Guest::Idle { .. }) || self.vm == Vm::Dead;
        let hosts = self.source.is_over() && self.destination.is_over();
        let before = self.before.as_ref().is_none_or(Before::is_over);
        guest && self.guest.up && hosts && before && self.vm != Vm::Paused
    }

    /// Everything is settled or undone, on all three.
    pub fn end(&self) -> Result<(), String> {
        let (kernel, source, destination) = (&self.guest.kernel, &self.source.end, &self.destination.end);
        if !self.is_over() {
            return Err(format!("stuck: {}", self.states()));
        }
        if !source.is_clean() || !destination.is_clean() || source.held || destination.held {
            return Err(format!("a tunnel is left: {}", self.states()));
        }
        let moved = self.vm == Vm::AtDestination && self.offer.join != Join::Never;
        let as_it_should = match self.vm {
            Vm::Dead => true,
            _ if kernel.fault => true,
            _ if moved => kernel.as_after(),
            _ => kernel.as_before(),
        };
        if !as_it_should {
            return Err(format!("the guest is left half-way: {}", self.states()));
        }
        Ok(())
    }

    pub fn states(&self) -> String {
        let text = format!(
            "VM {:?}\n  guest {:?}\n    {:?}\n  source {:?}\n    {:?}\n  destination {:?}\n    {:?}",
            self.vm,
            self.guest.machine,
            self.guest.kernel,
            self.source.machine,
            self.source.end,
            self.destination.machine,
            self.destination.end
        );
        let text = format!("{text}\n  before {:?}", self.before);
        brief(&relative(&text, self.now))
    }
}
