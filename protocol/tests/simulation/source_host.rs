//! The source: its machine, its end of the tunnels, and the service around them as `lsm-hook serve` is.

use std::collections::VecDeque;

use lsm_protocol::{
    FromGuest, Join, Millis, Peer, ToGuest,
    forecast::Forecast,
    source::{Event, Order, Source, UNDO},
};

use crate::{
    run::{Host, Run, What, Who},
    world::{
        BEFORE,
        hosts::{AtSource, SourceEnd, Vm},
    },
};

#[derive(Clone, Debug)]
pub struct SourceHost {
    pub machine: Option<Source>,
    pub disk: Option<Source>,
    pub end: SourceEnd,
    pub up: bool,
    /// The guest was told to prepare, and has not said since that it is out.
    pub inside: bool,
    /// Since when it has been told to abort.
    pub aborted: Option<Millis>,
}

impl Default for SourceHost {
    fn default() -> Self {
        SourceHost { machine: None, disk: None, end: SourceEnd::default(), up: true, inside: false, aborted: None }
    }
}

impl SourceHost {
    pub fn deadline(&self) -> Option<Millis> {
        self.machine.as_ref().filter(|_| self.up)?.deadline().map(|deadline| deadline.at)
    }

    pub fn die(&mut self) {
        self.up = false;
    }

    pub fn is_over(&self) -> bool {
        self.up && self.machine.is_none()
    }
}

impl Run {
    pub fn source_starts(&mut self) -> Result<(), String> {
        self.source.up = true;
        self.source.aborted = None;
        self.source.machine = self.source.disk.clone();
        if self.source.machine.is_none() {
            // Tunnels that nothing needs any more.
            let diverted = self.source.end.diverted && self.vm == Vm::AtSource;
            let held = self.source.end.held;
            self.source.end = SourceEnd { diverted, held, ..SourceEnd::default() };
            self.source.inside = false;
            return self.before_starts_at_source(true);
        }
        self.before_starts_at_source(false)?;
        self.at_source(Event::Restarted)?;
        self.at_source(match self.vm {
            Vm::AtSource => Event::Resumed,
            Vm::Paused => Event::Suspended,
            Vm::AtDestination | Vm::Dead => Event::VmGone,
        })
    }

    /// What the service does with a peer's message.
    pub fn source_hears(&mut self, message: Peer) -> Result<(), String> {
        if !self.source.up {
            return Ok(());
        }
        if let Some(heard) = self.hears_before(Host::Source, &message) {
            return heard;
        }
        let runs_here = matches!(self.vm, Vm::AtSource | Vm::Paused);
        match (&self.source.machine, &message) {
            (_, Peer::Foresee { vm }) => {
                let forecast = runs_here.then(Forecast::default);
                self.send(What::ToDestination(Peer::Foreseen { vm: *vm, forecast }));
                Ok(())
            }
            (None, Peer::Offer(offer)) if runs_here && !self.may_depart() => {
                let why = lsm_protocol::Decline::Busy(BEFORE);
                self.send(What::ToDestination(Peer::Declined { migration: offer.migration, why }));
                Ok(())
            }
            (None, Peer::Offer(offer)) if runs_here => {
                self.before_at_source(lsm_protocol::destination::Event::Departs)?;
                let (machine, orders) = Source::new(self.now, offer.clone(), self.scenario.switch);
                (self.source.machine, self.source.disk) = (Some(machine.clone()), Some(machine));
                (self.source.inside, self.source.aborted) = (false, None);
                let events = self.carry_out_at_source(orders)?;
                if self.source.up { self.feed_source(events) } else { Ok(()) }
            }
            (None, Peer::Offer(_)) => {
                let why = lsm_protocol::Decline::NotRunning;
                self.send(What::ToDestination(Peer::Declined { migration: self.offer.migration, why }));
                Ok(())
            }
            (None, Peer::TakeDown { migration } | Peer::Abort { migration } | Peer::Arrived { migration }) => {
                self.send(What::ToDestination(Peer::TakenDown { migration: *migration }));
                Ok(())
            }
            (None, Peer::KeepAlive { migration }) => {
                self.send(What::ToDestination(Peer::Abort { migration: *migration }));
                Ok(())
            }
            (None, _) => Ok(()),
            (Some(_), _) => self.at_source(Event::Peer(message)),
        }
    }

    pub fn host_hears(&mut self, host: Host, said: FromGuest) -> Result<(), String> {
        match host {
            Host::Source if self.source.machine.is_none() => self.guest_said_to_before(said),
            Host::Source => self.at_source(Event::Guest(said)),
            Host::Destination => self.at_destination(lsm_protocol::destination::Event::Guest(said)),
        }
    }

    pub fn at_source(&mut self, event: Event) -> Result<(), String> {
        if event == Event::VmGone {
            self.before_at_source(lsm_protocol::destination::Event::VmGone)?;
        }
        if !self.source.up || self.source.machine.is_none() {
            return Ok(());
        }
        self.feed_source(vec![event])
    }

    fn feed_source(&mut self, events: Vec<Event>) -> Result<(), String> {
        let mut events = VecDeque::from(events);
        while let Some(event) = events.pop_front() {
            let Some(machine) = self.source.machine.clone() else { return Ok(()) };
            if let Event::Guest(FromGuest::Aborted { .. } | FromGuest::Refused { .. }) = &event {
                self.source.inside = false;
            }
            let was = machine.name();
            let (machine, orders) = (self.machines.source)(machine, self.now, event);
            let name = machine.name();
            self.source.machine = Some(machine);
            let orders = self.carry_out_at_source(orders)?;
            if !self.source.up {
                return Ok(());
            }
            events.extend(orders);
            if was != name {
                self.log.push(format!("       source: {was} -> {name}"));
                self.source.disk = self.source.machine.clone().filter(|machine| *machine != Source::Gone);
            }
        }
        if self.source.machine == Some(Source::Gone) {
            (self.source.machine, self.source.disk) = (None, None);
            if !self.source.end.is_clean() {
                return Err(format!("the source leaves something: {:?}", self.source.end));
            }
            self.before_at_source(lsm_protocol::destination::Event::Stays)?;
        }
        Ok(())
    }

    fn carry_out_at_source(&mut self, orders: Vec<Order>) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for order in orders {
            if self.dies_at_this() {
                self.log.push(format!("       the source's service dies at {order:?}"));
                self.dies(Who::Source);
                return Ok(vec![]);
            }
            let had_time = self.source.aborted.is_some_and(|at| self.now >= at + UNDO);
            let truth = AtSource {
                vm: self.vm,
                join: self.offer.join,
                home_over: self.old_path_over(),
                guest_inside: self.source.inside && !had_time && self.offer.join == Join::Before,
            };
            self.source.end.perform(&order, true, &truth)?;
            match order {
                Order::BuildEnds => events.push(Event::Built),
                Order::TellPeer(message) => self.send(What::ToDestination(message)),
                Order::TellGuest(told) => {
                    match told {
                        ToGuest::Prepare(_) => self.source.inside = true,
                        ToGuest::Abort { .. } => self.source.aborted = self.source.aborted.or(Some(self.now)),
                        _ => {}
                    }
                    self.send(What::ToGuest(Host::Source, told));
                }
                _ => {}
            }
        }
        Ok(events)
    }

    /// Nobody needs the old path any more, in truth.
    pub fn old_path_over(&self) -> bool {
        self.guest.kernel.old_released || self.guest.settled || self.released || self.vm == Vm::Dead
    }
}
