//! Frames made by hand.

use lsm_protocol::Mac;

pub(crate) const BROADCAST: Mac = Mac([0xff; 6]);
const NUMBERED: u16 = 0x88b5; // IEEE 802: for experiments

pub(crate) fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [to.0.as_slice(), &from.0, &kind.to_be_bytes(), payload].concat()
}

/// A frame that carries nothing but a number.
pub(crate) fn numbered(to: Mac, from: Mac, number: u32) -> Vec<u8> {
    ethernet(to, from, NUMBERED, &[number.to_be_bytes().as_slice(), &[0; 56]].concat())
}

pub(crate) fn number(frame: &[u8]) -> Option<u32> {
    let kind = frame.get(12..14)?;
    (kind == NUMBERED.to_be_bytes()).then(|| u32::from_be_bytes(frame[14..18].try_into().unwrap()))
}

pub(crate) fn is(expected: &[u8]) -> impl Fn(&[u8]) -> bool {
    move |frame| frame == expected
}

pub(crate) fn arp_request(from: Mac) -> Vec<u8> {
    let mut payload = vec![0, 1, 8, 0, 6, 4, 0, 1];
    payload.extend(from.0);
    payload.extend([10, 1, 0, 1, 0, 0, 0, 0, 0, 0, 10, 1, 0, 7]);
    payload.resize(46, 0);
    ethernet(BROADCAST, from, 0x0806, &payload)
}

pub(crate) fn icmpv6(to: Mac, from: Mac, kind: u8) -> Vec<u8> {
    let mut payload = ipv6_header(32, 58);
    payload.extend([kind, 0, 0, 0]);
    payload.resize(40 + 32, 0);
    ethernet(to, from, 0x86dd, &payload)
}

/// DHCP by its ports and by whose it is.
pub(crate) fn dhcp_broadcast(from: Mac, source_port: u16, port: u16, whose: Mac) -> Vec<u8> {
    const LENGTH: u16 = 8 + 240;
    let mut payload = ipv4_header(LENGTH + 20, 17, [255; 4]);
    payload.extend([source_port.to_be_bytes(), port.to_be_bytes(), LENGTH.to_be_bytes(), [0, 0]].concat());
    payload.resize(20 + 8 + 28, 0);
    payload.extend(whose.0);
    payload.resize(20 + usize::from(LENGTH), 0);
    ethernet(BROADCAST, from, 0x0800, &payload)
}

/// An IPv4 packet of this size that must not be fragmented.
pub(crate) fn large_v4(to: Mac, from: Mac, size: u16) -> Vec<u8> {
    let mut packet = ipv4_header(size, 253, [10, 1, 0, 7]);
    packet.resize(size.into(), 0x5a);
    ethernet(to, from, 0x0800, &packet)
}

/// An IPv6 packet of this size.
pub(crate) fn large_v6(to: Mac, from: Mac, size: u16) -> Vec<u8> {
    let mut packet = ipv6_header(size - 40, 59);
    packet.resize(size.into(), 0x5a);
    ethernet(to, from, 0x86dd, &packet)
}

/// A TCP super-frame with its virtio-net header: one header, many segments' worth of data, check sum left open.
pub(crate) fn super_frame(to: Mac, from: Mac, data: u16, segment: u16) -> Vec<u8> {
    let mut packet = ipv4_header(40 + data, 6, [10, 1, 0, 7]);
    let mut tcp = vec![0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    // The pseudo header's sum stands where the check sum will come.
    let pseudo = sum(&[&packet[12..20], &[0, 6], &(20 + data).to_be_bytes()].concat());
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    packet.extend(tcp);
    packet.extend((0..data).map(|i| i as u8));
    let mut header = vec![1, 1]; // needs a check sum; TCP over IPv4
    for field in [54, segment, 34, 16] {
        header.extend(field.to_ne_bytes());
    }
    [header, ethernet(to, from, 0x0800, &packet)].concat()
}

fn ipv4_header(size: u16, protocol: u8, to: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(size.to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 1]);
    header.extend(to);
    let sum = !sum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ipv6_header(payload: u16, next: u8) -> Vec<u8> {
    let mut header = vec![0x60, 0, 0, 0];
    header.extend(payload.to_be_bytes());
    header.extend([next, 255]);
    for end in [1, 7] {
        header.extend([0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]);
    }
    header
}

/// The Internet check sum before it is complemented.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Whether the TCP check sum of an IPv4 frame is right.
pub(crate) fn tcp_sum_is_right(frame: &[u8]) -> bool {
    let packet = &frame[14..];
    let size = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let tcp = &packet[20..size];
    let mut all = [&packet[12..20], &[0, 6], &(tcp.len() as u16).to_be_bytes(), tcp].concat();
    all.resize(all.len().next_multiple_of(2), 0);
    sum(&all) == 0xffff
}
