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
    /// By whoever does DHCP for the vNIC in the guest.
    Dhcp,
}

/// How it gets its IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum V6 {
    /// Not at all.
    None,
    /// As given by the host.
    Static(Given<Ipv6Addr>),
    /// Out of router advertisements (RFC 4862).
    Slaac,
}

/// An address that the host gives, and what is needed to use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Given<Address> {
    pub address: Address,
    pub prefix_len: u8,
    pub gateway: Address,
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
