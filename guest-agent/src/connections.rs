//! The TCP connections of this machine as inet_diag tells them: which subflow belongs to which MPTCP connection, and
//! which connections are not MPTCP at all.
//!
//! A TCP row of a subflow carries ULP information with the connection's token; a row without is *legacy*: plain TCP, also
//! where the peer was asked for MPTCP and did not answer it. The MPTCP rows add what no subflow can tell: connections that
//! fell back later, and the port they began with. (`ss -M` shows the first address of a connection for ever: its addresses
//! are not used.)
//!
//! Layouts: linux/inet_diag.h, linux/tcp.h (struct tcp_info), linux/mptcp.h.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lsm_protocol::forecast::Obstacle;
use nix::{errno::Errno, libc};

use crate::netlink::{Cause, Channel, Error, Message, attribute, bytes_at, u32_at, u64_at};

/// A moment's picture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub connections: Vec<Connection>,
    pub legacy: Vec<Legacy>,
    /// Local addresses that TCP listens on; an unspecified address means all.
    pub listeners: Vec<SocketAddr>,
}

/// An MPTCP connection with at least one subflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Names the connection on this machine.
    pub token: u32,
    /// The initial subflow tells, as long as it lives. After that it is known of those that this agent has seen before and
    /// that were opened here; not of the others.
    pub opened_by_us: Option<bool>,
    /// Our port when it began, which peers join at for as long as it lives; `None` where the kernel has no mptcp_diag.
    pub port: Option<u16>,
    /// It has as many subflows as the kernel's limit allows.
    pub full: bool,
    pub subflows: Vec<Subflow>,
}

impl Connection {
    /// We sent the first SYN. Joins come from that side too, which tells when the initial subflow is gone.
    pub fn opened_here(&self, any: &Subflow) -> bool {
        self.opened_by_us.unwrap_or(any.opened_by_us)
    }
}

/// One TCP connection within an MPTCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subflow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// TCP is established and both sides agreed on its place in the connection.
    pub established: bool,
    /// The one that the connection began with; the others joined.
    pub initial: bool,
    /// We sent the SYN.
    pub opened_by_us: bool,
    /// We ask the peer not to use it.
    pub backup: bool,
    /// The peer asks us not to use it.
    pub backup_by_peer: bool,
    pub local_id: u8,
    pub remote_id: u8,
    /// Smoothed round-trip time in microseconds; 0 before the first sample.
    pub rtt_us: u32,
    /// Segments sent and not acknowledged.
    pub unacked: u32,
    /// Payload bytes that the peer acknowledged.
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// Bytes written but not sent yet.
    pub unsent: u32,
    /// Since data came last (or the subflow was made), in milliseconds.
    pub silent_ms: u32,
    /// 0 for subflows of the kernel's own making.
    pub inode: u32,
}

/// A TCP connection that MPTCP cannot move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Legacy {
    /// Why it cannot.
    pub obstacle: Obstacle,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: State,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: u32,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    /// Since data came last (or the connection was made), in milliseconds.
    pub silent_ms: u32,
    pub inode: u32,
}

/// States in which a TCP connection can still carry data (include/net/tcp_states.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Established,
    /// We closed our half; data may still come.
    HalfClosedByUs,
    /// The peer closed its half; we may still send.
    HalfClosedByPeer,
    /// Both closed it; the last of what we sent is not acknowledged.
    Closing,
}

/// The socket that asks.
pub struct Diag {
    channel: Channel,
    opened_here: OpenedHere,
}

impl Diag {
    /// For the network namespace of the calling thread.
    pub fn open() -> Result<Self, Error> {
        let channel = Channel::open(libc::NETLINK_SOCK_DIAG).map_err(|cause| Error::new("reach inet_diag", cause))?;
        Ok(Diag { channel, opened_here: OpenedHere::default() })
    }

