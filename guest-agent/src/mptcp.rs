//! The kernel's MPTCP path manager: limits, endpoints, priorities, and what it tells about connections.
//!
//! Endpoints are never flushed: that closed the initial subflow of live connections (the kernel makes *implicit*
//! endpoints of its own). What is deleted is what the caller names.
//!
//! Numbers are those of linux/mptcp.h and linux/mptcp_pm.h; attributes that a kernel does not know are left out or missing,
//! and no decision hangs on a version.

mod events;

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use nix::libc;
use serde::{Deserialize, Serialize};

pub(crate) use events::read as read_events;
pub use events::{Event, EventKind, Events, Notice};

use crate::netlink::{Cause, Channel, Error, Message, attribute, attributes, bytes_at, u16_at, u32_at};

const VERSION: u8 = 1;
const CMD_ADD_ADDR: u8 = 1;
const CMD_DEL_ADDR: u8 = 2;
const CMD_GET_ADDR: u8 = 3;
const CMD_SET_LIMITS: u8 = 5;
const CMD_GET_LIMITS: u8 = 6;
const CMD_SET_FLAGS: u8 = 7;

const ATTR_ADDR: u16 = 1;
const ATTR_RCV_ADD_ADDRS: u16 = 2;
const ATTR_SUBFLOWS: u16 = 3;

const ADDR_FAMILY: u16 = 1;
const ADDR_ID: u16 = 2;
const ADDR_ADDR4: u16 = 3;
const ADDR_ADDR6: u16 = 4;
const ADDR_PORT: u16 = 5;
const ADDR_FLAGS: u16 = 6;
const ADDR_IF_IDX: u16 = 7;

const FLAG_SIGNAL: u32 = 1 << 0;
const FLAG_SUBFLOW: u32 = 1 << 1;
const FLAG_BACKUP: u32 = 1 << 2;
const FLAG_FULLMESH: u32 = 1 << 3;
const FLAG_IMPLICIT: u32 = 1 << 4;

/// Per connection, in this network namespace; the kernel's maximum of both is 8. They hold for connections made later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Additional subflows.
    pub subflows: u32,
    /// Announced addresses of the peer that are joined.
    pub add_addr_accepted: u32,
}

/// What an endpoint is for, as `ip mptcp endpoint` writes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    /// Announced to peers (ADD_ADDR): moves connections that they opened.
    pub signal: bool,
    /// Joins are made from it: moves connections that we opened.
    pub subflow: bool,
    /// Its subflows carry data only when no other can.
    pub backup: bool,
    /// Joins are made to every address of the peer.
    pub fullmesh: bool,
    /// Made by the kernel itself; only read, never written.
    pub implicit: bool,
}

/// An address that the path manager knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// 1 to 255; 0 when adding: the kernel chooses.
    pub id: u8,
    pub address: IpAddr,
    /// 0: that of the connection.
    pub port: u16,
    pub flags: Flags,
    /// 0: any.
    pub ifindex: u32,
}

/// How an endpoint is named in a change of priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// 1 to 255. The kernel refuses id 0 here: name the initial subflow's endpoint by its address.
    Id(u8),
    Address(IpAddr),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Id(id) => write!(f, "id {id}"),
            Which::Address(address) => address.fmt(f),
        }
    }
}

/// The path manager of the network namespace that the calling thread was in when it was opened.
pub struct PathManager {
    channel: Channel,
    family: u16,
}

