//! The migration that brought the VM to the source, and whose old address is held still: the VM goes back to where that
//! address is. Its machines go on beside: the destination's at this migration's source, and the source's at its destination.
//! Both migrations need the tunnel of the vNIC in question; what neither needs goes.

use lsm_protocol::{Counts, FromGuest, Peer, destination, destination::Destination, source, source::Source};

use crate::{
    run::{Host, Run, What},
    world::{BEFORE, LEASE, START, hosts::Vm, offer_before},
};

#[derive(Clone, Debug)]
pub struct Before {
    /// Where the VM is.
    pub arrival: Destination,
    pub arrival_on_disk: Destination,
    /// Where it came from.
    pub departure: Source,
    pub departure_on_disk: Source,
}

impl Before {
    pub fn new(drain: lsm_protocol::Drain) -> Before {
        let offer = offer_before(drain);
        let switched = Some(Counts::default());
        let arrival = Destination::Arrived {
            offer: offer.clone(),
            switched,
            repeat: START + 700,
            leave: None,
            heard: START,
            aside: false,
        };
        let departure = Source::Departed { offer, lease: START + LEASE };
        Before { arrival_on_disk: arrival.clone(), arrival, departure_on_disk: departure.clone(), departure }
    }

    pub fn is_over(&self) -> bool {
        self.arrival == Destination::Gone && self.departure == Source::Gone
    }
}

impl Run {
    /// Whether the VM may be asked for, as the service finds.
    pub fn may_depart(&self) -> bool {
        self.before.as_ref().is_none_or(|before| before.arrival.holds() || before.arrival == Destination::Gone)
    }

    pub fn before_at_source(&mut self, event: destination::Event) -> Result<(), String> {
        let (true, Some(before)) = (self.source.up, &mut self.before) else { return Ok(()) };
        if before.arrival == Destination::Gone {
            return Ok(());
        }
        let was = before.arrival.name();
        let mut machine = before.arrival.clone();
        // What the old LAN sends comes through for as long as the other end stands.
        if event == destination::Event::Deadline && self.source.end.leads_to_new() && self.destination.end.stands() {
            machine = (self.machines.destination)(machine, self.now, destination::Event::Crossed).0;
        }
        let (machine, orders) = (self.machines.destination)(machine, self.now, event);
        before.arrival = machine;
        let name = before.arrival.name();
        for order in orders {
            match order {
                destination::Order::TellPeer(message) => self.send(What::ToDestination(message)),
                destination::Order::TellGuest(told) => self.send(What::ToGuest(Host::Source, told)),
                destination::Order::RemoveHome => {
                    if self.vm == Vm::AtSource && self.is_held() {
                        return Err("the source removes the tunnel in use: an address is held".to_owned());
                    }
                    self.source.end.held = false;
                }
                _ => {}
            }
        }
        if was != name {
            self.log.push(format!("       before, at the source: {was} -> {name}"));
            if let Some(before) = &mut self.before {
                before.arrival_on_disk = before.arrival.clone();
            }
        }
        Ok(())
    }

    pub fn before_at_destination(&mut self, event: source::Event) -> Result<(), String> {
        let (true, Some(before)) = (self.destination.up, &mut self.before) else { return Ok(()) };
        if before.departure == Source::Gone {
            return Ok(());
        }
        let was = before.departure.name();
        let (machine, orders) = (self.machines.source)(before.departure.clone(), self.now, event);
        before.departure = machine;
        let name = before.departure.name();
        for order in orders {
            match order {
                source::Order::TellPeer(message) => self.send(What::ToSource(message)),
                source::Order::RemoveHome => {
                    if self.vm == Vm::AtSource && self.is_held() {
                        return Err("the destination removes the tunnel in use: an address is held".to_owned());
                    }
                    self.destination.end.held = false;
                }
                _ => {} // the tap that the MAC would be pointed back at has gone with the VM
            }
        }
        if was != name {
            self.log.push(format!("       before, at the destination: {was} -> {name}"));
            if let Some(before) = &mut self.before {
                before.departure_on_disk = before.departure.clone();
            }
        }
        Ok(())
    }

    /// A message between the hosts about it; `None` if it is about the other one.
    pub fn hears_before(&mut self, host: Host, message: &Peer) -> Option<Result<(), String>> {
        (message.migration() == Some(BEFORE)).then_some(())?;
        let message = message.clone();
        Some(match host {
            Host::Source => self.before_at_source(destination::Event::Peer(message)),
            Host::Destination if self.before.as_ref().is_none_or(|before| before.departure == Source::Gone) => {
                if self.destination.up
                    && let Peer::TakeDown { migration } | Peer::Abort { migration } | Peer::Arrived { migration } =
                        message
                {
                    self.send(What::ToSource(Peer::TakenDown { migration }));
                }
                Ok(())
            }
            Host::Destination => self.before_at_destination(source::Event::Peer(message)),
        })
    }

    pub fn guest_said_to_before(&mut self, said: FromGuest) -> Result<(), String> {
        self.before_at_source(destination::Event::Guest(said))
    }

    /// The service of the source was started; `alone`: no departure of the VM goes on.
    pub fn before_starts_at_source(&mut self, alone: bool) -> Result<(), String> {
        let Some(before) = &mut self.before else { return Ok(()) };
        before.arrival = before.arrival_on_disk.clone();
        self.before_at_source(destination::Event::Restarted)?;
        if alone {
            self.before_at_source(destination::Event::Stays)?;
        }
        self.before_at_source(match self.vm {
            Vm::AtSource => destination::Event::Arrived,
            Vm::Paused => destination::Event::Begun,
            Vm::AtDestination | Vm::Dead => destination::Event::VmGone,
        })
    }

    pub fn before_starts_at_destination(&mut self) -> Result<(), String> {
        let Some(before) = &mut self.before else { return Ok(()) };
        before.departure = before.departure_on_disk.clone();
        self.before_at_destination(source::Event::Restarted)
    }

    /// A connection has the held address alone.
    pub fn is_held(&self) -> bool {
        self.guest.kernel.held && self.truth.held && !self.truth.held_cut
    }
}
