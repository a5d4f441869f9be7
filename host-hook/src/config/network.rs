//! IP subnets and the addresses that may be given away.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// An IP subnet: its first address and its length in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// The subnet's first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many bits every address of the subnet shares.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether `address` is in the subnet.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && mask(address, self.length) == self.address
    }

    /// Why no machine can have this address of the subnet, where that is so. Subnets of one or two addresses use them
    /// all (RFC 3021, RFC 6164).
    pub(super) fn reserved(&self, address: IpAddr) -> Option<&'static str> {
        let host_bits = width(address) - self.length;
        if host_bits < 2 {
            return None;
        }
        let last = number(self.address) | ((1 << host_bits) - 1);
        match address {
            _ if address == self.address && address.is_ipv4() => Some("the network's own address"),
            _ if address == self.address => Some("the routers' anycast address"),
            IpAddr::V4(_) if number(address) == last => Some("the broadcast address"),
            _ => None,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("\"{text}\" is not a subnet; write it like \"10.1.0.0/24\" or \"2001:db8:1::/64\"");
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let length: u8 = length.parse().map_err(|_| malformed())?;
        if length == 0 || length > width(address) {
            return Err(malformed());
        }
        let first = mask(address, length);
        if first != address {
            return Err(format!(
                "\"{text}\" is an address in a subnet, not a subnet; did you mean \"{first}/{length}\"?"
            ));
        }
        Ok(Self { address, length })
    }
}

/// Addresses that may be given away: ranges that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    ranges: Vec<(IpAddr, IpAddr)>,
}

impl Pool {
    /// Every address, in the order of the file. A v6 pool can be longer than anyone can count: take what is needed.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + Clone {
        self.ranges.iter().flat_map(|&(first, last)| {
            (number(first)..=number(last)).map(move |n| match first {
                // The range came from IPv4 addresses, so that the upper bits are none.
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(n as u32)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(n)),
            })
        })
    }

    /// Whether `address` is one of the pool's.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|&(first, last)| first <= address && address <= last)
    }

    pub(super) fn ranges(&self) -> &[(IpAddr, IpAddr)] {
        &self.ranges
    }

    /// What it holds of one family, if anything.
    pub(super) fn of_family(&self, v4: bool) -> Option<Self> {
        let ranges: Vec<_> = self.ranges.iter().copied().filter(|(first, _)| first.is_ipv4() == v4).collect();
        (!ranges.is_empty()).then_some(Self { ranges })
    }

    /// An address that both give away.
    pub(super) fn shared_with(&self, other: &Self) -> Option<IpAddr> {
        self.ranges.iter().find_map(|&a| other.ranges.iter().find_map(|&b| overlap(a, b)))
    }

    pub(super) fn parse(texts: &[&str]) -> Result<Self, String> {
        let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
        for text in texts {
            let range = range(text)?;
            if let Some(twice) = ranges.iter().find_map(|&earlier| overlap(earlier, range)) {
                return Err(format!("the pool names {twice} twice; take it out of \"{text}\""));
            }
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err("the pool is empty; name the addresses that VMs may get".into());
        }
        Ok(Self { ranges })
    }
}

fn range(text: &str) -> Result<(IpAddr, IpAddr), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (Ok(first), Ok(last)) = (first.trim().parse::<IpAddr>(), last.trim().parse::<IpAddr>()) else {
        return Err(format!(
            "\"{text}\" is neither an address nor a range of addresses; write it like \"10.1.0.100-10.1.0.199\""
        ));
    };
    if first.is_ipv4() != last.is_ipv4() {
        return Err(format!("\"{text}\" goes from one address family to the other; both ends must be IPv4 or IPv6"));
    }
    if first > last {
        return Err(format!("\"{text}\" runs backwards; write \"{last}-{first}\""));
    }
    Ok((first, last))
}

fn overlap(a: (IpAddr, IpAddr), b: (IpAddr, IpAddr)) -> Option<IpAddr> {
    let first = a.0.max(b.0);
    (a.0.is_ipv4() == b.0.is_ipv4() && first <= a.1.min(b.1)).then_some(first)
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn mask(address: IpAddr, length: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(
            v4.to_bits() & u32::MAX.checked_shl(32_u32.saturating_sub(length.into())).unwrap_or(0),
        )),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(
            v6.to_bits() & u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_knows_its_own() {
        let v4: Prefix = "10.1.0.0/24".parse().unwrap();
        assert!(v4.contains("10.1.0.255".parse().unwrap()) && !v4.contains("10.1.1.0".parse().unwrap()));
        assert!(!v4.contains("::a01:1".parse().unwrap()));
        let v6: Prefix = "2001:db8::/33".parse().unwrap();
        assert!(v6.contains("2001:db8:7fff::1".parse().unwrap()) && !v6.contains("2001:db8:8000::".parse().unwrap()));
        let all_of_it: Prefix = "10.1.0.1/32".parse().unwrap();
        assert!(all_of_it.contains("10.1.0.1".parse().unwrap()));
        assert_eq!(all_of_it.reserved("10.1.0.1".parse().unwrap()), None);
        assert!(v4.reserved("10.1.0.0".parse().unwrap()).is_some());
        assert!(v4.reserved("10.1.0.255".parse().unwrap()).is_some());
        assert_eq!(v4.reserved("10.1.0.254".parse().unwrap()), None);
    }

    #[test]
    fn a_pool_gives_each_address_once() {
        let pool = Pool::parse(&["10.1.0.254-10.1.1.1", "10.1.0.7"]).unwrap();
        let given: Vec<_> = pool.addresses().map(|a| a.to_string()).collect();
        assert_eq!(given, ["10.1.0.254", "10.1.0.255", "10.1.1.0", "10.1.1.1", "10.1.0.7"]);
        assert!(pool.contains("10.1.1.0".parse().unwrap()) && !pool.contains("10.1.1.2".parse().unwrap()));
        let wide = Pool::parse(&["2001:db8::1-2001:db8::ffff:ffff:ffff:ffff"]).unwrap();
        assert_eq!(wide.addresses().nth(1).unwrap().to_string(), "2001:db8::2");
    }
}
