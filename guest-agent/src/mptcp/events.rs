//! What the path manager tells about connections, as it happens. Wake-ups, not the truth: that is a dump.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_sys::Socket;
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

use super::{GENL_HEADER, resolve};
use crate::{
    netlink::{self, Cause, Channel, Error, attributes, bytes_at, u16_at, u32_at},
    raw::watch,
};

/// Room for the events of some 10,000 subflows at about 400 bytes of kernel memory each; the default overflowed at
/// 1,000 connections.
const RECEIVE_BUFFER: usize = 8 << 20;

/// What happened (linux/mptcp.h, enum mptcp_event_type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Created,
    Established,
    Closed,
    /// The peer announced an address: `remote_id` and `remote`.
    Announced,
    /// The peer withdrew the address `remote_id`.
    Removed,
    SubflowEstablished,
    /// `error` says why: 111 the peer refused, 113 unreachable.
    SubflowClosed,
    SubflowPriority,
    /// A listener that the kernel opened for an announced port: `local`.
    ListenerCreated,
    ListenerClosed,
    /// One of a later kernel.
    Other(u8),
}

/// One event. A field is `None` where the kernel did not tell; which ones it tells depends on the kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    /// Local token of the connection; 0 for listeners.
    pub token: u32,
    pub local: Option<SocketAddr>,
    pub remote: Option<SocketAddr>,
    pub local_id: Option<u8>,
    pub remote_id: Option<u8>,
    /// Whether the subflow is in backup, for either side.
    pub backup: Option<bool>,
    /// An errno, positive.
    pub error: Option<u8>,
    pub ifindex: Option<u32>,
    /// Whether the peer opened the connection.
    pub server_side: Option<bool>,
}

/// What the stream of events gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    Event(Event),
    /// Events were lost for want of room: dump.
    Overrun,
}

/// The stream of events of one network namespace.
pub struct Events {
    socket: AsyncFd<Socket>,
    family: u16,
    buffer: Vec<u8>,
    pending: VecDeque<Notice>,
}

impl Events {
    /// Subscribes; what happens from now on is kept until it is read. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no MPTCP or CAP_NET_ADMIN is missing.
    pub fn open() -> Result<Self, Error> {
        Events::with_room(RECEIVE_BUFFER)
    }

    /// The same with a receive buffer of `bytes`, or the least that the kernel gives.
    ///
    /// # Errors
    /// As [`Events::open`].
    pub fn with_room(bytes: usize) -> Result<Self, Error> {
        let open = || {
            let family = resolve(&mut Channel::open(libc::NETLINK_GENERIC)?)?;
            let socket = netlink::socket(libc::NETLINK_GENERIC)?;
            netlink::set_receive_buffer(&socket, bytes)?;
            socket.set_non_blocking(true)?;
            socket.add_membership(family.events)?;
            let socket = watch(socket, Interest::READABLE)?;
            Ok(Events { socket, family: family.id, buffer: Vec::new(), pending: VecDeque::new() })
        };
        open().map_err(|cause: Cause| Error::new("subscribe to MPTCP events", cause))
    }

    /// The next event, when there is one. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Notice, Error> {
        loop {
            if let Some(notice) = self.pending.pop_front() {
                return Ok(notice);
            }
            let received = async {
                loop {
                    let mut guard = self.socket.readable().await?;
                    if let Ok(result) = guard.try_io(|socket| netlink::receive(socket.get_ref(), &mut self.buffer)) {
                        return result;
                    }
                }
            };
            match received.await {
                Ok(()) => self.pending.extend(read(&self.buffer, self.family).map(Notice::Event)),
                Err(error) if overrun(&error) => return Ok(Notice::Overrun),
                Err(error) => return Err(Error::new("receive MPTCP events", error)),
            }
        }
    }
}

/// ENOBUFS, or a datagram larger than any event of today: something was lost.
fn overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOBUFS) || error.kind() == io::ErrorKind::InvalidData
}

pub(crate) fn read(datagram: &[u8], family: u16) -> impl Iterator<Item = Event> {
    netlink::messages(datagram)
        .map_while(Result::ok)
        .filter(move |message| message.kind == family)
        .filter_map(|message| read_event(message.payload))
}

