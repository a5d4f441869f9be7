//! The guest's kernel: what the guest's steps make of it, and what they must never do to it.

use lsm_protocol::{
    Counts, Drain, Refusal, Side,
    guest::{Event, Step, fallback::Progress},
};

/// What is true whatever the machine believes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Truth {
    /// The VM is at the destination.
    pub there: bool,
    /// A connection that has not joined the new address lives.
    pub straggler: bool,
    /// A legacy connection lives.
    pub legacy: bool,
    pub drain: Drain,
    /// The drain policy's time is over.
    pub cut: bool,
    /// A legacy connection lives on the address that was held before the migration began.
    pub held: bool,
    /// The operator has given that up.
    pub held_cut: bool,
}

impl Default for Truth {
    fn default() -> Self {
        let drain = Drain::UntilIdle;
        Truth { there: false, straggler: false, legacy: false, drain, cut: false, held: false, held_cut: false }
    }
}

/// What a count finds of the connection that joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Data went by the new path.
    Moved,
    /// It has nothing to say.
    Idle,
    /// Nothing gets through on the new path; on the old one it does where that is preferred.
    Dead,
}

/// Addresses, endpoints and routes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The new vNIC has its address and its routes.
    pub new_up: bool,
    pub gateway_answered: bool,
    /// The new address has its endpoint; who is no straggler has joined.
    pub announced: bool,
    pub preferred: Side,
    pub default_route: Side,
    /// The old endpoint is deleted, the old subflows are closed.
    pub old_withdrawn: bool,
    /// The old vNIC is down.
    pub old_released: bool,
    /// The new vNIC has had its address since before: no abort takes it.
    pub held: bool,
    /// A step failed: what it would have removed may stay.
    pub fault: bool,
}

impl Default for Kernel {
    fn default() -> Self {
        Kernel {
            new_up: false,
            gateway_answered: false,
            announced: false,
            preferred: Side::Old,
            default_route: Side::Old,
            old_withdrawn: false,
            old_released: false,
            held: false,
            fault: false,
        }
    }
}

impl Kernel {
    /// Where the address that the migration leads to is held.
    pub fn holding() -> Kernel {
        Kernel { new_up: true, held: true, ..Kernel::default() }
    }

    /// A step of the migration before, whose old side is this one's new side.
    pub fn perform_before(&mut self, step: Step, works: bool, truth: &Truth) -> Result<Event, String> {
        let promise = match step {
            Step::ReleaseOld if truth.held && !truth.held_cut => Some("gives up the address of a legacy connection"),
            Step::ReleaseOld if self.announced || self.preferred == Side::New => Some("gives up the path in use"),
            Step::ReleaseOld if self.default_route == Side::New => Some("gives up the vNIC of the default route"),
            Step::ReleaseOld => None,
            _ => Some("is no step of a migration that holds an address"),
        };
        if let Some(promise) = promise {
            return Err(format!("before, {step:?}: {promise}"));
        }
        if !works {
            self.fault = true;
            return Ok(Event::Failed(step, Refusal::PathManager("as tried".to_owned())));
        }
        (self.new_up, self.gateway_answered, self.held) = (false, false, false);
        Ok(Event::Done(step))
    }

    /// What a count finds for the migration before.
    pub fn count_before(truth: &Truth) -> Counts {
        Counts { joined: 1, waiting: 0, moved: 1, legacy: truth.held.into(), early: 1 }
    }

    /// Does a step, or fails at it where `works` is false or it cannot be done. The error is a broken promise.
    pub fn perform(&mut self, step: Step, works: bool, truth: &Truth) -> Result<Event, String> {
        self.allowed(step, truth).map_err(|promise| format!("{step:?}: {promise}"))?;
        let possible = match step {
            Step::RaisePath => !self.old_released,
            Step::Prefer(Side::New) | Step::Invite => self.announced,
            _ => true,
        };
        if step == Step::Reannounce {
            self.announced = false; // whatever becomes of the second half
        }
        if !works || !possible {
            self.fault = true;
            return Ok(Event::Failed(step, Refusal::PathManager("as tried".to_owned())));
        }
        match step {
            Step::Obtain => {}
            Step::RaisePath => self.new_up = true,
            Step::ProbeGateway => self.gateway_answered = true,
            Step::Announce | Step::Reannounce => self.announced = true,
            Step::Invite => {} // who takes it up, the world decides
            Step::Prefer(side) => self.preferred = side,
            Step::TakeOver => self.default_route = Side::New,
            Step::Withdraw(Side::New) => self.announced = false,
            Step::Withdraw(Side::Old) => self.old_withdrawn = true,
            Step::LowerPath => {
                self.new_up = self.held;
                self.gateway_answered = false;
                self.default_route = Side::Old;
            }
            Step::ReleaseOld => self.old_released = true,
        }
        Ok(Event::Done(step))
    }

