//! The destination: its machine, its end of the tunnels, and the service around them as `lsm-hook serve` is.

use std::collections::VecDeque;

use lsm_protocol::{
    Millis, Peer,
    destination::{Destination, Event, Impassable, Order},
};

use crate::{
    libvirt::Step,
    run::{Host, Run, What, Who},
    world::hosts::{DestinationEnd, Hook, Vm},
};

#[derive(Clone, Debug)]
pub struct DestinationHost {
    pub machine: Destination,
    pub disk: Option<Destination>,
    pub end: DestinationEnd,
    pub up: bool,
}

impl Default for DestinationHost {
    fn default() -> Self {
        DestinationHost { machine: Destination::Gone, disk: None, end: DestinationEnd::default(), up: true }
    }
}

impl DestinationHost {
    pub fn deadline(&self) -> Option<Millis> {
        self.machine.deadline().filter(|_| self.up).map(|deadline| deadline.at)
    }

    pub fn die(&mut self) {
        self.up = false;
        if self.end.hook == Hook::Waits {
            self.end.hook = Hook::Lost;
        }
    }

    pub fn is_over(&self) -> bool {
        self.up && self.machine == Destination::Gone
    }
}

impl Run {
    /// libvirt calls the hook.
    pub fn begin_at_destination(&mut self) -> Result<(), String> {
        let (machine, orders) = Destination::new(self.now, self.offer.clone(), self.scenario.policy);
        self.destination.disk = Some(machine.clone());
        self.destination.machine = machine;
        let events = self.carry_out_at_destination(orders)?;
        if self.destination.up { self.feed_destination(events) } else { Ok(()) }
    }

    pub fn destination_starts(&mut self) -> Result<(), String> {
        self.destination.up = true;
        self.before_starts_at_destination()?;
        match self.destination.disk.clone() {
            Some(machine) => {
                self.destination.machine = machine;
                self.at_destination(Event::Restarted)?;
                match self.vm {
                    Vm::AtDestination => self.at_destination(Event::Arrived),
                    // Not there any more; what was never there may come yet.
                    _ if self.incoming => self.at_destination(Event::Begun),
                    _ if self.begun => self.at_destination(Event::VmGone),
                    _ => Ok(()),
                }
            }
            None => {
                let DestinationEnd { hook, held, at_tap, .. } = self.destination.end;
                self.destination.machine = Destination::Gone;
                // What points at the tap of a VM that is here stays.
                let at_tap = at_tap && self.vm == Vm::AtDestination;
                self.destination.end = DestinationEnd { hook, held, at_tap, ..DestinationEnd::default() };
                Ok(())
            }
        }
    }

    pub fn destination_hears(&mut self, message: Peer) -> Result<(), String> {
        if let Some(heard) = self.hears_before(Host::Destination, &message) {
            return heard;
        }
        self.at_destination(Event::Peer(message))
    }

    pub fn at_destination(&mut self, event: Event) -> Result<(), String> {
        if !self.destination.up || self.destination.machine == Destination::Gone {
            return Ok(());
        }
        // What the VM's old LAN sends it comes through for as long as the source's end stands.
        let crosses = self.source.end.home && self.destination.end.home && !self.is_cut();
        let looks = event == Event::Deadline && matches!(self.destination.machine, Destination::Arrived { .. });
        self.feed_destination(if crosses && looks { vec![Event::Crossed, event] } else { vec![event] })
    }

    fn feed_destination(&mut self, events: Vec<Event>) -> Result<(), String> {
        let mut events = VecDeque::from(events);
        while let Some(event) = events.pop_front() {
            let machine = self.destination.machine.clone();
            let was = machine.name();
            let (machine, orders) = (self.machines.destination)(machine, self.now, event);
            let name = machine.name();
            self.destination.machine = machine;
            let orders = self.carry_out_at_destination(orders)?;
            if !self.destination.up {
                return Ok(());
            }
            events.extend(orders);
            if was != name {
                self.log.push(format!("       destination: {was} -> {name}"));
                let machine = self.destination.machine.clone();
                self.destination.disk = Some(machine).filter(|machine| *machine != Destination::Gone);
            }
        }
        if self.destination.machine == Destination::Gone && !self.destination.end.is_clean() {
            return Err(format!("the destination leaves something: {:?}", self.destination.end));
        }
        Ok(())
    }

    fn carry_out_at_destination(&mut self, orders: Vec<Order>) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for order in orders {
            if self.dies_at_this() {
                self.log.push(format!("       the destination's service dies at {order:?}"));
                self.dies(Who::Destination);
                return Ok(vec![]);
            }
            if matches!(order, Order::SourceLost(_)) {
                if self.source.end.home && !self.is_cut() {
                    return Err("the destination takes a source for lost whose end stands".to_owned());
                }
                self.released = true;
            }
            let home_over = self.old_path_over();
            self.destination.end.perform(&order, true, self.vm, self.offer.join, home_over)?;
            match order {
                Order::BuildEnds => events.push(Event::Built),
                Order::TryTunnels => {
                    let wait = self.chance.between(1, 1_900);
                    let fails = !self.healthy && self.chance.in_thousand(self.scenario.lost);
                    let closed = Event::Impassable(Impassable::Closed { port: self.offer.port });
                    self.after(wait, What::AtDestination(if fails { closed } else { Event::Carries }));
                }
                Order::TellPeer(message) => self.send(What::ToSource(message)),
                Order::TellGuest(told) => self.send(What::ToGuest(Host::Destination, told)),
                Order::Admit { .. } => {
                    let wait = self.chance.between(10, 500);
                    self.after(wait, What::Libvirt(Step::Begins));
                }
                _ => {}
            }
        }
        Ok(events)
    }
}
