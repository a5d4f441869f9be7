//! One captured frame, read from the first bytes of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::traffic::Nanos;

/// An Ethernet address as it is on the wire.
pub type Mac = [u8; 6];

/// TCP's flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// When the kernel saw it on the interface.
    pub at: Nanos,
    /// Index of the interface in its namespace.
    pub interface: u32,
    /// Whether it left by the interface. On a tap this is towards the VM.
    pub outgoing: bool,
    pub source: Mac,
    pub destination: Mac,
    pub packet: Packet,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    Tcp(Segment),
    Udp(Datagram),
    Arp(Arp),
    Icmpv6(Icmpv6),
    /// Anything else, by its EtherType.
    Other(u16),
}

/// ICMPv6, behind hop-by-hop options or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmpv6 {
    /// Its type: 133 asks for routers, 135 and 136 are neighbour discovery.
    pub kind: u8,
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
}

/// ARP or RARP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arp {
    pub reverse: bool,
    pub operation: u16,
    pub sender: Mac,
    pub sender_address: Ipv4Addr,
    pub target: Mac,
    pub target_address: Ipv4Addr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// IPv4's identification.
    pub id: Option<u16>,
    pub sequence: u32,
    /// Meaningful with the flag ACK.
    pub acknowledgement: u32,
    pub flags: u8,
    /// Payload in bytes. More than the MTU where the kernel left the cutting to the card.
    pub payload: u32,
    /// TCP's header with its options, in bytes.
    pub header: u32,
    pub mptcp: Multipath,
}

impl Segment {
    /// The sequence number after its last byte.
    pub fn end(&self) -> u32 {
        self.sequence.wrapping_add(self.payload)
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The IP packet's length in bytes, if its own header has no options.
    pub fn packet(&self) -> u32 {
        let ip = if self.source.is_ipv4() { 20 } else { 40 };
        ip + self.header + self.payload
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub id: Option<u16>,
    pub payload: u32,
    /// The first bytes of the payload, up to 24.
    pub head: Vec<u8>,
}

/// MPTCP's options of one segment (RFC 8684, section 3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Multipath {
    /// A bit for each [`Subtype`].
    subtypes: u16,
    /// DSS: the connection's acknowledgement, of 32 or 64 bits.
    pub data_ack: Option<u64>,
    /// DSS: the connection's sequence number of the payload, of 32 or 64 bits.
    pub data_sequence: Option<u64>,
    /// The B flag of MP_JOIN or MP_PRIO.
    pub backup: Option<bool>,
    /// MP_JOIN on a SYN: the receiver's token.
    pub token: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Subtype {
    Capable = 0,
    Join = 1,
    Dss = 2,
    AddAddress = 3,
    RemoveAddress = 4,
    Priority = 5,
    Fail = 6,
    FastClose = 7,
    Reset = 8,
}

impl Multipath {
    pub fn has(self, subtype: Subtype) -> bool {
        self.subtypes & 1 << subtype as u8 != 0
    }

    /// Whether there is any MPTCP option at all.
    pub fn is_present(self) -> bool {
        self.subtypes != 0
    }

    fn read(mut options: &[u8], syn: bool) -> Self {
        let mut found = Self::default();
        while let [kind, rest @ ..] = options {
            match (kind, rest) {
                (0, _) => break,
                (1, _) => options = rest,
                (_, [length, ..]) if *length >= 2 && usize::from(*length) <= options.len() => {
                    let (option, after) = options.split_at(usize::from(*length));
                    if *kind == 30 && option.len() >= 3 {
                        found.note(option, syn);
                    }
                    options = after;
                }
                _ => break,
            }
        }
        found
    }

    fn note(&mut self, option: &[u8], syn: bool) {
        let subtype = option[2] >> 4;
        self.subtypes |= 1 << subtype;
        match subtype {
            1 if syn => {
                self.backup = Some(option[2] & 1 != 0);
                // Only the first SYN (12 bytes) has the token; the answer has a code in its place.
                self.token = (option.len() == 12).then(|| number(option, 4, 4) as u32);
            }
            2 if option.len() >= 4 => {
                let flags = option[3];
                let mut at = 4;
                for (present, long, place) in [(1, 2, &mut self.data_ack), (4, 8, &mut self.data_sequence)] {
                    let length = if flags & long != 0 { 8 } else { 4 };
                    if flags & present != 0 && option.len() >= at + length {
                        *place = Some(number(option, at, length));
                        at += length;
                    }
                }
            }
            5 => self.backup = Some(option[2] & 1 != 0),
            _ => {}
        }
    }
}

/// The frame that `bytes` begin; anything malformed is none, and so are fragments but the first.
pub(super) fn read(bytes: &[u8], at: Nanos, interface: u32, outgoing: bool) -> Option<Frame> {
    let destination = mac(bytes, 0)?;
    let source = mac(bytes, 6)?;
    let kind = bytes.get(12..14).map(|kind| number(kind, 0, 2))?;
    let body = bytes.get(14..)?;
    let packet = match kind {
        0x0800 => v4(body)?,
        0x86dd => v6(body)?,
        0x0806 | 0x8035 => Packet::Arp(arp(body, kind == 0x8035)?),
        other => Packet::Other(other as u16),
    };
    Some(Frame { at, interface, outgoing, source, destination, packet })
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn mac(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..at + 6)?.try_into().ok()
}

fn v4_address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?.into())
}

