//! What a move did, told afterwards: the report that the guest makes of each migration. [`account`] collects it.
//!
//! Sums are of all connections that a count saw on the old address while the migration was under way, each in one of
//! them; the list is cut to fit a message, the worst first.

pub mod account;
mod ended;
mod shown;

use alloc::{string::String, vec::Vec};
use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

pub use self::ended::Ended;
use crate::{MigrationId, Millis, Refusal, forecast::Obstacle};

/// Connections that a report names: 30 bytes each at most, and a frame holds 64 KiB.
pub const LISTED: usize = 500;
/// Steps that it tells; a migration has about 15.
pub const STEPS: usize = 60;
/// UDP sockets and scripts that it names.
pub const NAMED: usize = 50;

/// What became of a connection. Appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Became {
    /// It had joined the new address when the traffic was switched, and left the old one.
    Moved,
    /// It joined after the switch, and left the old one.
    MovedLate,
    /// It ended before the switch.
    Ended,
    /// It kept the old address and the tunnel until one of its ends closed it.
    Stayed(Obstacle),
    /// The old path was left while it still needed it, as policy or the operator wanted.
    Cut(Obstacle),
    /// It ended with this errno.
    Lost(u8),
    /// The move was called off, and it is where it was.
    Kept,
}

impl Became {
    /// The class, as people and programs read it.
    pub fn class(self) -> &'static str {
        match self {
            Became::Moved => "moved",
            Became::MovedLate => "moved late",
            Became::Ended => "ended",
            Became::Stayed(_) => "stayed",
            Became::Cut(_) => "cut",
            Became::Lost(_) => "lost",
            Became::Kept => "kept",
        }
    }

    /// The worst first: a list that is cut short shows what matters.
    fn rank(self) -> u8 {
        match self {
            Became::Lost(_) => 0,
            Became::Cut(_) => 1,
            Became::Stayed(_) => 2,
            Became::MovedLate => 3,
            Became::Ended => 4,
            Became::Kept => 5,
            Became::Moved => 6,
        }
    }
}

/// Connections by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub moved: u32,
    pub moved_late: u32,
    pub ended: u32,
    /// MPTCP that never joined, and had the old path as long as it needed it.
    pub stayed: u32,
    /// TCP that is not MPTCP, and had the old path as long as it needed it.
    pub legacy: u32,
    pub cut: u32,
    pub lost: u32,
    pub kept: u32,
}

impl Sums {
    /// All connections.
    pub fn all(&self) -> u64 {
        let Sums { moved, moved_late, ended, stayed, legacy, cut, lost, kept } = *self;
        [moved, moved_late, ended, stayed, legacy, cut, lost, kept].map(u64::from).iter().sum()
    }

    fn count(&mut self, became: Became) {
        *match became {
            Became::Moved => &mut self.moved,
            Became::MovedLate => &mut self.moved_late,
            Became::Ended => &mut self.ended,
            Became::Stayed(Obstacle::NotJoined { .. } | Obstacle::Full) => &mut self.stayed,
            Became::Stayed(_) => &mut self.legacy,
            Became::Cut(_) => &mut self.cut,
            Became::Lost(_) => &mut self.lost,
            Became::Kept => &mut self.kept,
        } += 1;
    }
}

/// One connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub peer: SocketAddr,
    pub became: Became,
}

/// When something was done, in milliseconds since the migration began. The VM's clock stands while the VM does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub step: String,
    pub at: Millis,
}

/// An address, and the one of its family that took its place; `None`: there is none of that family on the new LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readdressed {
    pub from: IpAddr,
    pub to: Option<IpAddr>,
}

/// The longest time without data from a peer around the switch, on any connection that had data within the second before
/// it. Between two counts nobody looks, hence two numbers, in milliseconds of the VM's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Some count saw a connection wait for so long.
    pub at_least: Millis,
    /// No connection can have waited longer.
    pub at_most: Millis,
}

/// How the migration ended, for the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Settled,
    Aborted,
    Refused(Refusal),
    /// The VM went back while its old address was held, which is the direct one again.
    Returned,
}

impl Outcome {
    /// As programs read it.
    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Settled => "settled",
            Outcome::Aborted => "aborted",
            Outcome::Refused(_) => "refused",
            Outcome::Returned => "returned",
        }
    }
}

/// What became of one of the operator's scripts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    pub name: String,
    /// Its exit status, if it came to one.
    pub status: Option<i32>,
    /// In words.
    pub outcome: String,
}

/// One migration, as the guest saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    #[serde(with = "id")]
    pub migration: MigrationId,
    pub lan: String,
    /// Milliseconds since 1970, by the VM's clock.
    pub began: u64,
    pub outcome: Outcome,
    pub addresses: Vec<Readdressed>,
    pub steps: Vec<Step>,
    pub sums: Sums,
    /// At most [`LISTED`].
    pub connections: Vec<Connection>,
    /// `None`: no busy connection, or no count that could have seen it.
    pub gap: Option<Gap>,
    /// Median round-trip times in microseconds: of the old path before the switch, of the new one at the end.
    pub rtt_before: Option<u32>,
    pub rtt_after: Option<u32>,
    /// UDP sockets bound to an address that was left, at the beginning; `None` where the kernel cannot list them.
    pub datagrams: Option<Vec<SocketAddr>>,
    /// `None`: there was no switch for good, or they have not all ended yet.
    pub scripts: Option<Vec<Script>>,
    /// The agent was started anew meanwhile: connections that ended before that are not in the sums.
    pub restarted: bool,
}

/// In JSON as everywhere else in logs and file names, over the wire as 16 bytes.
mod id {
    use alloc::string::{String, ToString};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    use crate::MigrationId;

    pub fn serialize<S: Serializer>(id: &MigrationId, to: S) -> Result<S::Ok, S::Error> {
        if to.is_human_readable() { to.serialize_str(&id.to_string()) } else { id.serialize(to) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<MigrationId, D::Error> {
        if !from.is_human_readable() {
            return MigrationId::deserialize(from);
        }
        let text = String::deserialize(from)?;
        MigrationId::parse(&text).ok_or_else(|| D::Error::custom("not 32 hexadecimal digits"))
    }
}

impl MigrationId {
    /// As [`fmt::Display`] prints it.
    pub fn parse(text: &str) -> Option<MigrationId> {
        let mut id = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        for (i, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
        }
        Some(MigrationId(id))
    }
}

impl fmt::Display for Became {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())?;
        match self {
            Became::Stayed(why) | Became::Cut(why) => write!(f, ": {}", crate::forecast::Fate::Waits(*why)),
            Became::Lost(errno) => write!(f, ": error {errno}"),
            _ => Ok(()),
        }
    }
}
