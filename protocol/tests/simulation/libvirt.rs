//! libvirt and QEMU: the copy, the stop, the arrival; or not.

use lsm_protocol::{Millis, destination, guest, source};

use crate::{
    run::{Run, What},
    scenario::Fate,
    world::hosts::Vm,
};

#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The destination's QEMU exists; the copy begins.
    Begins,
    /// The copy is so far.
    Copies {
        left: Millis,
    },
    Pauses,
    RunsOn,
    Stops,
    Arrives,
    /// The migration has failed or was cancelled: the VM runs at the source.
    Fails,
    SourceDies,
}

impl Run {
    pub fn libvirt(&mut self, step: Step) -> Result<(), String> {
        let copy = self.scenario.copy;
        let soon = self.chance.between(1, 20);
        match step {
            Step::Begins => {
                (self.incoming, self.begun) = (true, true);
                self.after(soon, What::AtDestination(destination::Event::Begun));
                for part in 0..20 {
                    let left = copy - copy * part / 20;
                    self.after(copy * part / 20, What::Libvirt(Step::Copies { left }));
                }
                let middle = self.chance.between(0, copy);
                match self.scenario.fate {
                    Fate::CancelledInCopy | Fate::DestinationDiesInCopy => {
                        self.after(middle, What::Libvirt(Step::Fails))
                    }
                    Fate::SourceDies => self.after(middle, What::Libvirt(Step::SourceDies)),
                    Fate::PausedInCopy => {
                        self.after(middle / 2, What::Libvirt(Step::Pauses));
                        self.after(middle + 25, What::Libvirt(Step::RunsOn));
                        self.after(copy + 100, What::Libvirt(Step::Stops));
                    }
                    _ => self.after(copy, What::Libvirt(Step::Stops)),
                }
            }
            Step::Copies { left } if self.incoming => return self.at_source(source::Event::Progress { left }),
            Step::Copies { .. } => {}
            Step::Pauses | Step::Stops => {
                self.vm = Vm::Paused;
                self.after(soon, What::AtSource(source::Event::Suspended));
                if matches!(step, Step::Stops) {
                    let fails = matches!(self.scenario.fate, Fate::CancelledInStop | Fate::DestinationDiesInStop);
                    let then = if fails { Step::Fails } else { Step::Arrives };
                    self.after(self.scenario.stop, What::Libvirt(then));
                }
            }
            Step::RunsOn => {
                self.vm = Vm::AtSource;
                // In this order: libvirt's events are not late by more than the pause.
                self.after(soon.max(20), What::AtSource(source::Event::Resumed));
            }
            Step::Arrives => {
                self.vm = Vm::AtDestination;
                if self.chance.in_thousand(800) {
                    self.after(1, What::InGuest(self.guest.life, guest::Event::TransportReset));
                }
                self.after(soon, What::AtDestination(destination::Event::Arrived));
                let later = self.chance.between(50, 400);
                self.after(later, What::AtSource(source::Event::VmGone));
            }
            Step::Fails => {
                self.incoming = false;
                if self.vm == Vm::Paused {
                    self.vm = Vm::AtSource;
                    self.after(soon.max(20), What::AtSource(source::Event::Resumed));
                }
                self.after(soon, What::AtDestination(destination::Event::VmGone));
            }
            Step::SourceDies => {
                self.incoming = false;
                self.vm = Vm::Dead;
                self.after(soon, What::AtSource(source::Event::VmGone));
                self.after(soon, What::AtDestination(destination::Event::VmGone));
            }
        }
        Ok(())
    }
}
