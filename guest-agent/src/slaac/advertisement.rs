//! Router advertisements (RFC 4861, 4.2; preferences RFC 4191), as far as a path is made of them. Anybody's words: reading
//! never fails on a length that lies.

use std::net::Ipv6Addr;

/// What one router says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Advertisement {
    /// Its link-local address.
    pub(super) router: Ipv6Addr,
    /// Seconds; 0: it is no default router.
    pub(super) lifetime: u16,
    /// 1 high, 0 medium, -1 low.
    pub(super) preference: i8,
    /// Those that addresses are made of.
    pub(super) prefixes: Vec<Prefix>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Prefix {
    pub(super) address: Ipv6Addr,
    pub(super) length: u8,
}

const ADVERTISEMENT: u8 = 134;
const HEAD: usize = 16;
const OPTION_PREFIX: u8 = 3;
const AUTONOMOUS: u8 = 0x40;
/// The only length that Linux makes addresses of (addrconf_prefix_rcv).
const LENGTH: u8 = 64;

impl Advertisement {
    /// Reads an ICMPv6 message from there; `None` if it is no router's on this link.
    pub(super) fn read(bytes: &[u8], from: Ipv6Addr) -> Option<Advertisement> {
        let (head, mut options) = bytes.split_at_checked(HEAD)?;
        if head[..2] != [ADVERTISEMENT, 0] || !from.is_unicast_link_local() {
            return None;
        }
        let preference = match head[5] >> 3 & 0b11 {
            0b01 => 1,
            0b11 => -1,
            _ => 0,
        };
        let lifetime = u16::from_be_bytes([head[6], head[7]]);
        let mut prefixes = Vec::new();
        while let [kind, eights, ..] = options {
            // A length of nothing makes the whole message worthless (RFC 4861, 4.6).
            let (option, rest) = options.split_at_checked(usize::from(*eights) * 8).filter(|_| *eights > 0)?;
            if *kind == OPTION_PREFIX {
                prefixes.extend(read_prefix(option));
            }
            options = rest;
        }
        Some(Advertisement { router: from, lifetime, preference, prefixes })
    }
}

/// {kind, length, prefix length, flags, valid, preferred, reserved, prefix}. One that must not be used any more is none.
fn read_prefix(option: &[u8]) -> Option<Prefix> {
    let option: &[u8; 32] = option.try_into().ok()?;
    let [_, _, length, flags, ..] = *option;
    let usable = |lifetime: &[u8]| lifetime != [0; 4];
    let good = length == LENGTH && flags & AUTONOMOUS != 0 && usable(&option[4..8]) && usable(&option[8..12]);
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(&option[16..]).ok()?);
    good.then_some(Prefix { address, length })
}

impl Prefix {
    pub(super) fn contains(&self, address: Ipv6Addr) -> bool {
        (self.address.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

    /// As radvd 2.19 sends it, with the router's MAC behind.
    fn advertisement() -> Vec<u8> {
        let prefix = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0).octets();
        let mut bytes = vec![134, 0, 0, 0, 64, 0x08, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend([3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0]);
        bytes.extend(prefix);
        bytes.extend([1, 1, 2, 0, 0, 0, 0, 9]);
        bytes
    }

    #[test]
    fn a_router_is_read_with_its_prefix() {
        let bytes = advertisement();
        let read = Advertisement::read(&bytes, ROUTER).unwrap();
        assert_eq!((read.router, read.lifetime, read.preference), (ROUTER, 1_800, 1));
        assert_eq!(read.prefixes.len(), 1);
        assert!(read.prefixes[0].contains("2001:db8:2::7".parse().unwrap()));
        assert!(!read.prefixes[0].contains("2001:db8:2:1::7".parse().unwrap()));
        assert_eq!(Advertisement::read(&bytes, "2001:db8::1".parse().unwrap()), None, "from beyond the link");
        for (at, value) in [(18, 63), (19, 0x80)] {
            let mut other = bytes.clone();
            other[at] = value;
            assert_eq!(Advertisement::read(&other, ROUTER).unwrap().prefixes, [], "byte {at}");
        }
        for lifetime in [20, 24] {
            let mut over = bytes.clone();
            over[lifetime..lifetime + 4].fill(0);
            assert_eq!(Advertisement::read(&over, ROUTER).unwrap().prefixes, []);
        }
    }

    #[test]
    fn any_cut_inside_an_option_is_none() {
        let bytes = advertisement();
        for length in 0..bytes.len() {
            let read = Advertisement::read(&bytes[..length], ROUTER);
            assert_eq!(read.is_some(), [16, 17, 48, 49].contains(&length), "{length}");
        }
        let endless = [&bytes[..16], &[3, 0, 0, 0]].concat();
        assert_eq!(Advertisement::read(&endless, ROUTER), None);
    }

    proptest! {
        #[test]
        fn noise_is_read_without_a_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Advertisement::read(&noise, ROUTER);
            let _ = Advertisement::read(&[&advertisement()[..16], &noise].concat(), ROUTER);
        }
    }
}
