//! Neighbour discovery of IPv6, as far as it is asked and told here: solicitation and advertisement (RFC 4861, 4.3, 4.4).

use std::{
    io,
    net::{Ipv6Addr, SocketAddrV6},
};

use lsm_protocol::Mac;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::interface_name;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
/// RFC 4861: whatever arrives with less came from another link.
const HOP_LIMIT: u32 = 255;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);

/// A socket that asks for `target`, and where to send the question.
pub(super) fn socket(ifindex: u32, source: Ipv6Addr, target: Ipv6Addr) -> io::Result<(Socket, SockAddr)> {
    let [.., a, b, c] = target.octets();
    let low = u16::from_be_bytes([b, c]);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low);
    open(ifindex, source, solicited)
}

/// A socket that speaks to all nodes of the link, and their address.
pub(super) fn socket_to_all_nodes(ifindex: u32, source: Ipv6Addr) -> io::Result<(Socket, SockAddr)> {
    open(ifindex, source, ALL_NODES)
}

/// The same to all routers, from whichever address the card has for it; it hears what they say.
pub(super) fn socket_to_all_routers(ifindex: u32) -> io::Result<(Socket, SockAddr)> {
    open(ifindex, Ipv6Addr::UNSPECIFIED, ALL_ROUTERS)
}

pub(super) fn solicitation(mac: Mac, target: Ipv6Addr) -> Vec<u8> {
    message(SOLICITATION, 0, target, OPTION_SOURCE, mac)
}

pub(super) fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    message(ADVERTISEMENT, OVERRIDE, address, OPTION_TARGET, mac)
}

/// The MAC in an advertisement of `target`. An answer may leave it out only where the asker knows it already.
pub(crate) fn read_advertisement(bytes: &[u8], target: Ipv6Addr) -> Option<Mac> {
    let (head, mut options) = bytes.split_at_checked(24)?;
    (head[..2] == [ADVERTISEMENT, 0] && head[8..] == target.octets()).then_some(())?;
    loop {
        let length = usize::from(*options.get(1)?) * 8;
        let option = options.get(..length)?;
        if *option.first()? == OPTION_TARGET {
            return option.get(2..8)?.try_into().ok().map(Mac);
        }
        options = &options[length..];
    }
}

fn open(ifindex: u32, source: Ipv6Addr, to: Ipv6Addr) -> io::Result<(Socket, SockAddr)> {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_nonblocking(true)?;
    socket.bind_device(Some(interface_name(ifindex)?.as_bytes()))?;
    socket.set_multicast_if_v6(ifindex)?;
    socket.set_multicast_hops_v6(HOP_LIMIT)?;
    socket.bind(&SocketAddrV6::new(source, 0, 0, ifindex).into())?;
    Ok((socket, SocketAddrV6::new(to, 0, 0, ifindex).into()))
}

/// {type, code, check sum, flags and reserved, target, option {kind, length in eights, MAC}}; the kernel adds the sum.
fn message(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    bytes.extend_from_slice(&target.octets());
    bytes.extend_from_slice(&[option, 1]);
    bytes.extend_from_slice(&mac.0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_is_read_and_any_cut_of_it_is_none() {
        let target: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let bytes = advertisement(mac, target);
        assert_eq!(read_advertisement(&bytes, target), Some(mac));
        assert_eq!(read_advertisement(&bytes, ALL_NODES), None);
        assert_eq!(read_advertisement(&solicitation(mac, target), target), None);
        for length in 0..bytes.len() {
            assert_eq!(read_advertisement(&bytes[..length], target), None);
        }
        let empty_option = [&bytes[..24], &[14, 0, 0, 0]].concat();
        assert_eq!(read_advertisement(&empty_option, target), None);
    }
}
