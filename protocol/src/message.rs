//! Every message, on one page.
//!
//! postcard does not describe itself: variants are appended, never reordered; a struct that was released never changes
//! (a change is a new variant). The golden files under `protocol/golden` freeze the bytes.
//!
//! ```text
//! host -> guest   Prepare, Switch, Arrived, Abort, KeepAlive, Query, Release, Forecast, Settle
//! guest -> host   Prepared, Refused, Switched, Settled, Aborted, Status, Forecast, Moved, Report, Addressed
//! destination -> source   Locate, Encrypt, Offer, Arrived, TakeDown, Abort, KeepAlive, Foresee
//! source -> destination   Located, Encrypted, Accepted, Declined, GuestPrepared, GuestRefused, Flipped, Stopped, Resumed, TakenDown, Abort,
//!                          Foreseen, GuestAddressed
//! ```

use alloc::{boxed::Box, string::String, vec::Vec};
use core::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{Addresses, Addressing, Mac, forecast::Forecast, report::Report};

/// Milliseconds: of a duration, or since an origin of the shell's choice.
pub type Millis = u64;

/// Names one migration everywhere: in each message, each log line, each state file. 16 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MigrationId(pub [u8; 16]);

impl fmt::Display for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MigrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How long the old address is kept for legacy connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Drain {
    /// Until the last of them is gone.
    UntilIdle,
    /// At most this long after the switch.
    For(Millis),
    /// For good: the tunnel stays.
    Forever,
}

/// One of the two vNICs of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// The vNIC of the LAN that the VM leaves.
    Old,
    /// The vNIC of the LAN that the VM joins.
    New,
}

impl Side {
    #[must_use]
    pub fn other(self) -> Side {
        match self {
            Side::Old => Side::New,
            Side::New => Side::Old,
        }
    }
}

/// What the guest needs to know of a migration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prepare {
    pub migration: MigrationId,
    /// The vNIC that carries the traffic now.
    pub old: Mac,
    /// The spare to make ready.
    pub new: Mac,
    /// The LAN that the spare joins, for the log.
    pub lan: String,
    pub addressing: Addressing,
    /// MTU of that LAN in bytes.
    pub mtu: u16,
    /// The VM has arrived already: switch as soon as the clients have joined (post-join).
    pub arrived: bool,
    pub drain: Drain,
    /// Without a word from a host for this long before arrival, the guest puts everything back.
    pub lease: Millis,
}

/// The connections of the VM, as one dump shows them. Loopback and unmanaged addresses are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Counts {
    /// MPTCP connections with a subflow on the new address.
    pub joined: u32,
    /// MPTCP connections without one.
    pub waiting: u32,
    /// Of the joined: those whose new subflow has carried data since the switch, or which had none to carry.
    pub moved: u32,
    /// TCP connections to the old address that are not MPTCP, or fell back.
    pub legacy: u32,
    /// Of the joined: those whose path through the advance tunnel is about as short as the old one.
    pub early: u32,
}

/// Why the guest will not, or cannot. Appended to, never parsed from text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("another migration ({0}) is under way in the guest; wait for it to settle or abort it")]
    Busy(MigrationId),
    #[error("the guest knows no such migration")]
    NoSuchMigration,
    #[error("the VM has no vNIC {0}; correct the metadata or add the vNIC")]
    NoSuchVnic(Mac),
    #[error("vNIC {mac} could not be made ready: {detail}")]
    Path { mac: Mac, detail: String },
    #[error("gateway {0} of the new LAN did not answer through the new vNIC; check the tunnel and the LAN's bridge")]
    GatewaySilent(IpAddr),
    #[error("the MPTCP path manager refused: {0}")]
    PathManager(String),
    #[error("the guest cannot do this kind of addressing yet; use static")]
    Addressing,
    #[error("the VM has arrived already: it can be switched back, but not aborted")]
    Arrived,
    #[error("nothing is prepared that could be switched to; prepare first")]
    NotPrepared,
    #[error(
        "the old path still carries {waiting} MPTCP connections that have not joined the new one and {legacy} legacy ones; see \"lsm-guest forecast\"; \"settle --cut\" ends them"
    )]
    Held { waiting: u32, legacy: u32 },
    #[error("the VM has not arrived yet: nobody has said so, and until then the old path stays")]
    NotArrived,
    #[error("vNIC {mac} got no address of the new LAN: {detail}")]
    NoAddress { mac: Mac, detail: String },
}

