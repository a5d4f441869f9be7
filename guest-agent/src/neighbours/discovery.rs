//! Neighbour discovery of IPv6, as far as it is asked and told here: solicitation and advertisement (RFC 4861, 4.3, 4.4).
//!
//! In whole frames, as ARP is: a socket of IPv6 itself would be the only one that the agent has of the Internet's families.

use std::{io, net::Ipv6Addr};

use lsm_protocol::Mac;
use nix::{ifaddrs::getifaddrs, libc};
use socket2::{SockFilter, Socket};

use super::{interface_name, packet_socket};
use crate::checksum::checksum;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const ICMPV6: u8 = 58;
/// RFC 4861: whatever arrives with less came from another link.
const HOP_LIMIT: u8 = 255;
const OVERRIDE: u8 = 0x20;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// A socket that hears what neighbours and routers advertise on one card.
pub(super) fn socket(ifindex: u32) -> io::Result<Socket> {
    // Opcodes of linux/filter.h.
    const LOAD_BYTE: u16 = 0x30;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let icmpv6 = (ETHERNET + 6) as u32;
    let kind = (ETHERNET + IPV6) as u32;
    let socket = packet_socket(ifindex, libc::ETH_P_IPV6 as u16)?;
    // Only to be woken less often: what is read is looked at anyway.
    socket.attach_filter(&[
        SockFilter::new(LOAD_BYTE, 0, 0, icmpv6),
        SockFilter::new(JUMP_IF_EQUAL, 0, 4, ICMPV6.into()),
        SockFilter::new(LOAD_BYTE, 0, 0, kind),
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, ROUTER_ADVERTISEMENT.into()),
        SockFilter::new(JUMP_IF_EQUAL, 0, 1, ADVERTISEMENT.into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ])?;
    Ok(socket)
}

/// Who has `target`?
pub(super) fn solicitation(mac: Mac, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = target.octets();
    let low = u16::from_be_bytes([b, c]);
    let solicited = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), low);
    frame((mac, source), solicited, about(SOLICITATION, 0, target, OPTION_SOURCE, mac))
}

/// `address` is at `mac`, whoever said otherwise.
pub(super) fn advertisement(mac: Mac, address: Ipv6Addr) -> Vec<u8> {
    frame((mac, address), ALL_NODES, about(ADVERTISEMENT, OVERRIDE, address, OPTION_TARGET, mac))
}

/// Which routers are there? Without our link-layer address, which an optimistic address must not bring with it (RFC 4429,
/// 3.2): the router asks. `None` while the card has no link-local address.
pub(super) fn router_solicitation(ifindex: u32, mac: Mac) -> io::Result<Option<Vec<u8>>> {
    let name = interface_name(ifindex)?;
    let mut own = getifaddrs()?.filter(|one| one.interface_name.as_bytes() == name.as_bytes());
    let source = own.find_map(|one| {
        let address = one.address?.as_sockaddr_in6()?.ip();
        address.is_unicast_link_local().then_some(address)
    });
    Ok(source.map(|source| frame((mac, source), ALL_ROUTERS, vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0])))
}

/// What a frame has for a node of this link: the sender, and an ICMPv6 message whose check sum is right.
pub(crate) fn read_frame(frame: &[u8]) -> Option<(Ipv6Addr, &[u8])> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let (header, rest) = packet.split_at_checked(IPV6)?;
    let right = ethernet[12..] == [0x86, 0xdd] && header[0] >> 4 == 6 && header[6] == ICMPV6 && header[7] == HOP_LIMIT;
    right.then_some(())?;
    let message = rest.get(..usize::from(u16::from_be_bytes([header[4], header[5]])))?; // short frames are padded
    let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).ok().map(Ipv6Addr::from);
    let (from, to) = (address(8)?, address(24)?);
    (sum(from, to, message) == 0).then_some((from, message))
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

/// {type, code, check sum, flags and reserved, target, option {kind, length in eights, MAC}}
fn about(kind: u8, flags: u8, target: Ipv6Addr, option: u8, mac: Mac) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    message.extend_from_slice(&target.octets());
    message.extend_from_slice(&[option, 1]);
    message.extend_from_slice(&mac.0);
    message
}

/// Ethernet and IPv6 around a message without its check sum, to a group.
fn frame((mac, from): (Mac, Ipv6Addr), to: Ipv6Addr, mut message: Vec<u8>) -> Vec<u8> {
    let sum = sum(from, to, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let length = (message.len() as u16).to_be_bytes();
    let [.., a, b, c, d] = to.octets();
    // A group's frames go to a group of the link (RFC 2464, 7).
    let ethernet = [&[0x33, 0x33, a, b, c, d][..], &mac.0, &[0x86, 0xdd]].concat();
    let header = [0x60, 0, 0, 0, length[0], length[1], ICMPV6, HOP_LIMIT];
    [&ethernet[..], &header, &from.octets(), &to.octets(), &message].concat()
}

/// The check sum of a message whose own is 0; 0, of one whose own is right (RFC 8200, 8.1).
fn sum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let (from, to, length) = (from.octets(), to.octets(), (message.len() as u32).to_be_bytes());
    checksum(from.iter().chain(&to).chain(&length).chain(&[0, 0, 0, ICMPV6]).chain(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_is_read_and_any_cut_of_it_is_none() {
        let target: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let mac = Mac([2, 0, 0, 0, 0, 9]);
        let frame = advertisement(mac, target);
        let (from, message) = read_frame(&frame).unwrap();
        assert_eq!((from, read_advertisement(message, target)), (target, Some(mac)));
        assert_eq!(read_advertisement(message, ALL_NODES), None);
        let question = solicitation(mac, ALL_NODES, target);
        assert_eq!(read_advertisement(read_frame(&question).unwrap().1, target), None);
        for length in 0..message.len() {
            assert_eq!(read_advertisement(&message[..length], target), None);
        }
        let empty_option = [&message[..24], &[14, 0, 0, 0]].concat();
        assert_eq!(read_advertisement(&empty_option, target), None);
        assert_eq!(read_frame(&[&frame[..], &[7; 18]].concat()), Some((from, message)), "padded");
    }

    #[test]
    fn a_frame_that_is_cut_or_changed_anywhere_that_matters_is_none() {
        let frame = advertisement(Mac([2, 0, 0, 0, 0, 9]), "2001:db8::1".parse().unwrap());
        for length in 0..frame.len() {
            assert_eq!(read_frame(&frame[..length]), None);
        }
        // All but the link's addresses, the traffic class and the flow label.
        for at in [12, 13, 14].into_iter().chain(18..frame.len()) {
            let mut changed = frame.clone();
            changed[at] ^= 0x40;
            assert_eq!(read_frame(&changed), None, "byte {at}");
        }
    }
}