impl PathManager {
    /// # Errors
    /// When the kernel has no MPTCP, or the socket cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let mut channel = Channel::open(libc::NETLINK_GENERIC)?;
            let family = resolve(&mut channel)?.id;
            Ok(PathManager { channel, family })
        };
        open().map_err(|cause: Cause| Error::new("reach the MPTCP path manager", cause))
    }

    /// The limits in force.
    pub fn limits(&mut self) -> Result<Limits, Error> {
        let request = self.command(CMD_GET_LIMITS);
        self.channel
            .get(request, |payload| {
                let body = payload.get(GENL_HEADER..)?;
                Some(Limits {
                    subflows: u32_at(attribute(body, ATTR_SUBFLOWS)?, 0)?,
                    add_addr_accepted: u32_at(attribute(body, ATTR_RCV_ADD_ADDRS)?, 0)?,
                })
            })
            .map_err(|cause| Error::new("read the MPTCP limits", cause))
    }

    /// # Errors
    /// When a limit is above the kernel's maximum of 8, or the capability CAP_NET_ADMIN is missing.
    pub fn set_limits(&mut self, limits: Limits) -> Result<(), Error> {
        let Limits { subflows, add_addr_accepted } = limits;
        let request = self
            .command(CMD_SET_LIMITS)
            .attribute(ATTR_RCV_ADD_ADDRS, &add_addr_accepted.to_ne_bytes())
            .attribute(ATTR_SUBFLOWS, &subflows.to_ne_bytes());
        self.channel.change(request).map_err(|cause| {
            let what = format!("set the MPTCP limits to subflows {subflows} add_addr_accepted {add_addr_accepted}");
            Error::new(what, cause)
        })
    }

    /// All endpoints, implicit ones included.
    pub fn endpoints(&mut self) -> Result<Vec<Endpoint>, Error> {
        let request = self.command(CMD_GET_ADDR);
        self.channel
            .dump(request, |payload| read_endpoint(attribute(payload.get(GENL_HEADER..)?, ATTR_ADDR)?))
            .map_err(|cause| Error::new("list the MPTCP endpoints", cause))
    }

    /// Adds an endpoint. One that is implicit takes the new flags; then `id` must be 0 or its own. The very same
    /// being there already is success.
    ///
    /// # Errors
    /// When the address or the id is taken by another endpoint (EEXIST, EBUSY or EINVAL, as the kernel likes), or there is
    /// no room (ERANGE: 8 of a kind).
    pub fn add(&mut self, endpoint: &Endpoint) -> Result<(), Error> {
        let request = self.command(CMD_ADD_ADDR).nest(ATTR_ADDR, |mut message| {
            message = name(message, endpoint.id, Some(endpoint.address));
            message = message.attribute(ADDR_FLAGS, &endpoint.flags.bits().to_ne_bytes());
            if endpoint.port != 0 {
                message = message.attribute(ADDR_PORT, &endpoint.port.to_ne_bytes());
            }
            if endpoint.ifindex != 0 {
                message = message.attribute(ADDR_IF_IDX, &endpoint.ifindex.to_ne_bytes());
            }
            message
        });
        let Err(cause) = self.channel.change(request) else { return Ok(()) };
        let same =
            |there: &Endpoint| Endpoint { id: if endpoint.id == 0 { 0 } else { there.id }, ..*there } == *endpoint;
        if cause.errno().is_some() && self.endpoints()?.iter().any(same) {
            return Ok(());
        }
        Err(Error::new(format!("add the MPTCP endpoint {} id {}", endpoint.address, endpoint.id), cause))
    }

    /// Deletes an endpoint: RM_ADDR goes out and its subflows close, the last one of a connection included. The kernel
    /// goes by the id; with id 0 it takes the address and closes the initial subflows from there.
    ///
    /// No endpoint with that id is success.
    ///
    /// # Errors
    /// When the capability CAP_NET_ADMIN is missing.
    pub fn delete(&mut self, id: u8, address: IpAddr) -> Result<(), Error> {
        let request = self.command(CMD_DEL_ADDR).nest(ATTR_ADDR, |message| name(message, id, Some(address)));
        let Err(cause) = self.channel.change(request) else { return Ok(()) };
        if cause.errno().is_some() && !self.endpoints()?.iter().any(|there| there.id == id) {
            return Ok(());
        }
        Err(Error::new(format!("delete the MPTCP endpoint {address} id {id}"), cause))
    }

    /// Sets backup (true) or preferred (false) on several endpoints in **one** write: the flip. All answers are read
    /// before it returns; the first refusal is reported. What was so already stays so and tells the peers nothing.
    pub fn set_backup(&mut self, priorities: &[(Which, bool)]) -> Result<(), Error> {
        // The kernel takes fullmesh from the same request (mptcp_pm_nl_set_flags): it must be repeated to be kept.
        let endpoints = self.endpoints()?;
        let requests: Vec<_> =
            priorities.iter().map(|&(which, backup)| self.priority(which, backup, &endpoints)).collect();
        let failed = |what: String, cause| Error::new(format!("set the priority of MPTCP endpoint {what}"), cause);
        let list = || priorities.iter().map(|(which, _)| which.to_string()).collect::<Vec<_>>().join(" and ");
        let answers = self.channel.change_all(requests).map_err(|cause| failed(list(), cause))?;
        for ((which, backup), answer) in priorities.iter().zip(answers) {
            let word = if *backup { "backup" } else { "nobackup" };
            answer.map_err(|cause| failed(format!("{which} to {word}"), cause))?;
        }
        Ok(())
    }

    fn priority(&self, which: Which, backup: bool, endpoints: &[Endpoint]) -> Message {
        let known = endpoints.iter().find(|endpoint| match which {
            Which::Id(id) => endpoint.id == id,
            Which::Address(address) => endpoint.address == address,
        });
        let fullmesh = known.is_some_and(|endpoint| endpoint.flags.fullmesh);
        let flags = Flags { backup, fullmesh, ..Flags::default() };
        self.command(CMD_SET_FLAGS).nest(ATTR_ADDR, |message| {
            let named = match which {
                Which::Id(id) => name(message, id, None),
                Which::Address(address) => name(message, 0, Some(address)),
            };
            named.attribute(ADDR_FLAGS, &flags.bits().to_ne_bytes())
        })
    }

    fn command(&self, command: u8) -> Message {
        Message::new(self.family, 0).raw(&[command, VERSION, 0, 0])
    }
}

