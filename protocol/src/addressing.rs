//! The addresses of a vNIC: one of each family at most, and how it gets them.

use alloc::vec::Vec;
use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

/// How the spare vNIC gets its addresses of the new LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Addressing {
    pub v4: V4,
    pub v6: V6,
}

/// How it gets its IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum V4 {
    /// Not at all.
    None,
    /// As given by the host.
    Static(Given<Ipv4Addr>),
    /// By DHCP; one of the LAN's subnet, where that is known.
    Dhcp(Option<Subnet<Ipv4Addr>>),
}

/// How it gets its IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum V6 {
    /// Not at all.
    None,
    /// As given by the host.
    Static(Given<Ipv6Addr>),
    /// Out of router advertisements (RFC 4862); one of the LAN's subnet, where that is known.
    Slaac(Option<Subnet<Ipv6Addr>>),
}

/// An address that the host gives, and what is needed to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Given<Address> {
    pub address: Address,
    pub prefix_len: u8,
    pub gateway: Address,
}

/// What the LAN's configuration says of it: an address from outside is somebody else's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Subnet<Address> {
    pub address: Address,
    pub prefix_len: u8,
}

impl Subnet<Ipv4Addr> {
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let differing = self.address.to_bits() ^ address.to_bits();
        differing.leading_zeros() >= self.prefix_len.into()
    }
}

impl Subnet<Ipv6Addr> {
    pub fn contains(&self, address: Ipv6Addr) -> bool {
        let differing = self.address.to_bits() ^ address.to_bits();
        differing.leading_zeros() >= self.prefix_len.into()
    }
}

impl<Address: fmt::Display> fmt::Display for Subnet<Address> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

impl<Address: Into<IpAddr>> Given<Address> {
    fn of_either(self) -> Given<IpAddr> {
        let Given { address, prefix_len, gateway } = self;
        Given { address: address.into(), prefix_len, gateway: gateway.into() }
    }
}

impl Addressing {
    /// What is given, of both families.
    pub fn given(&self) -> impl Iterator<Item = Given<IpAddr>> {
        let v4 = if let V4::Static(given) = self.v4 { Some(given.of_either()) } else { None };
        let v6 = if let V6::Static(given) = self.v6 { Some(given.of_either()) } else { None };
        v4.into_iter().chain(v6)
    }

    /// The LAN's subnet that this address is outside of, if it is.
    pub fn excludes(&self, address: IpAddr) -> Option<Subnet<IpAddr>> {
        let subnet = match (address, self.v4, self.v6) {
            (IpAddr::V4(v4), V4::Dhcp(Some(subnet)), _) if !subnet.contains(v4) => {
                Subnet { address: subnet.address.into(), prefix_len: subnet.prefix_len }
            }
            (IpAddr::V6(v6), _, V6::Slaac(Some(subnet))) if !subnet.contains(v6) => {
                Subnet { address: subnet.address.into(), prefix_len: subnet.prefix_len }
            }
            _ => return None,
        };
        Some(subnet)
    }

    /// Whether the guest has to get one of them from the LAN.
    pub fn is_obtained(&self) -> bool {
        matches!(self.v4, V4::Dhcp(_)) || matches!(self.v6, V6::Slaac(_))
    }

    /// The addresses that are known beforehand.
    pub fn addresses(&self) -> Addresses {
        self.given().map(|given| given.address).collect()
    }
}

/// Of two of one family, the last counts.
impl FromIterator<Given<IpAddr>> for Addressing {
    fn from_iter<T: IntoIterator<Item = Given<IpAddr>>>(given: T) -> Self {
        let mut all = Addressing { v4: V4::None, v6: V6::None };
        for Given { address, prefix_len, gateway } in given {
            match (address, gateway) {
                (IpAddr::V4(address), IpAddr::V4(gateway)) => {
                    all.v4 = V4::Static(Given { address, prefix_len, gateway });
                }
                (IpAddr::V6(address), IpAddr::V6(gateway)) => {
                    all.v6 = V6::Static(Given { address, prefix_len, gateway });
                }
                _ => {} // an address cannot be given with a gateway of the other family
            }
        }
        all
    }
}

/// Addresses that a VM has, or had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Addresses {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// IPv4 first.
    pub fn all(&self) -> Vec<IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6)).collect()
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        let mut all = Addresses::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => all.v4 = Some(v4),
                IpAddr::V6(v6) => all.v6 = Some(v6),
            }
        }
        all
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(v4), None) => v4.fmt(f),
            (None, Some(v6)) => v6.fmt(f),
            (None, None) => f.write_str("no address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_from_outside_of_the_lan_is_told_from_its_own() {
        let v4 = V4::Dhcp(Some(Subnet { address: Ipv4Addr::new(10, 2, 0, 0), prefix_len: 24 }));
        let v6 = V6::Slaac(Some(Subnet { address: "2001:db8:2::".parse().unwrap(), prefix_len: 64 }));
        let excluded = |text: &str| {
            let subnet = Addressing { v4, v6 }.excludes(text.parse().unwrap());
            subnet.map(|subnet| alloc::format!("{subnet}"))
        };
        assert_eq!((excluded("10.2.0.255"), excluded("2001:db8:2::ffff:0:1")), (None, None));
        assert_eq!(excluded("10.2.1.0").as_deref(), Some("10.2.0.0/24"));
        assert_eq!(excluded("2001:db8:2:1::1").as_deref(), Some("2001:db8:2::/64"));
        let any = Addressing { v4: V4::Dhcp(None), v6: V6::Slaac(None) };
        assert_eq!(any.excludes("192.0.2.1".parse().unwrap()), None);
        assert!(any.is_obtained() && !Addressing { v4: V4::None, v6: V6::None }.is_obtained());
    }
}
