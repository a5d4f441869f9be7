//! The two hosts: tunnel ends, where the MACs point, and what must never be done to them.

use lsm_protocol::{Join, destination, source};

/// Where the VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Vm {
    AtSource,
    /// At the source, its CPUs stopped: on its way, perhaps.
    Paused,
    AtDestination,
    Dead,
}

/// What the source's promises depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AtSource {
    pub vm: Vm,
    pub join: Join,
    /// Somebody said, or a lease's silence said, that the home tunnel is of no use any more.
    pub home_over: bool,
    /// The guest was told of the migration, and has neither left the tunnels nor had the time for it.
    pub guest_inside: bool,
}

/// The source's end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceEnd {
    pub home: bool,
    pub advance: bool,
    /// The old MAC leads into the home tunnel.
    pub diverted: bool,
    /// The migration before needs the advance tunnel too: it is its home tunnel.
    pub held: bool,
}

impl SourceEnd {
    /// Carries an order out. The error is a broken promise.
    pub fn perform(&mut self, order: &source::Order, works: bool, truth: &AtSource) -> Result<(), String> {
        use source::Order::{BuildEnds, Divert, RemoveAdvance, RemoveHome, UndoDivert};
        let running_here = truth.vm == Vm::AtSource;
        let promise = match order {
            Divert if running_here => Some("diverts the traffic of a VM that runs here"),
            UndoDivert if truth.vm == Vm::AtDestination && !truth.home_over => Some("takes the VM's traffic back"),
            RemoveHome if truth.vm == Vm::AtDestination && !truth.home_over => Some("removes the tunnel in use"),
            RemoveAdvance if running_here && truth.guest_inside => Some("removes the tunnel under the guest"),
            _ => None,
        };
        if let Some(promise) = promise {
            return Err(format!("the source, at {order:?}, {promise}"));
        }
        match order {
            BuildEnds if works => {
                self.home = true;
                self.advance = truth.join == Join::Before;
            }
            Divert => self.diverted = self.home,
            UndoDivert => self.diverted = false,
            RemoveAdvance => self.advance = false,
            RemoveHome => {
                self.home = false;
                self.diverted = false; // the bridge forgets what led to a port that is gone
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing of the migration is here.
    pub fn is_clean(&self) -> bool {
        !self.home && !self.advance && !self.diverted
    }

    /// The end of the advance tunnel stands, whoever needs it.
    pub fn leads_to_new(&self) -> bool {
        self.advance || self.held
    }
}

/// What became of the hook that waits in `migrate begin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hook {
    Waits,
    Admitted,
    Refused,
    /// It died with the service.
    Lost,
}

/// The destination's end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DestinationEnd {
    pub home: bool,
    pub advance: bool,
    /// The new MAC leads to its own tap.
    pub at_tap: bool,
    pub hook: Hook,
    /// As at the source.
    pub held: bool,
}

impl Default for DestinationEnd {
    fn default() -> Self {
        DestinationEnd { home: false, advance: false, at_tap: false, hook: Hook::Waits, held: false }
    }
}

impl DestinationEnd {
    /// Carries an order out. `home_over`: the old path is of no use any more. The error is a broken promise.
    pub fn perform(
        &mut self,
        order: &destination::Order,
        works: bool,
        vm: Vm,
        join: Join,
        home_over: bool,
    ) -> Result<(), String> {
        use destination::Order::{Admit, BuildEnds, PointAtTap, PointAtTunnel, Refuse, RemoveAdvance, RemoveHome};
        let here = vm == Vm::AtDestination;
        let promise = match order {
            RemoveHome if here && !home_over => Some("removes the tunnel in use"),
            RemoveAdvance if here && !self.at_tap && !home_over => Some("leaves the new MAC without a way"),
            Admit { .. } | Refuse(_) if !matches!(self.hook, Hook::Waits | Hook::Lost) => {
                Some("answers the hook twice")
            }
            Admit { .. } if !self.home || (join == Join::Before && !self.advance) => {
                Some("admits a VM without its tunnels")
            }
            _ => None,
        };
        if let Some(promise) = promise {
            return Err(format!("the destination, at {order:?}, {promise}"));
        }
        match order {
            BuildEnds if works => {
                self.home = true;
                self.advance = join == Join::Before;
            }
            Admit { .. } if self.hook == Hook::Waits => self.hook = Hook::Admitted,
            Refuse(_) if self.hook == Hook::Waits => self.hook = Hook::Refused,
            PointAtTap => self.at_tap = true,
            PointAtTunnel => self.at_tap = false,
            RemoveAdvance => self.advance = false,
            RemoveHome => self.home = false,
            _ => {}
        }
        Ok(())
    }

    /// The end of the advance tunnel stands, whoever needs it.
    pub fn stands(&self) -> bool {
        self.advance || self.held
    }

    /// It does, and the new MAC leads into it.
    pub fn leads_to_source(&self) -> bool {
        self.stands() && !self.at_tap
    }

    /// Nothing of the migration is here, and nobody waits for an answer.
    pub fn is_clean(&self) -> bool {
        !self.home && !self.advance && self.hook != Hook::Waits
    }
}