    /// Lists all connections of both families, loopback included.
    ///
    /// # Errors
    /// When the kernel has no inet_diag or tcp_diag. Without mptcp_diag the picture only lacks late fallbacks.
    pub fn snapshot(&mut self) -> Result<Snapshot, Error> {
        let mut sorter = Sorter::default();
        for family in [libc::AF_INET, libc::AF_INET6] {
            match self.rows(family, PROTOCOL_MPTCP, ALIVE, read_whole) {
                Ok(wholes) => sorter.wholes.extend(wholes),
                Err(cause) if cause.errno() == Some(Errno::ENOENT) => {}
                Err(cause) => return Err(Error::new("list the MPTCP connections", cause)),
            }
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            let rows = self.rows(family, libc::IPPROTO_TCP as u32, ALIVE, read_row).map_err(|cause| {
                let what = "list the TCP connections (does the kernel have tcp_diag? try \"modprobe tcp_diag\")";
                Error::new(what, cause)
            })?;
            rows.into_iter().for_each(|row| sorter.sort(row));
        }
        self.opened_here.recall(&mut sorter.snapshot.connections);
        Ok(sorter.snapshot)
    }

    /// The local addresses of all UDP sockets; `None` where the kernel has no udp_diag.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn datagrams(&mut self) -> Result<Option<Vec<SocketAddr>>, Error> {
        /// UDP sockets that are not connected are in the state CLOSE.
        const BOUND: &[u8] = &[ESTABLISHED, CLOSE];
        let mut sockets = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            match self.rows(family, libc::IPPROTO_UDP as u32, BOUND, local_address) {
                Ok(rows) => sockets.extend(rows),
                Err(cause) if cause.errno() == Some(Errno::ENOENT) => return Ok(None),
                Err(cause) => return Err(Error::new("list the UDP sockets", cause)),
            }
        }
        Ok(Some(sockets))
    }

    fn rows<T>(
        &mut self,
        family: i32,
        protocol: u32,
        states: &[u8],
        read: fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Cause> {
        const SOCK_DIAG_BY_FAMILY: u16 = 20;
        const REQ_PROTOCOL: u16 = 3;
        const SOCKET_ID: usize = 48;

        let states: u32 = states.iter().map(|state| 1 << state).sum();
        // 8 bits of the protocol: what kernels before 5.6 go by.
        let mut fixed = vec![family as u8, protocol as u8, 1 << (ATTR_INFO - 1), 0];
        fixed.extend_from_slice(&states.to_ne_bytes());
        fixed.extend_from_slice(&[0; SOCKET_ID]);
        // 262 does not fit the 8 bits of the fixed part; the attribute overrides it.
        let request = Message::new(SOCK_DIAG_BY_FAMILY, 0).raw(&fixed).attribute(REQ_PROTOCOL, &protocol.to_ne_bytes());
        self.channel.dump(request, read)
    }
}

/// The connections that we opened, by token, as of the last picture. Their peers cannot join at the port that they began
/// with, and an announcement for whoever cannot costs each peer one of the eight that its kernel takes.
#[derive(Default)]
struct OpenedHere(HashSet<u32>);

impl OpenedHere {
    fn recall(&mut self, connections: &mut [Connection]) {
        for connection in connections.iter_mut().filter(|c| c.opened_by_us.is_none() && self.0.contains(&c.token)) {
            connection.opened_by_us = Some(true);
        }
        self.0 = connections.iter().filter(|c| c.opened_by_us == Some(true)).map(|c| c.token).collect();
    }
}

const PROTOCOL_MPTCP: u32 = libc::IPPROTO_MPTCP as u32;

/// struct inet_diag_msg.
const ROW: usize = 72;
const ATTR_INFO: u16 = 2;
const ATTR_ULP_INFO: u16 = 19;

const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;
const FIN_WAIT1: u8 = 4;
const FIN_WAIT2: u8 = 5;
const CLOSE: u8 = 7;
const CLOSE_WAIT: u8 = 8;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
/// TCP that carries data, begins to, or waits for connections.
const ALIVE: &[u8] = &[ESTABLISHED, SYN_SENT, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING, LISTEN];

pub(crate) enum Row {
    Listener(SocketAddr),
    Legacy(Legacy),
    Subflow { token: u32, subflow: Subflow },
}

#[derive(Default)]
struct Sorter {
    snapshot: Snapshot,
    places: HashMap<u32, usize>,
    /// What MPTCP says of the connections, by token.
    wholes: HashMap<u32, Whole>,
}

