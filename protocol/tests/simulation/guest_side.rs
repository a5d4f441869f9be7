//! The guest: its machine, its kernel, and the agent around them as `lsm-guest run` is.

use std::collections::VecDeque;

use lsm_protocol::{
    Drain, FromGuest, Millis, Prepare, Side, ToGuest,
    guest::{Event, Guest, Order, Step},
};

use crate::{
    run::{Host, Run, What, Who},
    world::{
        BEFORE, OURS,
        hosts::Vm,
        kernel::{Found, Kernel},
    },
};

/// A path may die between the last count and the withdrawal: the drain, and the count after it.
const DEAD_UNSEEN: Millis = 2_500;

#[derive(Clone, Debug)]
pub struct GuestSide {
    pub machine: Guest,
    pub disk: Guest,
    pub kernel: Kernel,
    pub up: bool,
    /// Counts the agent's lives: what it had in hand dies with it.
    pub life: u32,
    /// When it was told for sure that the VM has arrived.
    pub sure: Option<Millis>,
    /// It has said so.
    pub settled: bool,
}

impl Default for GuestSide {
    fn default() -> Self {
        let (machine, disk) = (Guest::default(), Guest::default());
        GuestSide { machine, disk, kernel: Kernel::default(), up: true, life: 0, sure: None, settled: false }
    }
}

impl GuestSide {
    pub fn deadline(&self, vm: Vm) -> Option<Millis> {
        let runs = self.up && matches!(vm, Vm::AtSource | Vm::AtDestination);
        self.machine.deadline().filter(|_| runs).map(|deadline| deadline.at)
    }

    pub fn die(&mut self) {
        self.up = false;
        self.life += 1;
    }
}

impl Run {
    pub fn guest_starts(&mut self) -> Result<(), String> {
        self.guest.up = true;
        self.guest.machine = self.guest.disk.clone();
        self.in_guest(self.guest.life, Event::Restarted)
    }

    pub fn guest_hears(&mut self, host: Host, told: ToGuest) -> Result<(), String> {
        let there = match host {
            Host::Source => Vm::AtSource,
            Host::Destination => Vm::AtDestination,
        };
        if self.vm == there {
            return self.in_guest(self.guest.life, Event::Told(told));
        }
        if self.vm == Vm::Paused {
            self.after(20, What::ToGuest(host, told)); // it is read when the CPUs run, if it runs there
        }
        Ok(())
    }

    /// An event and whatever follows from it, as the daemon does it: orders first, then what came of them.
    pub fn in_guest(&mut self, life: u32, event: Event) -> Result<(), String> {
        let by_hand = matches!(event, Event::Told(_)); // whoever types does it in any life
        if !self.guest.up || (life != self.guest.life && !by_hand) || self.vm == Vm::Dead {
            return Ok(());
        }
        if self.vm == Vm::Paused {
            self.after(20, What::InGuest(life, event));
            return Ok(());
        }
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.note(&event);
            let (machine, orders) = (self.machines.guest)(self.guest.machine.clone(), self.now, event);
            self.guest.machine = machine;
            let urgent = orders.first() == Some(&Order::Do(Step::Prefer(Side::New)));
            if !urgent {
                self.guest.disk = self.guest.machine.clone();
            }
            for order in orders {
                if self.dies_at_this() {
                    self.log.push(format!("       the agent dies at {order:?}"));
                    self.dies(Who::Guest);
                    return Ok(());
                }
                events.extend(self.in_kernel(order)?);
            }
            if urgent {
                self.guest.disk = self.guest.machine.clone();
            }
        }
        Ok(())
    }

    fn note(&mut self, event: &Event) {
        if let Event::Told(ToGuest::Release { migration: BEFORE }) = event {
            self.truth.held_cut = true;
        }
        if let Event::Told(
            ToGuest::Arrived { migration: OURS }
            | ToGuest::Release { migration: OURS }
            | ToGuest::Prepare(Prepare { arrived: true, .. }),
        ) = event
        {
            self.guest.sure.get_or_insert(self.now);
        }
        if let Event::Told(ToGuest::Prepare(_)) = event
            && matches!(self.guest.machine, Guest::Idle { .. })
            && !self.guest.settled
        {
            self.guest.kernel.fault = false; // what an earlier try left, this one takes up
        }
    }

    fn in_kernel(&mut self, order: Order) -> Result<Vec<Event>, String> {
        self.truth.there = self.vm == Vm::AtDestination;
        self.truth.cut = self.released
            || match (self.offer.drain, self.guest.sure) {
                (Drain::For(time), Some(since)) => self.now >= since + time,
                _ => false,
            };
        let before = self.guest.machine.migration() == Some(BEFORE);
        let works = self.healthy || !self.chance.in_thousand(self.scenario.refusals);
        if let Order::Do(Step::ProbeGateway | Step::LowerPath) = order {
            // The agent asks anew, or no more: an answer to what it asked before is nobody's.
            let old = |what: &What| matches!(what, What::InGuest(_, Event::Done(Step::ProbeGateway)));
            self.agenda.retain(|(.., what)| !old(what));
        }
        match order {
            Order::Do(Step::ProbeGateway) => {
                let tunnel = self.source.end.leads_to_new() && self.destination.end.leads_to_source();
                let way = tunnel || self.vm == Vm::AtDestination;
                if way {
                    let wait = self.chance.between(1, 300);
                    self.guest.kernel.gateway_answered = true;
                    self.after(wait, What::InGuest(self.guest.life, Event::Done(Step::ProbeGateway)));
                }
                Ok(vec![])
            }
            Order::Do(step) if before => {
                let event = self.guest.kernel.perform_before(step, works, &self.truth)?;
                self.log.push(format!("       guest, before: {event:?}"));
                Ok(vec![event])
            }
            Order::Do(step) => {
                if step == Step::Withdraw(Side::Old) && self.dead_for() > DEAD_UNSEEN && !self.truth.cut {
                    return Err("gives up the old path while the new one is dead".to_owned());
                }
                let event = self.guest.kernel.perform(step, works, &self.truth)?;
                if matches!(step, Step::Announce | Step::Reannounce | Step::Invite | Step::Withdraw(_)) {
                    let wait = self.chance.between(1, 200);
                    self.after(wait, What::InGuest(self.guest.life, Event::SubflowsChanged));
                }
                self.log.push(format!("       guest: {event:?}"));
                Ok(vec![event])
            }
            Order::Learn | Order::Notify(_) => Ok(vec![]),
            Order::Count if !works => Ok(vec![]), // the dump failed
            Order::Count if before => Ok(vec![Event::Counted(Kernel::count_before(&self.truth))]),
            Order::Count => {
                let found = if self.is_new_dead() {
                    Found::Dead
                } else if self.healthy || self.chance.in_thousand(600) {
                    Found::Moved
                } else {
                    Found::Idle
                };
                Ok(self.guest.kernel.counted(&self.truth, found).into())
            }
            Order::Reply(reply) => {
                self.guest.settled |= matches!(reply, FromGuest::Settled { migration: OURS });
                let host = match self.vm {
                    Vm::AtSource => Host::Source,
                    _ => Host::Destination,
                };
                self.log.push(format!("       guest says {reply:?}"));
                self.send(What::FromGuest(host, reply));
                Ok(vec![])
            }
        }
    }
}