fn arp(body: &[u8], reverse: bool) -> Option<Arp> {
    Some(Arp {
        reverse,
        operation: number(body.get(..8)?, 6, 2) as u16,
        sender: mac(body, 8)?,
        sender_address: v4_address(body, 14)?,
        target: mac(body, 18)?,
        target_address: v4_address(body, 24)?,
    })
}

fn v4(body: &[u8]) -> Option<Packet> {
    let header = usize::from(body.first()? & 15) * 4;
    if body.len() < 20 || header < 20 {
        return None;
    }
    let addresses = (v4_address(body, 12)?.into(), v4_address(body, 16)?.into());
    let length = (number(body, 2, 2) as usize).checked_sub(header)?;
    let fragment = number(body, 6, 2) & 0x1fff;
    if fragment != 0 {
        return None;
    }
    transport(body[9], body.get(header..)?, length, addresses, Some(number(body, 4, 2) as u16))
}

fn v6(body: &[u8]) -> Option<Packet> {
    let address = |at: usize| -> Option<IpAddr> {
        Some(Ipv6Addr::from(<[u8; 16]>::try_from(body.get(at..at + 16)?).ok()?).into())
    };
    let addresses = (address(8)?, address(24)?);
    let behind_options = |at: usize| match body.get(at)? {
        0 => Some((*body.get(40)?, 48 + 8 * usize::from(*body.get(41)?))),
        next => Some((*next, 40)),
    };
    if let (58, at) = behind_options(6)?
        && let (IpAddr::V6(source), IpAddr::V6(destination)) = addresses
    {
        return Some(Packet::Icmpv6(Icmpv6 { kind: *body.get(at)?, source, destination }));
    }
    transport(body[6], body.get(40..)?, number(body, 4, 2) as usize, addresses, None)
}