/// Where the guest stands, for `status` on either side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// The machine's state, by name.
    pub state: String,
    pub migration: Option<MigrationId>,
    pub counts: Counts,
    /// What is awaited, if anything.
    pub awaiting: Option<String>,
}

/// Host to guest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ToGuest {
    Prepare(Prepare),
    /// The flip, or the flip back.
    Switch {
        migration: MigrationId,
        to: Side,
    },
    /// The VM runs on the destination; said by the destination.
    Arrived {
        migration: MigrationId,
    },
    Abort {
        migration: MigrationId,
    },
    KeepAlive {
        migration: MigrationId,
    },
    Query,
    /// The operator ends the old path: it is left now, whoever still uses it. Said by the destination.
    Release {
        migration: MigrationId,
    },
    /// What would a move do to each connection? Answered with the page after `skip`; page 0 looks anew. `vnics` are those
    /// that LSM manages; empty: as last heard.
    Forecast {
        vnics: Vec<Mac>,
        skip: u32,
    },
    /// The old path is to be left for good: with `cut` now, whoever still uses it; else only if nobody does.
    Settle {
        migration: MigrationId,
        cut: bool,
    },
}

/// Guest to host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromGuest {
    Prepared {
        migration: MigrationId,
        counts: Counts,
    },
    Refused {
        migration: MigrationId,
        why: Refusal,
    },
    Switched {
        migration: MigrationId,
        to: Side,
        counts: Counts,
    },
    Settled {
        migration: MigrationId,
    },
    Aborted {
        migration: MigrationId,
    },
    Status(GuestStatus),
    Forecast(Forecast),
    /// The VM is at its new site, and its traffic went from these addresses to those. Comes with every answer about the
    /// switch from then on, to hosts that may have missed it.
    Moved {
        migration: MigrationId,
        from: Addresses,
        to: Addresses,
    },
    /// What the migration did to each connection. Comes before the answer that ends it, and again when the scripts have
    /// ended.
    Report(Box<Report>),
    /// The addresses that the new vNIC has got. Comes before `Prepared`, where the host did not give them.
    Addressed {
        migration: MigrationId,
        addresses: Addresses,
    },
}

/// A domain's UUID.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02x}", if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// When the clients join the new address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Join {
    /// While memory is being copied, through the advance tunnel.
    Before,
    /// After arrival, as the papers do.
    After,
    /// Not at all: the home tunnel carries everything.
    Never,
}

/// One end-to-end tunnel of a migration: the vNIC it is for and its VXLAN network identifier (24 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TunnelId {
    pub mac: Mac,
    pub vni: u32,
}

/// What a host knows of a vNIC of a VM it runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VnicPlace {
    pub mac: Mac,
    /// The LAN whose address it carries; `None` for a spare.
    pub lan: Option<String>,
}

/// The answer of the host that runs the VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Running {
    pub vnics: Vec<VnicPlace>,
    /// The vNIC that carries the traffic.
    pub active: Mac,
    /// The source's end of the tunnels.
    pub underlay: IpAddr,
    /// MTU of the active vNIC's LAN in bytes.
    pub mtu: u16,
}

/// What the destination proposes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Offer {
    pub migration: MigrationId,
    pub vm: Uuid,
    /// The tunnel of the vNIC whose LAN is left, from its LAN at the source to the VM at the destination.
    pub home: TunnelId,
    /// The tunnel of the spare, from its LAN at the destination to the VM at the source; before arrival only.
    pub advance: TunnelId,
    pub join: Join,
    /// The LAN that the VM joins.
    pub lan: String,
    pub addressing: Addressing,
    /// MTU of that LAN in bytes.
    pub mtu: u16,
    /// The destination's end of the tunnels.
    pub underlay: IpAddr,
    /// UDP port of the tunnels, at both ends.
    pub port: u16,
    pub drain: Drain,
    /// Neither end keeps what it built for longer than this without a word from the other.
    pub lease: Millis,
}