impl Flags {
    fn bits(self) -> u32 {
        let bit = |set: bool, bit: u32| if set { bit } else { 0 };
        bit(self.signal, FLAG_SIGNAL)
            | bit(self.subflow, FLAG_SUBFLOW)
            | bit(self.backup, FLAG_BACKUP)
            | bit(self.fullmesh, FLAG_FULLMESH)
    }

    fn from_bits(bits: u32) -> Self {
        Flags {
            signal: bits & FLAG_SIGNAL != 0,
            subflow: bits & FLAG_SUBFLOW != 0,
            backup: bits & FLAG_BACKUP != 0,
            fullmesh: bits & FLAG_FULLMESH != 0,
            implicit: bits & FLAG_IMPLICIT != 0,
        }
    }
}

fn name(mut message: Message, id: u8, address: Option<IpAddr>) -> Message {
    if id != 0 {
        message = message.attribute(ADDR_ID, &[id]);
    }
    let family = |message: Message, family: i32| message.attribute(ADDR_FAMILY, &(family as u16).to_ne_bytes());
    match address {
        None => message,
        Some(IpAddr::V4(v4)) => family(message, libc::AF_INET).attribute(ADDR_ADDR4, &v4.octets()),
        Some(IpAddr::V6(v6)) => family(message, libc::AF_INET6).attribute(ADDR_ADDR6, &v6.octets()),
    }
}

