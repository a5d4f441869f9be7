//! Frames for a vNIC go to another port of its bridge, at once: one netlink write each way, on a socket that is open
//! already. And the sign that they come from a port: the bridge learning the vNIC's MAC there.

mod learning;
mod rtnl;

use std::io;

use lsm_protocol::Mac;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use rtnetlink::packet_core::DefaultNla;

pub use self::learning::LearningWatch;
pub(crate) use self::rtnl::Rtnl;

/// What went wrong with a bridge's entries.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DivertError {
    #[error("cannot open a route netlink socket")]
    Open(#[source] io::Error),
    #[error("cannot find the interface {name}")]
    NoInterface {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot ask the bridge {bridge} where {mac} is")]
    Ask {
        bridge: String,
        mac: Mac,
        #[source]
        source: io::Error,
    },
    #[error("{mac} is an address of the bridge {bridge} itself: the host and a vNIC have the same MAC")]
    Local { bridge: String, mac: Mac },
    #[error("cannot point {mac} at {port}")]
    Point {
        mac: Mac,
        port: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot watch {port} for {mac}")]
    Watch {
        port: String,
        mac: Mac,
        #[source]
        source: io::Error,
    },
}

/// The forwarding tables of this host's bridges. Calls return when the kernel has done the work; none waits.
pub struct Fdb(Rtnl);

/// A diversion, ready to be done and undone with one netlink write each.
#[derive(Clone, Debug)]
pub struct Diversion {
    mac: Mac,
    to: Port,
    /// Where the bridge had the MAC, and whether for good.
    home: Option<(Port, NeighbourState)>,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    index: u32,
}

impl Fdb {
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn open() -> Result<Self, DivertError> {
        Rtnl::open().map(Self).map_err(DivertError::Open)
    }

    /// Looks up all that [`Fdb::divert`] and [`Fdb::undo`] need. `home` is the vNIC's own port, where it is known; else
    /// where the bridge has the MAC now.
    ///
    /// # Errors
    /// When an interface does not exist, or the MAC is the bridge's own.
    pub fn prepare(&self, bridge: &str, mac: Mac, to: &str, home: Option<&str>) -> Result<Diversion, DivertError> {
        let to = self.port(to)?;
        let bridge_index = self.port(bridge)?.index;
        let ask = |source| DivertError::Ask { bridge: bridge.to_owned(), mac, source };
        let entry = self.0.fdb_entry(bridge_index, mac.0).map_err(ask)?;
        if entry.as_ref().is_some_and(|entry| entry.header.state == NeighbourState::Permanent) {
            return Err(DivertError::Local { bridge: bridge.to_owned(), mac });
        }
        let home = match (home, entry) {
            (Some(name), _) => Some((self.port(name)?, NeighbourState::Reachable)),
            (None, Some(entry)) if entry.header.ifindex != to.index => {
                let state = match entry.header.state {
                    NeighbourState::Noarp => NeighbourState::Noarp,
                    _ => NeighbourState::Reachable,
                };
                Some((Port { name: format!("port {}", entry.header.ifindex), index: entry.header.ifindex }, state))
            }
            (None, _) => None,
        };
        Ok(Diversion { mac, to, home })
    }

    /// From here on the bridge sends the vNIC's frames to the other port, whatever it had learned. Frames *from* the
    /// vNIC on a port that learns move the entry there, as always.
    ///
    /// # Errors
    /// When the kernel refuses; nothing has changed then.
    pub fn divert(&self, diversion: &Diversion) -> Result<(), DivertError> {
        self.point(diversion.mac, &diversion.to, NeighbourState::Noarp)
    }

    /// Points the MAC back at its home port, or forgets it where no home is known. Undone already is success.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn undo(&self, diversion: &Diversion) -> Result<(), DivertError> {
        match &diversion.home {
            Some((home, state)) => self.point(diversion.mac, home, *state),
            None => {
                let entry = entry(diversion.mac, diversion.to.index, NeighbourState::None);
                match self.0.ask(RouteNetlinkMessage::DelNeighbour(entry), 0) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot_point(diversion, error)),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Turns a diversion into what the bridge would have learned by itself: an entry that ages and moves.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn keep(&self, diversion: &Diversion) -> Result<(), DivertError> {
        self.point(diversion.mac, &diversion.to, NeighbourState::Reachable)
    }

    fn point(&self, mac: Mac, port: &Port, state: NeighbourState) -> Result<(), DivertError> {
        let mut message = entry(mac, port.index, state);
        message.attributes.push(notify_when_active(state));
        let done = self.0.ask(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE);
        done.map(drop).map_err(|source| DivertError::Point { mac, port: port.name.clone(), source })
    }

    fn port(&self, name: &str) -> Result<Port, DivertError> {
        let link = self.0.link(name);
        let link = link.map_err(|source| DivertError::NoInterface { name: name.to_owned(), source })?;
        Ok(Port { name: name.to_owned(), index: link.header.index })
    }
}

fn cannot_point(diversion: &Diversion, source: io::Error) -> DivertError {
    DivertError::Point { mac: diversion.mac, port: format!("any port but {}", diversion.to.name), source }
}

fn entry(mac: Mac, port: u32, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = port;
    message.header.state = state;
    message.header.flags = NeighbourFlags::Controller;
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message
}

// linux/neighbour.h, since 5.14; older kernels ignore the attribute.
const NDA_FDB_EXT_ATTRS: u16 = 14;
const NFEA_ACTIVITY_NOTIFY: u16 = 1;
const FDB_NOTIFY: u8 = 1;
const FDB_NOTIFY_INACTIVE: u8 = 2;

/// A bridge tells when it learns where a MAC is, but not when a frame confirms what it was told. This makes it tell:
/// the entry starts as inactive, and the vNIC's first frame makes it active.
fn notify_when_active(state: NeighbourState) -> NeighbourAttribute {
    let bits = if state == NeighbourState::Noarp { FDB_NOTIFY | FDB_NOTIFY_INACTIVE } else { 0 };
    let mut nested = Vec::from(5_u16.to_ne_bytes());
    nested.extend(NFEA_ACTIVITY_NOTIFY.to_ne_bytes());
    nested.extend([bits, 0, 0, 0]);
    NeighbourAttribute::Other(DefaultNla::new(NDA_FDB_EXT_ATTRS | NLA_F_NESTED, nested))
}

const NLA_F_NESTED: u16 = 1 << 15;
