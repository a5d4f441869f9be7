//! DHCP messages (RFC 2131, RFC 2132) and the frames that carry them before there is an address: Ethernet, IPv4, UDP.
//!
//! What comes from a LAN is anybody's: reading never fails on a length that lies, and asks of a frame only what is used.

use std::net::Ipv4Addr;

use lsm_protocol::Mac;

use crate::checksum::checksum;

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Discover,
    Request,
    Decline,
    Release,
}

/// What a server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Offer,
    Ack,
    Nak,
}

/// A client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub ask: Ask,
    /// Says which answer belongs to which question.
    pub xid: u32,
    pub mac: Mac,
    /// The address that the client has; the server reaches it there.
    pub current: Option<Ipv4Addr>,
    /// The address it wants, or returns.
    pub wanted: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
}

/// A server's message, as far as it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub said: Option<Said>,
    pub xid: u32,
    pub address: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub mask: Option<Ipv4Addr>,
    /// The first of them.
    pub router: Option<Ipv4Addr>,
    /// In seconds, as are the next two.
    pub lease: Option<u32>,
    pub renewal: Option<u32>,
    pub rebinding: Option<u32>,
    /// Why not, in the server's words.
    pub message: Option<String>,
    /// Whose frame it was: the server's, or a relay's.
    pub from: Mac,
}

const CLIENT: u16 = 68;
const SERVER: u16 = 67;
const BROADCAST: Mac = Mac([0xff; 6]);
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Before the options: header, server's name, file's name, magic.
const FIXED: usize = 240;
const ETHERNET: usize = 14;
const UDP: usize = 8;
/// A BOOTP relay may drop what is shorter (RFC 1542, 2.1).
const LEAST: usize = 300;

mod option {
    pub const PAD: u8 = 0;
    pub const MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const WANTED: u8 = 50;
    pub const LEASE: u8 = 51;
    pub const KIND: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const PARAMETERS: u8 = 55;
    pub const MESSAGE: u8 = 56;
    pub const RENEWAL: u8 = 58;
    pub const REBINDING: u8 = 59;
    pub const CLIENT_ID: u8 = 61;
    pub const END: u8 = 255;
}

impl Question {
    /// As a whole Ethernet frame, to everybody or to one machine.
    #[must_use]
    pub fn frame(&self, to: Option<(Mac, Ipv4Addr)>) -> Vec<u8> {
        let (to_mac, to) = to.unwrap_or((BROADCAST, Ipv4Addr::BROADCAST));
        let from = self.current.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let message = self.message();
        let length = (UDP + message.len()) as u16;
        let mut udp = Vec::with_capacity(length.into());
        for word in [CLIENT, SERVER, length, 0] {
            udp.extend(word.to_be_bytes());
        }
        udp.extend(message);
        let pseudo = [&from.octets()[..], &to.octets(), &[0, 17], &length.to_be_bytes()].concat();
        // 0 would mean that there is none (RFC 768).
        let sum = match checksum(pseudo.iter().chain(&udp)) {
            0 => 0xffff,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());

        let mut ip = vec![0x45, 0];
        ip.extend((20 + length).to_be_bytes());
        ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        ip.extend(from.octets());
        ip.extend(to.octets());
        let sum = checksum(ip.iter());
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&to_mac.0[..], &self.mac.0, &[8, 0], &ip, &udp].concat()
    }

    fn message(&self) -> Vec<u8> {
        let mut bytes = vec![1, 1, 6, 0];
        bytes.extend(self.xid.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.current.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
        bytes.resize(28, 0);
        bytes.extend(self.mac.0);
        bytes.resize(FIXED - MAGIC.len(), 0);
        bytes.extend(MAGIC);
        let mut option = |kind: u8, value: &[u8]| {
            bytes.extend([kind, value.len() as u8]);
            bytes.extend(value);
        };
        let kind = match self.ask {
            Ask::Discover => 1,
            Ask::Request => 3,
            Ask::Decline => 4,
            Ask::Release => 7,
        };
        option(option::KIND, &[kind]);
        // Ethernet and its address: what other clients of this card would say too.
        option(option::CLIENT_ID, &[&[1][..], &self.mac.0].concat());
        if let Some(wanted) = self.wanted {
            option(option::WANTED, &wanted.octets());
        }
        if let Some(server) = self.server {
            option(option::SERVER, &server.octets());
        }
        if matches!(self.ask, Ask::Discover | Ask::Request) {
            option(
                option::PARAMETERS,
                &[option::MASK, option::ROUTER, option::LEASE, option::RENEWAL, option::REBINDING],
            );
        }
        bytes.push(option::END);
        bytes.resize(bytes.len().max(LEAST), 0);
        bytes
    }
}