    /// The promises about one step.
    fn allowed(&self, step: Step, truth: &Truth) -> Result<(), &'static str> {
        let sound = !self.fault;
        match step {
            Step::Announce | Step::Reannounce | Step::Invite if !self.new_up => {
                Err("announces an address that is not up")
            }
            Step::Announce | Step::Reannounce | Step::Invite if !self.gateway_answered => {
                Err("announces before the gateway has answered")
            }
            Step::Reannounce if self.old_withdrawn => Err("closes the only subflows"),
            Step::Prefer(Side::Old) if self.old_withdrawn => Err("prefers a path that is gone"),
            Step::Withdraw(Side::New) | Step::LowerPath if self.old_withdrawn || self.old_released => {
                Err("takes down the only path")
            }
            Step::Withdraw(Side::New) if sound && self.preferred == Side::New => Err("takes down the path in use"),
            Step::LowerPath if sound && self.announced => Err("takes an address down that is still announced"),
            Step::Withdraw(Side::Old) | Step::ReleaseOld if !truth.there => {
                Err("gives up the old path while the VM is at the source")
            }
            Step::Withdraw(Side::Old) | Step::ReleaseOld if truth.straggler && !truth.cut => {
                Err("gives up the old path while a connection has no other")
            }
            Step::Withdraw(Side::Old) | Step::ReleaseOld if !self.announced || self.preferred == Side::Old => {
                Err("gives up the path in use")
            }
            Step::ReleaseOld if truth.legacy && !truth.cut => Err("gives up the address of a legacy connection"),
            Step::ReleaseOld if truth.drain == Drain::Forever && !truth.cut => {
                Err("gives up what was to stay for good")
            }
            Step::ReleaseOld if self.default_route == Side::Old => Err("gives up the vNIC of the default route"),
            _ => Ok(()),
        }
    }

    /// What the agent makes of one dump.
    pub fn counted(&self, truth: &Truth, found: Found) -> [Event; 2] {
        let joined = u32::from(self.announced);
        let progress = match found {
            Found::Moved => Progress { carrying: joined, ..Progress::default() },
            Found::Idle => Progress::default(),
            Found::Dead => {
                Progress { stuck: joined, saved: joined * u32::from(self.preferred == Side::Old), carrying: 0 }
            }
        };
        [Event::Carried(progress), Event::Counted(self.count(truth, found == Found::Moved))]
    }

    /// What a count finds, of one connection that joins and the straggler; `moved` if data went by the new path.
    pub fn count(&self, truth: &Truth, moved: bool) -> Counts {
        let joined = u32::from(self.announced);
        let moved = if moved && self.preferred == Side::New { joined } else { 0 };
        let waiting = u32::from(truth.straggler) + u32::from(!self.announced);
        Counts { joined, waiting, moved, legacy: truth.legacy.into(), early: joined }
    }

    /// Nothing of a migration is here, but the endpoint that covers the old address, and what was held before.
    pub fn as_before(&self) -> bool {
        let Kernel { new_up, announced, preferred, default_route, old_withdrawn, old_released, .. } = self;
        let old = *preferred == Side::Old && *default_route == Side::Old && !old_withdrawn && !old_released;
        old && *new_up == self.held && !announced
    }

    /// The new path is the only one.
    pub fn as_after(&self) -> bool {
        let Kernel { new_up, announced, preferred, default_route, old_released, .. } = self;
        *new_up && *announced && *preferred == Side::New && *default_route == Side::New && *old_released
    }
}