impl Sorter {
    fn sort(&mut self, row: Row) {
        match row {
            Row::Listener(local) => self.snapshot.listeners.push(local),
            Row::Legacy(legacy) => self.snapshot.legacy.push(legacy),
            Row::Subflow { token, subflow } if self.wholes.get(&token).is_some_and(|whole| whole.fell_back) => {
                let Subflow { local, remote, rtt_us, bytes_acked, bytes_received, silent_ms, inode, .. } = subflow;
                let state = State::Established;
                let obstacle = Obstacle::FellBack;
                self.snapshot.legacy.push(Legacy {
                    obstacle,
                    local,
                    remote,
                    state,
                    rtt_us,
                    bytes_acked,
                    bytes_received,
                    silent_ms,
                    inode,
                });
            }
            Row::Subflow { token, subflow } => {
                let connections = &mut self.snapshot.connections;
                let place = *self.places.entry(token).or_insert_with(|| {
                    let whole = self.wholes.get(&token);
                    let (port, full) = (whole.map(|whole| whole.port), whole.is_some_and(|whole| whole.full));
                    connections.push(Connection { token, opened_by_us: None, port, full, subflows: Vec::new() });
                    connections.len() - 1
                });
                if let Some(connection) = connections.get_mut(place) {
                    if subflow.initial {
                        connection.opened_by_us = Some(subflow.opened_by_us);
                    }
                    connection.subflows.push(subflow);
                }
            }
        }
    }
}

/// What no subflow tells of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    port: u16,
    /// The connection is TCP now.
    fell_back: bool,
    /// It has all the additional subflows that it may have.
    full: bool,
}

/// An MPTCP row: the token, and the rest (struct inet_diag_msg, then struct mptcp_info).
pub(crate) fn read_whole(payload: &[u8]) -> Option<(u32, Whole)> {
    const SUBFLOWS: usize = 0;
    const SUBFLOWS_MAX: usize = 3;
    const FLAGS: usize = 8;
    const TOKEN: usize = 12;
    const FLAG_FALLBACK: u32 = 1;

    let port = local_address(payload)?.port();
    let info = attribute(payload.get(ROW..)?, ATTR_INFO)?;
    let token = u32_at(info, TOKEN)?;
    let fell_back = u32_at(info, FLAGS)? & FLAG_FALLBACK != 0;
    let full = !fell_back && info[SUBFLOWS] >= info[SUBFLOWS_MAX];
    Some((token, Whole { port, fell_back, full }))
}

/// A TCP row (struct inet_diag_msg, then attributes).
pub(crate) fn read_row(payload: &[u8]) -> Option<Row> {
    const INODE: usize = 68;

    let [family, state] = bytes_at::<2>(payload, 0)?;
    let local = socket_address(payload, family, 4, 8)?;
    let remote = socket_address(payload, family, 6, 24)?;
    let inode = u32_at(payload, INODE)?;
    let rest = payload.get(ROW..)?;
    if state == LISTEN {
        return Some(Row::Listener(local));
    }
    let info = TcpInfo::read(attribute(rest, ATTR_INFO).unwrap_or_default());
    let ulp = attribute(rest, ATTR_ULP_INFO).and_then(Ulp::read);
    if let Some(ulp) = ulp.as_ref().filter(|ulp| ulp.is_mptcp(state)) {
        if matches!(state, LAST_ACK | CLOSING) {
            return None; // its connection has had the last of its data acknowledged, or carries it elsewhere
        }
        let opened_by_us = ulp.flags & (FLAG_MCAP_LOC | FLAG_JOIN_LOC) != 0;
        let subflow = Subflow {
            local,
            remote,
            established: state == ESTABLISHED && ulp.agreed(),
            initial: ulp.initial(),
            opened_by_us,
            backup: ulp.flags & FLAG_BKUP_LOC != 0,
            backup_by_peer: ulp.flags & FLAG_BKUP_REM != 0,
            local_id: ulp.local_id,
            remote_id: ulp.remote_id,
            rtt_us: info.rtt_us,
            unacked: info.unacked,
            // The kernel counts the SYN, on the side that sent it.
            bytes_acked: info.bytes_acked.saturating_sub(opened_by_us.into()),
            bytes_received: info.bytes_received,
            unsent: info.unsent,
            silent_ms: info.silent_ms,
            inode,
        };
        return Some(Row::Subflow { token: ulp.token, subflow });
    }
    let state = match state {
        ESTABLISHED => State::Established,
        FIN_WAIT1 | FIN_WAIT2 => State::HalfClosedByUs,
        CLOSE_WAIT => State::HalfClosedByPeer,
        LAST_ACK | CLOSING => State::Closing,
        _ => return None,
    };
    let TcpInfo { rtt_us, bytes_acked, bytes_received, silent_ms, .. } = info;
    let obstacle = if ulp.is_some() { Obstacle::Unanswered } else { Obstacle::Plain };
    Some(Row::Legacy(Legacy { obstacle, local, remote, state, rtt_us, bytes_acked, bytes_received, silent_ms, inode }))
}