impl Answer {
    /// Reads a frame; `None` if it is no DHCP server's answer to this card. Check sums are not looked at: a server on the
    /// same machine leaves them to a card that there is not.
    #[must_use]
    pub fn read(frame: &[u8], mac: Mac) -> Option<Answer> {
        let ip = frame.get(ETHERNET..).filter(|_| frame[12..14] == [8, 0])?;
        let header = usize::from(ip.first()? & 0xf) * 4;
        let fragment = u16::from_be_bytes(array(ip, 6)?) & 0x3fff;
        if ip[0] >> 4 != 4 || header < 20 || *ip.get(9)? != 17 || fragment != 0 {
            return None;
        }
        let udp = ip.get(header..)?;
        let ports = [u16::from_be_bytes(array(udp, 0)?), u16::from_be_bytes(array(udp, 2)?)];
        let length = usize::from(u16::from_be_bytes(array(udp, 4)?));
        let message = udp.get(UDP..length.min(udp.len()))?;
        let reply = message.len() >= FIXED && message[..3] == [2, 1, 6] && message[236..FIXED] == MAGIC;
        if ports != [SERVER, CLIENT] || !reply || message[28..34] != mac.0 {
            return None;
        }
        let mut answer = Answer {
            xid: u32::from_be_bytes(array(message, 4)?),
            address: Some(Ipv4Addr::from(array(message, 16)?)).filter(|address| !address.is_unspecified()),
            from: Mac(array(frame, 6)?),
            ..Answer::default()
        };
        for (kind, value) in options(&message[FIXED..]) {
            answer.take(kind, value);
        }
        Some(answer)
    }

    fn take(&mut self, kind: u8, value: &[u8]) {
        let address = || array(value, 0).map(Ipv4Addr::from);
        let seconds = || array(value, 0).map(u32::from_be_bytes);
        match kind {
            option::KIND => {
                self.said = match value {
                    [2] => Some(Said::Offer),
                    [5] => Some(Said::Ack),
                    [6] => Some(Said::Nak),
                    _ => None,
                }
            }
            option::MASK => self.mask = address(),
            option::ROUTER => self.router = address(),
            option::SERVER => self.server = address(),
            option::LEASE => self.lease = seconds(),
            option::RENEWAL => self.renewal = seconds(),
            option::REBINDING => self.rebinding = seconds(),
            option::MESSAGE => self.message = Some(printable(value)),
            _ => {}
        }
    }
}

/// Up to the end mark, or to one that is cut short.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        while let [option::PAD, rest @ ..] = bytes {
            bytes = rest;
        }
        let [kind, length, rest @ ..] = bytes else { return None };
        if *kind == option::END {
            return None;
        }
        let (value, rest) = rest.split_at_checked((*length).into())?;
        bytes = rest;
        Some((*kind, value))
    })
}