fn transport(
    protocol: u8,
    body: &[u8],
    length: usize,
    (from, to): (IpAddr, IpAddr),
    id: Option<u16>,
) -> Option<Packet> {
    let port = |at: usize| body.get(at..at + 2).map(|port| number(port, 0, 2) as u16);
    let source = SocketAddr::new(from, port(0)?);
    let destination = SocketAddr::new(to, port(2)?);
    match protocol {
        6 => {
            let fixed = body.get(..20)?;
            let header = usize::from(fixed[12] >> 4) * 4;
            let flags = fixed[13];
            Some(Packet::Tcp(Segment {
                source,
                destination,
                id,
                sequence: number(fixed, 4, 4) as u32,
                acknowledgement: number(fixed, 8, 4) as u32,
                flags,
                payload: length.checked_sub(header)? as u32,
                header: header as u32,
                mptcp: Multipath::read(body.get(20..header.min(body.len()))?, flags & SYN != 0),
            }))
        }
        17 => {
            let payload = body.get(8..)?;
            Some(Packet::Udp(Datagram {
                source,
                destination,
                id,
                payload: length.checked_sub(8)? as u32,
                head: payload[..payload.len().min(24)].to_vec(),
            }))
        }
        _ => Some(Packet::Other(if from.is_ipv4() { 0x0800 } else { 0x86dd })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.chars().filter_map(|digit| digit.to_digit(16)).map(|digit| digit as u8).collect();
        digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    const ETHERNET: &str = "525400aa0001 525400bb0002 0800";

    #[test]
    fn a_join_is_read() {
        // 10.9.0.2:40000 to 10.2.0.10:5001, SYN, MP_JOIN with the backup flag and a token.
        let frame = format!(
            "{ETHERNET} 4500003c 1234 4000 4006 0000 0a090002 0a02000a
             9c40 1389 00000064 00000000 a002 fff0 0000 0000
             0204 05b4 0101 1e0c 1102 c5bc3ffc deadbeef 01010101"
        );
        let frame = read(&bytes(&frame), 7, 3, true).unwrap();
        assert_eq!((frame.at, frame.interface, frame.outgoing), (7, 3, true));
        let Packet::Tcp(segment) = frame.packet else { panic!("not TCP") };
        assert_eq!(segment.source, ([10, 9, 0, 2], 40_000).into());
        assert_eq!(segment.destination, ([10, 2, 0, 10], 5_001).into());
        assert_eq!((segment.sequence, segment.payload, segment.id), (100, 0, Some(0x1234)));
        assert!(segment.mptcp.has(Subtype::Join) && !segment.mptcp.has(Subtype::Dss));
        assert_eq!((segment.mptcp.backup, segment.mptcp.token), (Some(true), Some(0xc5bc_3ffc)));
    }

    #[test]
    fn data_sequence_and_acknowledgement_are_read() {
        // DSS with 4-byte data ACK and 8-byte sequence, 200 bytes of payload (cut off), MP_PRIO after it.
        let frame = format!(
            "{ETHERNET} 450000{:02x} 0001 4000 4006 0000 0a02000a 0a090002
             1389 9c40 00000064 000000c8 d018 fff0 0000 0000
             1e16 200d aabbccdd 1122334455667788 00000001 00c8 0101 1e04 5101 01010101",
            20 + 52 + 100,
        );
        let Packet::Tcp(segment) = read(&bytes(&frame), 0, 1, false).unwrap().packet else { panic!("not TCP") };
        assert_eq!(segment.payload, 100);
        assert_eq!(segment.end(), 200);
        assert!(segment.mptcp.has(Subtype::Dss) && segment.mptcp.has(Subtype::Priority));
        assert_eq!(segment.mptcp.data_ack, Some(0xaabb_ccdd));
        assert_eq!(segment.mptcp.data_sequence, Some(0x1122_3344_5566_7788));
        assert_eq!(segment.mptcp.backup, Some(true));
    }

    #[test]
    fn a_reverse_arp_is_read() {
        // What QEMU announces a moved VM with.
        let mac = "525400aa0001";
        let frame = format!("ffffffffffff {mac} 8035 0001 0800 06 04 0003 {mac} 00000000 {mac} 00000000");
        let Packet::Arp(arp) = read(&bytes(&frame), 0, 1, false).unwrap().packet else { panic!("not ARP") };
        assert!(arp.reverse);
        assert_eq!((arp.operation, arp.sender[5]), (3, 1));
    }

    #[test]
    fn a_report_of_groups_is_read_behind_its_options() {
        let fe80 = "fe80 0000 0000 0000 5054 00ff feaa 0002";
        let head =
            format!("333300000016 525400aa0002 86dd 60000000 0024 00 01 {fe80} ff02 000000000000 000000000000 0016");
        let frame = format!("{head} 3a00 0502 0000 0100 8f00 0000 0000 0001");
        let Packet::Icmpv6(report) = read(&bytes(&frame), 0, 1, false).unwrap().packet else { panic!("not ICMPv6") };
        assert_eq!(report.kind, 143);
        assert_eq!(report.source, "fe80::5054:ff:feaa:2".parse::<Ipv6Addr>().unwrap());
        assert_eq!(report.destination, "ff02::16".parse::<Ipv6Addr>().unwrap());
    }

    #[test]
    fn cut_or_malformed_frames_are_none() {
        let frame = bytes(&format!(
            "{ETHERNET} 4500003c 1234 4000 4006 0000 0a090002 0a02000a 9c40 1389 00000064 00000000 5002 fff0 0000 0000"
        ));
        assert!(read(&frame, 0, 1, false).is_some());
        for length in 0..frame.len() {
            assert_eq!(read(&frame[..length], 0, 1, false), None, "{length} bytes");
        }
        let mut options = frame.clone();
        options[46] = 0xf0;
        options.extend([30, 0, 30, 1, 30]);
        let _ = read(&options, 0, 1, false);
    }
}