/// The local address in a row (struct inet_diag_msg).
pub(crate) fn local_address(row: &[u8]) -> Option<SocketAddr> {
    socket_address(row, *row.first()?, 4, 8)
}

fn socket_address(payload: &[u8], family: u8, port: usize, address: usize) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(bytes_at(payload, port)?);
    let address = match i32::from(family) {
        libc::AF_INET => IpAddr::from(Ipv4Addr::from(bytes_at::<4>(payload, address)?)),
        libc::AF_INET6 => Ipv6Addr::from(bytes_at::<16>(payload, address)?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// The fields of struct tcp_info that are used; 0 where the kernel's is shorter.
struct TcpInfo {
    rtt_us: u32,
    unacked: u32,
    bytes_acked: u64,
    bytes_received: u64,
    unsent: u32,
    silent_ms: u32,
}

impl TcpInfo {
    fn read(info: &[u8]) -> Self {
        let long = |offset| u64_at(info, offset).unwrap_or_default();
        let short = |offset| u32_at(info, offset).unwrap_or_default();
        TcpInfo {
            unacked: short(24),
            silent_ms: short(52),
            rtt_us: short(68),
            bytes_acked: long(120),
            bytes_received: long(128),
            unsent: short(144),
        }
    }
}

const FLAG_MCAP_REM: u32 = 1 << 0;
const FLAG_MCAP_LOC: u32 = 1 << 1;
const FLAG_JOIN_REM: u32 = 1 << 2;
const FLAG_JOIN_LOC: u32 = 1 << 3;
const FLAG_BKUP_REM: u32 = 1 << 4;
const FLAG_BKUP_LOC: u32 = 1 << 5;
const FLAG_CONNECTED: u32 = 1 << 7;

/// What MPTCP says about a subflow (MPTCP_SUBFLOW_ATTR_*, within INET_ULP_INFO_MPTCP).
#[derive(Default)]
struct Ulp {
    token: u32,
    flags: u32,
    local_id: u8,
    remote_id: u8,
}

impl Ulp {
    fn read(ulp: &[u8]) -> Option<Self> {
        const INFO_MPTCP: u16 = 3;
        const TOKEN_LOC: u16 = 2;
        const FLAGS: u16 = 8;
        const ID_REM: u16 = 9;
        const ID_LOC: u16 = 10;

        let subflow = attribute(ulp, INFO_MPTCP)?;
        let byte = |kind| attribute(subflow, kind).and_then(|value| value.first().copied()).unwrap_or_default();
        Some(Ulp {
            token: u32_at(attribute(subflow, TOKEN_LOC)?, 0)?,
            flags: u32_at(attribute(subflow, FLAGS)?, 0)?,
            local_id: byte(ID_LOC),
            remote_id: byte(ID_REM),
        })
    }

    /// The peer answered MPTCP with MPTCP.
    fn agreed(&self) -> bool {
        self.flags & (FLAG_MCAP_REM | FLAG_JOIN_REM) != 0
    }

    /// A subflow, or about to be one: a fallback is known once the handshake is over.
    fn is_mptcp(&self, state: u8) -> bool {
        self.agreed() || state == SYN_SENT || self.flags & FLAG_CONNECTED == 0 && state != ESTABLISHED
    }

    fn initial(&self) -> bool {
        self.flags & (FLAG_JOIN_REM | FLAG_JOIN_LOC) == 0
    }
}

#[cfg(test)]
mod tests;
