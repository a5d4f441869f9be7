//! The kernel's WireGuard, over generic netlink (linux/wireguard.h), by hand: two commands of it are used.
//!
//! ```text
//! netlink header, 16 | command, version 1, 0, 0 | attributes {length u16, kind u16, value}, on multiples of four
//! ```

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
};

use netlink_packet_core::{NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};
use nix::libc;

const HEADER: usize = 16;
/// Of generic netlink, behind the header.
const COMMAND: usize = 4;

const GET_DEVICE: u8 = 0;
const SET_DEVICE: u8 = 1;
// Attributes of a device, of a peer, and of an address that a peer may use.
const DEVICE_NAME: u16 = 2;
const DEVICE_PRIVATE_KEY: u16 = 3;
const DEVICE_PUBLIC_KEY: u16 = 4;
const DEVICE_LISTEN_PORT: u16 = 6;
const DEVICE_PEERS: u16 = 8;
const PEER_PUBLIC_KEY: u16 = 1;
const PEER_FLAGS: u16 = 3;
const PEER_ENDPOINT: u16 = 4;
const PEER_KEEPALIVE: u16 = 5;
const PEER_LAST_HANDSHAKE: u16 = 6;
const PEER_ALLOWED: u16 = 9;
const ALLOWED_FAMILY: u16 = 1;
const ALLOWED_ADDRESS: u16 = 2;
const ALLOWED_LENGTH: u16 = 3;

const REMOVE: u32 = 1;
/// A peer is sent something so often, in seconds, or its session would end and the next frame wait for another.
const KEEPALIVE: u16 = 20;

pub(super) type Key = [u8; 32];

/// A device as the kernel describes it. It may take several messages for its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Public.
    pub(super) key: Key,
    pub(super) port: u16,
    /// Public keys.
    pub(super) peers: Vec<Key>,
    /// Of those with whom it has shaken hands since they were added.
    pub(super) met: Vec<Key>,
}

/// An open socket.
pub(super) struct Kernel {
    socket: Socket,
    family: u16,
}

impl Kernel {
    /// `None` where the kernel has no WireGuard and no module for it, which it looks for.
    pub(super) fn open() -> io::Result<Option<Kernel>> {
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut kernel = Kernel { socket, family: libc::GENL_ID_CTRL as u16 };
        let mut request = Vec::new();
        attribute(&mut request, libc::CTRL_ATTR_FAMILY_NAME as u16, b"wireguard\0");
        let answers = match kernel.ask(libc::CTRL_CMD_GETFAMILY as u8, 0, &request) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            answers => answers?,
        };
        let found = answers.iter().find_map(|answer| {
            let mut all = attributes(answer.get(COMMAND..)?);
            let (_, id) = all.find(|(kind, _)| *kind == libc::CTRL_ATTR_FAMILY_ID as u16)?;
            Some(u16::from_ne_bytes(id.try_into().ok()?))
        });
        kernel.family = found.ok_or_else(|| io::Error::other("the kernel gave no id of WireGuard's"))?;
        Ok(Some(kernel))
    }

    /// A device that is there.
    pub(super) fn device(&self, name: &str) -> io::Result<Device> {
        let mut device = Device::default();
        for answer in self.ask(GET_DEVICE, NLM_F_DUMP, &named(name))? {
            understood(&answer, &mut device);
        }
        Ok(device)
    }

    /// Gives a device its private key and its port.
    pub(super) fn set_up(&self, name: &str, private: &Key, port: u16) -> io::Result<()> {
        let mut request = named(name);
        attribute(&mut request, DEVICE_PRIVATE_KEY, private);
        attribute(&mut request, DEVICE_LISTEN_PORT, &port.to_ne_bytes());
        self.ask(SET_DEVICE, 0, &request).map(drop)
    }

    /// Sets the port alone.
    pub(super) fn set_port(&self, name: &str, port: u16) -> io::Result<()> {
        let mut request = named(name);
        attribute(&mut request, DEVICE_LISTEN_PORT, &port.to_ne_bytes());
        self.ask(SET_DEVICE, 0, &request).map(drop)
    }

    /// A peer at `endpoint` that may use one address inside.
    pub(super) fn set_peer(&self, name: &str, key: &Key, endpoint: (IpAddr, u16), inside: Ipv6Addr) -> io::Result<()> {
        let mut request = named(name);
        nest(&mut request, DEVICE_PEERS, |peers| {
            nest(peers, 0, |peer| {
                attribute(peer, PEER_PUBLIC_KEY, key);
                attribute(peer, PEER_ENDPOINT, &socket_address(endpoint));
                attribute(peer, PEER_KEEPALIVE, &KEEPALIVE.to_ne_bytes());
                nest(peer, PEER_ALLOWED, |allowed| {
                    nest(allowed, 0, |one| {
                        attribute(one, ALLOWED_FAMILY, &(libc::AF_INET6 as u16).to_ne_bytes());
                        attribute(one, ALLOWED_ADDRESS, &inside.octets());
                        attribute(one, ALLOWED_LENGTH, &[128]);
                    });
                });
            });
        });
        self.ask(SET_DEVICE, 0, &request).map(drop)
    }

    /// Gone already is success.
    pub(super) fn remove_peer(&self, name: &str, key: &Key) -> io::Result<()> {
        let mut request = named(name);
        nest(&mut request, DEVICE_PEERS, |peers| {
            nest(peers, 0, |peer| {
                attribute(peer, PEER_PUBLIC_KEY, key);
                attribute(peer, PEER_FLAGS, &REMOVE.to_ne_bytes());
            });
        });
        self.ask(SET_DEVICE, 0, &request).map(drop)
    }

    /// The answers, without their netlink headers. The kernel does the work inside `send`.
    fn ask(&self, command: u8, flags: u16, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let length = HEADER + COMMAND + attributes.len();
        let mut request = Vec::with_capacity(length);
        request.extend((length as u32).to_ne_bytes());
        request.extend(self.family.to_ne_bytes());
        request.extend((NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        request.extend([0; 8]); // sequence, port: one request at a time, to the kernel
        request.extend([command, 1, 0, 0]);
        request.extend(attributes);
        self.socket.send(&request, 0)?;
        let mut answers = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            let mut rest = bytes.as_slice();
            while let Some((kind, payload, after)) = message(rest) {
                rest = after;
                match i32::from(kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(answers) };
                    }
                    _ => answers.push(payload.to_vec()),
                }
            }
        }
    }
}

