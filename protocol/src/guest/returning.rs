//! The way back to a site whose address the VM still holds. The migration that brought it here is set aside: on arrival
//! its old vNIC is the direct one again, and its legacy connections with it; called off, the way back leads to where that
//! migration stood.

use alloc::{boxed::Box, vec, vec::Vec};

use super::{Arrival, Ended, Event, Guest, Leaving, Order, Prepared, Preparing, Settling, Switched, Undoing};
use crate::{FromGuest, Millis, Prepare, Refusal, ToGuest};

/// With this set aside.
pub(super) fn is_way_back(aside: Option<&Guest>) -> bool {
    matches!(aside, Some(Guest::Switched(_) | Guest::Settling(_)))
}

impl Guest {
    /// This plan's new vNIC is the one whose address is held here, and no step of the kernel's is under way.
    pub(super) fn leads_back(&self, plan: &Prepare) -> bool {
        let holds = match self {
            Guest::Switched(s) => s.arrival == Arrival::Sure && s.stands(),
            Guest::Settling(Settling { leaving, .. }) => {
                matches!(leaving, Leaving::Draining { .. } | Leaving::Holding { .. })
            }
            _ => false,
        };
        holds && self.vnics() == Some((plan.new, plan.old))
    }

    /// What an abort of the next migration leads back to, if there is something to remember of it.
    pub(super) fn set_aside(self) -> Option<Box<Guest>> {
        match self {
            Guest::Idle { last: None | Some(Ended::Aborted(_)) } => None,
            settled_or_holding => Some(Box::new(settled_or_holding)),
        }
    }

    /// The new vNIC's address has been held since before.
    pub fn is_on_way_back(&self) -> bool {
        is_way_back(self.aside())
    }

    /// What an abort leads back to, where that is more than idle: a migration that still holds the address which the VM
    /// returns to, or one that has settled and may be asked about.
    pub fn aside(&self) -> Option<&Guest> {
        match self {
            Guest::Preparing(Preparing { aside, .. })
            | Guest::Prepared(Prepared { aside, .. })
            | Guest::Switched(Switched { aside, .. })
            | Guest::Undoing(Undoing { aside, .. }) => aside.as_deref(),
            Guest::Idle { .. } | Guest::Settling(_) => None,
        }
    }

    /// What is said of the migration that is set aside is answered, and what it is to do waits until it goes on.
    pub(super) fn tell_aside(mut self, now: Millis, told: ToGuest) -> (Guest, Vec<Order>) {
        let (Some(migration), Some(busy)) = (told.migration(), self.migration()) else { return (self, vec![]) };
        if !matches!(
            told,
            ToGuest::Arrived { .. } | ToGuest::Release { .. } | ToGuest::Settle { .. } | ToGuest::Abort { .. }
        ) {
            let why = Refusal::Busy(busy);
            return (self, vec![Order::Reply(FromGuest::Refused { migration, why })]);
        }
        let Some(aside) = self.aside_mut() else { return (self, vec![]) };
        let (after, mut orders) = core::mem::take(&mut **aside).handle(now, Event::Told(told));
        **aside = after;
        orders.retain(|order| matches!(order, Order::Reply(_)));
        (self, orders)
    }

    /// It goes on, as after a restart.
    pub(super) fn taken_up(self, now: Millis, mut orders: Vec<Order>) -> (Guest, Vec<Order>) {
        let (state, more) = self.handle(now, Event::Restarted);
        orders.extend(more);
        (state, orders)
    }

    fn aside_mut(&mut self) -> Option<&mut Box<Guest>> {
        match self {
            Guest::Preparing(Preparing { aside, .. })
            | Guest::Prepared(Prepared { aside, .. })
            | Guest::Switched(Switched { aside, .. })
            | Guest::Undoing(Undoing { aside, .. }) => aside.as_mut(),
            Guest::Idle { .. } | Guest::Settling(_) => None,
        }
    }
}
