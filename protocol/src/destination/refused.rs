//! Why a migration is refused, in the words that the operator reads.

use alloc::string::String;

use serde::{Deserialize, Serialize};

use crate::{
    Counts, Decline, GuestFailure, Join, Millis,
    forecast::{Forecast, Survival},
};

/// Why the migration is refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    #[error("this host: {0}")]
    Build(Decline),
    #[error("the source host declines: {0}")]
    Declined(Decline),
    #[error("the source host did not build its tunnel ends within {0} ms; see its lsm-hook log")]
    SourceSilent(Millis),
    #[error("the guest is not prepared: {0} (set unprepared = \"post-join\" to migrate all the same)")]
    Guest(GuestFailure),
    #[error("the guest was not prepared within {0} ms (raise prepare_wait_ms, or set unprepared = \"post-join\")")]
    GuestSlow(Millis),
    #[error("the guest is not prepared: {why}; so nobody can say whether min_survival is met, which demands {needed}")]
    Uncounted { why: GuestFailure, needed: Survival },
    #[error(
        "the guest was not prepared within {waited} ms (raise prepare_wait_ms); so nobody can say whether min_survival is met, which demands {needed}"
    )]
    UncountedYet { waited: Millis, needed: Survival },
    #[error("{short}: {named}")]
    Connections { short: Short, named: String },
    #[error("the source host called the migration off")]
    Aborted,
    #[error("it was called off here, by the operator or by another migration of the same VM")]
    CalledOff,
    #[error(transparent)]
    Impassable(Impassable),
}

/// What the tunnels do not carry, as tried. Sizes are those of the packets between the hosts, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Impassable {
    #[error(
        "nothing comes through the tunnel to the source host and back; let UDP port {port} pass between the hosts, both ways"
    )]
    Closed { port: u16 },
    #[error(
        "the LAN's full frames are lost in the tunnel {way}: they need packets of {needed} bytes between the hosts, and {available} is the largest that comes through; raise the MTU of that network to {needed}, or let IP fragments pass"
    )]
    Large { needed: u32, available: u32, way: Way },
    #[error(
        "whether the tunnels carry the LAN's full frames could not be found out within {0} ms; see the log of lsm-hook here"
    )]
    Unknown(Millis),
}

/// One way through a tunnel, or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Way {
    #[error("to the source host")]
    There,
    #[error("from the source host")]
    Back,
    #[error("both ways")]
    Both,
}

/// Fewer connections can move than policy demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[error("only {moving} of {all} connections can move, and min_survival demands {needed}")]
pub struct Short {
    pub moving: u64,
    pub all: u64,
    pub needed: Survival,
}

impl Short {
    /// What a forecast made before the preparation falls short by, at best.
    pub fn of(forecast: &Forecast, join: Join, needed: Survival) -> Option<Short> {
        let moving = if join == Join::Never { 0 } else { forecast.sums.at_best() };
        let all = forecast.sums.managed();
        (!needed.met(moving, all)).then_some(Short { moving, all, needed })
    }

    /// What the preparation falls short by.
    pub(super) fn after(counts: Counts, needed: Survival) -> Option<Short> {
        let Counts { joined, waiting, legacy, .. } = counts;
        let all = u64::from(joined) + u64::from(waiting) + u64::from(legacy);
        (!needed.met_by(counts)).then_some(Short { moving: joined.into(), all, needed })
    }
}