/// The first message's kind and payload, and what comes after it.
fn message(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    let payload = bytes.get(HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// What an answer to [`GET_DEVICE`] says.
pub(crate) fn understood(answer: &[u8], device: &mut Device) {
    for (kind, value) in attributes(answer.get(COMMAND..).unwrap_or_default()) {
        match kind {
            DEVICE_PUBLIC_KEY => device.key = value.try_into().unwrap_or(device.key),
            DEVICE_LISTEN_PORT => device.port = value.try_into().map_or(device.port, u16::from_ne_bytes),
            DEVICE_PEERS => {
                for (_, peer) in attributes(value) {
                    let key = attributes(peer).find(|(kind, _)| *kind == PEER_PUBLIC_KEY);
                    let key = key.and_then(|(_, key)| Key::try_from(key).ok());
                    // A time; zero before there was one.
                    let met =
                        |(kind, at): (u16, &[u8])| kind == PEER_LAST_HANDSHAKE && at.iter().any(|byte| *byte != 0);
                    device.met.extend(key.filter(|_| attributes(peer).any(met)));
                    // One with many addresses comes in pieces.
                    device.peers.extend(key.filter(|key| device.peers.last() != Some(key)));
                }
            }
            _ => {}
        }
    }
}

/// Up to the first that does not fit.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(4..length)?))
    })
}

fn named(device: &str) -> Vec<u8> {
    let mut request = Vec::new();
    attribute(&mut request, DEVICE_NAME, &[device.as_bytes(), &[0]].concat());
    request
}

fn attribute(request: &mut Vec<u8>, kind: u16, value: &[u8]) {
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(request.len().next_multiple_of(4), 0);
}

fn nest(request: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    attribute(request, kind | NLA_F_NESTED, &inner);
}

/// `sockaddr_in` or `sockaddr_in6`.
fn socket_address((address, port): (IpAddr, u16)) -> Vec<u8> {
    let (family, port) = (|family: i32| (family as u16).to_ne_bytes(), port.to_be_bytes());
    match address {
        IpAddr::V4(v4) => [&family(libc::AF_INET)[..], &port, &v4.octets(), &[0; 8]].concat(),
        IpAddr::V6(v6) => [&family(libc::AF_INET6)[..], &port, &[0; 4], &v6.octets(), &[0; 4]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel wrote it, in two messages, with what we do not ask for in between.
    #[test]
    fn a_device_is_put_together_from_its_messages() {
        let mut first = vec![0, 1, 0, 0];
        first.extend(named("lsmw"));
        attribute(&mut first, DEVICE_PRIVATE_KEY, &[9; 32]);
        attribute(&mut first, DEVICE_PUBLIC_KEY, &[1; 32]);
        attribute(&mut first, DEVICE_LISTEN_PORT, &16_520_u16.to_ne_bytes());
        let peer = |key: u8| {
            move |peers: &mut Vec<u8>| {
                nest(peers, 0, |peer| {
                    attribute(peer, PEER_PUBLIC_KEY, &[key; 32]);
                    attribute(peer, PEER_ENDPOINT, &socket_address(([192, 0, 2, 1].into(), 7)));
                    attribute(peer, PEER_LAST_HANDSHAKE, &[if key == 2 { 7 } else { 0 }; 16]);
                });
            }
        };
        nest(&mut first, DEVICE_PEERS, |peers| [2, 3].into_iter().for_each(|key| peer(key)(peers)));
        let mut second = vec![0, 1, 0, 0];
        nest(&mut second, DEVICE_PEERS, |peers| [3, 4].into_iter().for_each(|key| peer(key)(peers)));
        let mut device = Device::default();
        understood(&first, &mut device);
        understood(&second, &mut device);
        let (peers, met) = (vec![[2; 32], [3; 32], [4; 32]], vec![[2; 32]]);
        assert_eq!(device, Device { key: [1; 32], port: 16_520, peers, met });
        for length in 0..first.len() {
            understood(&first[..length], &mut Device::default());
        }
    }
}