/// A server's words go into a log.
fn printable(value: &[u8]) -> String {
    String::from_utf8_lossy(value).chars().filter(|letter| !letter.is_control()).take(120).collect()
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const US: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);
    const SERVER_MAC: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);

    /// An ACK as dnsmasq 2.89 sends it, its options in its order.
    fn ack() -> Vec<u8> {
        let address = |last| Ipv4Addr::new(10, 2, 0, last).octets();
        let question =
            Question { ask: Ask::Request, xid: 0xdead_beef, mac: US, current: None, wanted: None, server: None };
        let mut message = question.message();
        message.truncate(FIXED);
        message[0] = 2;
        message[16..20].copy_from_slice(&address(57));
        for (kind, value) in [
            (option::KIND, &[5][..]),
            (option::SERVER, &address(1)),
            (option::LEASE, &3600_u32.to_be_bytes()),
            (option::RENEWAL, &1800_u32.to_be_bytes()),
            (option::REBINDING, &3150_u32.to_be_bytes()),
            (option::MASK, &[255, 255, 255, 0]),
            (28, &address(255)),
            (option::ROUTER, &[address(1), address(2)].concat()),
        ] {
            message.extend([kind, value.len() as u8]);
            message.extend(value);
        }
        message.push(option::END);
        let mut frame = [&US.0[..], &SERVER_MAC.0, &[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]].concat();
        frame.extend([address(1), address(57)].concat());
        for word in [67, 68, (UDP + message.len()) as u16, 0] {
            frame.extend(word.to_be_bytes());
        }
        [frame, message].concat()
    }

    #[test]
    fn an_answer_says_what_the_server_gives() {
        let at = |last| Some(Ipv4Addr::new(10, 2, 0, last));
        let expected = Answer {
            said: Some(Said::Ack),
            xid: 0xdead_beef,
            address: at(57),
            server: at(1),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            router: at(1),
            lease: Some(3600),
            renewal: Some(1800),
            rebinding: Some(3150),
            message: None,
            from: SERVER_MAC,
        };
        assert_eq!(Answer::read(&ack(), US), Some(expected));
        assert_eq!(Answer::read(&ack(), SERVER_MAC), None, "somebody else's");
        let question =
            Question { ask: Ask::Discover, xid: 1, mac: US, current: None, wanted: None, server: None }.frame(None);
        assert_eq!(Answer::read(&question, US), None, "our own");
    }

    #[test]
    fn no_cut_of_an_answer_is_a_panic_or_another_s_address() {
        let whole = ack();
        for length in 0..whole.len() {
            if let Some(answer) = Answer::read(&whole[..length], US) {
                assert_eq!(answer.address, Some(Ipv4Addr::new(10, 2, 0, 57)));
            }
        }
    }

    #[test]
    fn a_question_is_a_frame_that_others_accept() {
        let [server, wanted] = [1, 57].map(|last| Ipv4Addr::new(10, 2, 0, last));
        let question =
            Question { ask: Ask::Request, xid: 7, mac: US, current: None, wanted: Some(wanted), server: Some(server) };
        let frame = question.frame(None);
        assert_eq!(frame.len(), ETHERNET + 20 + UDP + LEAST);
        assert_eq!(checksum(frame[14..34].iter()), 0);
        let pseudo = [&frame[26..34], &[0, 17], &frame[38..40]].concat();
        assert_eq!(checksum(pseudo.iter().chain(&frame[34..])), 0);
        let found: Vec<_> = options(&frame[ETHERNET + 20 + UDP + FIXED..]).collect();
        assert_eq!(found[0], (option::KIND, &[3][..]));
        assert!(found.contains(&(option::WANTED, &wanted.octets()[..])));
        assert!(found.contains(&(option::SERVER, &server.octets()[..])));
    }

    #[test]
    fn a_server_s_words_do_not_break_the_log() {
        assert_eq!(printable(b"no\n\x1b[31mway \xff"), "no[31mway \u{fffd}");
        assert_eq!(printable(&[b'x'; 255]).len(), 120);
    }

    proptest! {
        #[test]
        fn noise_is_read_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..600), at in 0..600_usize) {
            let mut frame = ack();
            let at = at % frame.len();
            frame.truncate(at);
            frame.extend(noise);
            let _ = Answer::read(&frame, US);
        }
    }
}