fn read_event(payload: &[u8]) -> Option<Event> {
    const TOKEN: u16 = 1;
    const LOC_ID: u16 = 3;
    const REM_ID: u16 = 4;
    const SADDR4: u16 = 5;
    const SADDR6: u16 = 6;
    const DADDR4: u16 = 7;
    const DADDR6: u16 = 8;
    const SPORT: u16 = 9;
    const DPORT: u16 = 10;
    const BACKUP: u16 = 11;
    const ERROR: u16 = 12;
    const FLAGS: u16 = 13;
    const IF_IDX: u16 = 15;
    const SERVER_SIDE: u16 = 18;
    /// In FLAGS, of kernels that are about to drop SERVER_SIDE.
    const FLAG_SERVER_SIDE: u16 = 1 << 1;

    let kind = match *payload.first()? {
        1 => EventKind::Created,
        2 => EventKind::Established,
        3 => EventKind::Closed,
        6 => EventKind::Announced,
        7 => EventKind::Removed,
        10 => EventKind::SubflowEstablished,
        11 => EventKind::SubflowClosed,
        13 => EventKind::SubflowPriority,
        15 => EventKind::ListenerCreated,
        16 => EventKind::ListenerClosed,
        other => EventKind::Other(other),
    };
    let v4 = |value| Some(IpAddr::from(Ipv4Addr::from(bytes_at::<4>(value, 0)?)));
    let v6 = |value| Some(Ipv6Addr::from(bytes_at::<16>(value, 0)?).to_canonical());
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port) = (0, 0);
    let mut event = Event {
        kind,
        token: 0,
        local: None,
        remote: None,
        local_id: None,
        remote_id: None,
        backup: None,
        error: None,
        ifindex: None,
        server_side: None,
    };
    for (attribute, value) in attributes(payload.get(GENL_HEADER..)?) {
        match attribute {
            TOKEN => event.token = u32_at(value, 0)?,
            LOC_ID => event.local_id = Some(*value.first()?),
            REM_ID => event.remote_id = Some(*value.first()?),
            SADDR4 => source = Some(v4(value)?),
            SADDR6 => source = Some(v6(value)?),
            DADDR4 => destination = Some(v4(value)?),
            DADDR6 => destination = Some(v6(value)?),
            SPORT => source_port = u16::from_be_bytes(bytes_at(value, 0)?),
            DPORT => destination_port = u16::from_be_bytes(bytes_at(value, 0)?),
            BACKUP => event.backup = Some(*value.first()? != 0),
            ERROR => event.error = Some(*value.first()?),
            FLAGS if u16_at(value, 0)? & FLAG_SERVER_SIDE != 0 => event.server_side = Some(true),
            IF_IDX => event.ifindex = Some(u32_at(value, 0)?),
            SERVER_SIDE => event.server_side = Some(*value.first()? != 0),
            _ => {}
        }
    }
    event.local = source.map(|address| SocketAddr::new(address, source_port));
    event.remote = destination.map(|address| SocketAddr::new(address, destination_port));
    Some(event)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{HEADER, Message};

    #[test]
    fn an_event_is_read_and_any_cut_of_it_is_harmless() {
        let bytes = Message::new(33, 0)
            .raw(&[11, 1, 0, 0])
            .attribute(1, &0xdead_beef_u32.to_ne_bytes())
            .attribute(5, &[192, 0, 2, 1])
            .attribute(7, &[192, 0, 2, 9])
            .attribute(9, &80u16.to_be_bytes())
            .attribute(10, &5000u16.to_be_bytes())
            .attribute(11, &[1])
            .attribute(12, &[111])
            .attribute(77, &[0; 5])
            .attribute(15, &4u32.to_ne_bytes())
            .seal(0);
        let event = read(&bytes, 33).next().unwrap();
        assert_eq!(event.kind, EventKind::SubflowClosed);
        assert_eq!(event.token, 0xdead_beef);
        assert_eq!(event.local, Some("192.0.2.1:80".parse().unwrap()));
        assert_eq!(event.remote, Some("192.0.2.9:5000".parse().unwrap()));
        assert_eq!((event.backup, event.error, event.ifindex), (Some(true), Some(111), Some(4)));
        assert_eq!(read(&bytes, 34).count(), 0, "another family's message");
        for length in 0..bytes.len() {
            assert_eq!(read(&bytes[..length], 33).count(), 0);
            assert_ne!(read_event(&bytes[HEADER..][..length.min(bytes.len() - HEADER - 8)]), Some(event.clone()));
        }
        for kind in 0..20 {
            let _ = read_event(
                &[&[kind, 1, 0, 0], &Message::new(0, 0).attribute(kind.into(), &[]).seal(0)[HEADER..]].concat(),
            );
        }
    }
}