/// A host's end of WireGuard. Its address inside is made of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WireguardEnd {
    /// Public, of X25519, made for as long as the host has tunnels inside WireGuard.
    pub key: [u8; 32],
    /// UDP port.
    pub port: u16,
}

/// Why a host will not. Appended to, never parsed from text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum Decline {
    #[error(
        "migration {0} of this VM has not settled yet; wait for it, or end its old path there: \"lsm-hook status\" shows what it waits for, \"lsm-hook release VM\" ends it"
    )]
    Busy(MigrationId),
    #[error("it does not run this VM")]
    NotRunning,
    #[error("its tunnel ends could not be built: {0}")]
    Tunnel(String),
    #[error(
        "the tunnel cannot carry the LAN's frames of {needed} bytes: the underlay passes {available}; raise its MTU to {needed}"
    )]
    Mtu { needed: u32, available: u32 },
}

/// Between the hosts' services, both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    Locate {
        vm: Uuid,
    },
    Located {
        vm: Uuid,
        running: Option<Running>,
    },
    Offer(Offer),
    Accepted {
        migration: MigrationId,
    },
    Declined {
        migration: MigrationId,
        why: Decline,
    },
    GuestPrepared {
        migration: MigrationId,
        counts: Counts,
    },
    GuestRefused {
        migration: MigrationId,
        why: GuestFailure,
    },
    Flipped {
        migration: MigrationId,
    },
    Stopped {
        migration: MigrationId,
    },
    Resumed {
        migration: MigrationId,
    },
    Arrived {
        migration: MigrationId,
    },
    TakeDown {
        migration: MigrationId,
    },
    TakenDown {
        migration: MigrationId,
    },
    Abort {
        migration: MigrationId,
    },
    KeepAlive {
        migration: MigrationId,
    },
    /// What would a move do to this VM's connections?
    Foresee {
        vm: Uuid,
    },
    /// The guest's answer, its first page; `None` if it gave none.
    Foreseen {
        vm: Uuid,
        forecast: Option<Forecast>,
    },
    /// What the guest has said of its new addresses.
    GuestAddressed {
        migration: MigrationId,
        addresses: Addresses,
    },
    /// The tunnels of the migration that is offered next are to be inside WireGuard; the destination's end of it. Answered
    /// with `Encrypted` or `Declined`. An older host takes it for no message and ends the line: nothing was offered yet.
    Encrypt {
        migration: MigrationId,
        end: WireguardEnd,
    },
    /// The source's end.
    Encrypted {
        migration: MigrationId,
        end: WireguardEnd,
    },
}

impl Peer {
    /// The migration it is about; none for the questions that come before there is one.
    pub fn migration(&self) -> Option<MigrationId> {
        match self {
            Peer::Locate { .. } | Peer::Located { .. } | Peer::Foresee { .. } | Peer::Foreseen { .. } => None,
            Peer::Offer(offer) => Some(offer.migration),
            Peer::Accepted { migration }
            | Peer::Declined { migration, .. }
            | Peer::GuestPrepared { migration, .. }
            | Peer::GuestAddressed { migration, .. }
            | Peer::Encrypt { migration, .. }
            | Peer::Encrypted { migration, .. }
            | Peer::GuestRefused { migration, .. }
            | Peer::Flipped { migration }
            | Peer::Stopped { migration }
            | Peer::Resumed { migration }
            | Peer::Arrived { migration }
            | Peer::TakeDown { migration }
            | Peer::TakenDown { migration }
            | Peer::Abort { migration }
            | Peer::KeepAlive { migration } => Some(*migration),
        }
    }
}

/// Why the guest was not prepared.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
pub enum GuestFailure {
    #[error("{0}")]
    Refused(Refusal),
    #[error(
        "lsm-guest did not answer within {0} ms; is it running in the VM, and has the VM a vsock device or the channel org.lsm.guest.0?"
    )]
    Silent(Millis),
}
