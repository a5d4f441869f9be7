//! What a machine can be asked: for the agent's clock, its logs, and `status`.

use super::{Arrival, Deadline, Guest, Holding, Leaving, Prepared, Preparing, Settling, Stage, Switched, Undoing};
use crate::{Counts, GuestStatus, Mac, MigrationId, Prepare};

impl Guest {
    /// What is awaited, and until when.
    pub fn deadline(&self) -> Option<Deadline> {
        let (at, awaited) = match self {
            Guest::Preparing(s) => match s.stage {
                Stage::Obtaining { until } => (until, "addresses of the new LAN"),
                Stage::Probing { until } => (until, "an answer from the new LAN's gateway"),
                Stage::Joining { until, .. } => (until, "joins on the new address"),
                Stage::Held { until } => (until, "programs in the VM to let the move go on"),
                Stage::Raising | Stage::Announcing => return None,
            },
            Guest::Prepared(s) => (s.lease?, "a word from the host"),
            Guest::Switched(s) if s.proving => (s.recount, "an answer from the new LAN's gateway"),
            Guest::Switched(s) if !s.stands() => (s.recount, "the kernel to take the flip"),
            Guest::Switched(s) if s.has_fallen_back() => (s.recount, "the new path to carry data again"),
            Guest::Switched(Switched { recount, stragglers: Some(s), .. }) => {
                (s.invite.min(*recount), "those who have not joined to join or to close")
            }
            Guest::Switched(s) => (s.recount, "data on every new subflow"),
            Guest::Settling(s) => match s.leaving {
                Leaving::Draining { until, landed: false } => (until, "the old path's data to land"),
                Leaving::Draining { until, landed: true } => (until, "late-comers to have the new path"),
                Leaving::Holding { recount } => (recount, "the last legacy connection to close"),
                Leaving::Withdrawing | Leaving::Releasing => return None,
            },
            Guest::Undoing(s) if s.failed > 0 => (s.drain?, "the kernel to take the new path down"),
            Guest::Undoing(s) => (s.drain?, "the new path's data to land"),
            Guest::Idle { .. } => return None,
        };
        Some(Deadline { at, awaited })
    }

    /// The migration under way.
    pub fn migration(&self) -> Option<MigrationId> {
        self.plan().map(|plan| plan.migration)
    }

    /// What the host asked for.
    pub fn plan(&self) -> Option<&Prepare> {
        match self {
            Guest::Idle { .. } => None,
            Guest::Preparing(Preparing { plan, .. })
            | Guest::Prepared(Prepared { plan, .. })
            | Guest::Switched(Switched { plan, .. })
            | Guest::Settling(Settling { plan, .. })
            | Guest::Undoing(Undoing { plan, .. }) => Some(plan),
        }
    }

    /// The vNICs of the migration under way: old, new.
    pub fn vnics(&self) -> Option<(Mac, Mac)> {
        self.plan().map(|plan| (plan.old, plan.new))
    }

    /// The new address is announced, and there was time to join it.
    pub fn has_announced(&self) -> bool {
        matches!(self, Guest::Prepared(_) | Guest::Switched(_) | Guest::Settling(_))
    }

    /// The new path is preferred, and the VM where it is the direct one, as far as is known.
    pub fn has_arrived(&self) -> bool {
        match self {
            Guest::Switched(s) => s.confirmed && s.arrival > Arrival::No && !s.has_fallen_back(),
            Guest::Settling(_) => true,
            _ => false,
        }
    }

    /// What keeps the old path, once the new one is preferred.
    pub fn holding(&self) -> Option<Holding> {
        match self {
            Guest::Switched(Switched { plan, cut, stragglers, .. }) => {
                Some(Holding { drain: plan.drain, cut: *cut, stragglers: *stragglers })
            }
            Guest::Settling(Settling { plan, cut, .. }) => {
                Some(Holding { drain: plan.drain, cut: *cut, stragglers: None })
            }
            _ => None,
        }
    }

    /// Prepared, but for programs in the VM that hold the answer back.
    pub fn is_held(&self) -> bool {
        matches!(self, Guest::Preparing(Preparing { stage: Stage::Held { .. }, .. }))
    }

    /// The state's name, as logs and `status` print it.
    pub fn name(&self) -> &'static str {
        match self {
            Guest::Idle { .. } => "idle",
            Guest::Preparing(_) => "preparing",
            Guest::Prepared(_) => "prepared",
            Guest::Switched(s) if s.has_fallen_back() => "fallen back",
            Guest::Switched(s) if s.arrival == Arrival::No => "switched early",
            Guest::Switched(_) => "switched",
            Guest::Settling(_) => "settling",
            Guest::Undoing(_) => "undoing",
        }
    }

    /// What `status` answers.
    pub fn status(&self) -> GuestStatus {
        let counts = match self {
            Guest::Idle { .. } | Guest::Undoing(_) => Counts::default(),
            Guest::Preparing(Preparing { counts, .. })
            | Guest::Prepared(Prepared { counts, .. })
            | Guest::Switched(Switched { counts, .. })
            | Guest::Settling(Settling { counts, .. }) => *counts,
        };
        GuestStatus {
            state: self.name().into(),
            migration: self.migration(),
            counts,
            awaiting: self.deadline().map(|d| d.awaited.into()),
        }
    }
}