pub(crate) fn read_endpoint(nest: &[u8]) -> Option<Endpoint> {
    let mut endpoint =
        Endpoint { id: 0, address: Ipv4Addr::UNSPECIFIED.into(), port: 0, flags: Flags::default(), ifindex: 0 };
    for (kind, value) in attributes(nest) {
        match kind {
            ADDR_ID => endpoint.id = *value.first()?,
            ADDR_ADDR4 => endpoint.address = Ipv4Addr::from(bytes_at::<4>(value, 0)?).into(),
            ADDR_ADDR6 => endpoint.address = Ipv6Addr::from(bytes_at::<16>(value, 0)?).into(),
            ADDR_PORT => endpoint.port = u16_at(value, 0)?,
            ADDR_FLAGS => endpoint.flags = Flags::from_bits(u32_at(value, 0)?),
            ADDR_IF_IDX => endpoint.ifindex = u32_at(value, 0)?,
            _ => {}
        }
    }
    (!endpoint.address.is_unspecified()).then_some(endpoint)
}

/// Length of a generic netlink header {command u8, version u8, reserved u16}.
const GENL_HEADER: usize = 4;

struct Family {
    id: u16,
    /// Group number of the events.
    events: u32,
}

/// Asks generic netlink for the numbers behind the names; they differ from boot to boot.
fn resolve(channel: &mut Channel) -> Result<Family, Cause> {
    const GENL_ID_CTRL: u16 = 0x10;
    const CTRL_CMD_GETFAMILY: u8 = 3;
    const CTRL_ATTR_FAMILY_ID: u16 = 1;
    const CTRL_ATTR_FAMILY_NAME: u16 = 2;
    const CTRL_ATTR_MCAST_GROUPS: u16 = 7;
    const CTRL_ATTR_MCAST_GRP_NAME: u16 = 1;
    const CTRL_ATTR_MCAST_GRP_ID: u16 = 2;

    let request = Message::new(GENL_ID_CTRL, 0)
        .raw(&[CTRL_CMD_GETFAMILY, 2, 0, 0])
        .attribute(CTRL_ATTR_FAMILY_NAME, b"mptcp_pm\0");
    let family = channel.get(request, |payload| {
        let body = payload.get(GENL_HEADER..)?;
        let groups = attribute(body, CTRL_ATTR_MCAST_GROUPS)?;
        let events = attributes(groups)
            .find(|(_, group)| attribute(group, CTRL_ATTR_MCAST_GRP_NAME) == Some(b"mptcp_pm_events\0"))?;
        Some(Family {
            id: u16_at(attribute(body, CTRL_ATTR_FAMILY_ID)?, 0)?,
            events: u32_at(attribute(events.1, CTRL_ATTR_MCAST_GRP_ID)?, 0)?,
        })
    });
    match family {
        Err(cause) if cause.errno() == Some(nix::errno::Errno::ENOENT) => {
            Err(Cause::Lacking("MPTCP (CONFIG_MPTCP); Linux 6.1 and later of the distributions have it"))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::HEADER;

    #[test]
    fn an_endpoint_is_read_from_what_the_kernel_writes_and_nothing_less() {
        let address: IpAddr = "2001:db8::7".parse().unwrap();
        let bytes = name(Message::new(0, 0), 9, Some(address))
            .attribute(ADDR_FLAGS, &(FLAG_SIGNAL | FLAG_BACKUP | 1 << 30).to_ne_bytes())
            .attribute(99, b"from a later kernel")
            .attribute(ADDR_PORT, &4242u16.to_ne_bytes())
            .attribute(ADDR_IF_IDX, &3u32.to_ne_bytes())
            .seal(0);
        let flags = Flags { signal: true, backup: true, ..Flags::default() };
        let expected = Endpoint { id: 9, address, port: 4242, flags, ifindex: 3 };
        assert_eq!(read_endpoint(&bytes[HEADER..]), Some(expected));
        for length in 0..bytes.len() - HEADER {
            assert_ne!(read_endpoint(&bytes[HEADER..HEADER + length]), Some(expected));
        }
        for value in 0..3u8 {
            for kind in 0..8 {
                let short = Message::new(0, 0).attribute(kind, &vec![value; usize::from(value)]).seal(0);
                assert_eq!(read_endpoint(&short[HEADER..]), None);
            }
        }
    }
}
