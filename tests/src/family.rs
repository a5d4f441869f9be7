//! Which IP the VM, its client and the LANs speak.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// One of the two, or both.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Family {
    #[default]
    V4,
    V6,
    Dual,
}

impl Family {
    #[must_use]
    pub fn v4(self) -> bool {
        self != Family::V6
    }

    #[must_use]
    pub fn v6(self) -> bool {
        self != Family::V4
    }

    /// Of somebody's two addresses those that are in use, IPv4 first.
    #[must_use]
    pub fn of(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let v4 = self.v4().then_some(IpAddr::V4(v4));
        v4.into_iter().chain(self.v6().then_some(IpAddr::V6(v6))).collect()
    }
}

impl FromStr for Family {
    type Err = String;

    fn from_str(text: &str) -> Result<Family, String> {
        match text {
            "4" => Ok(Family::V4),
            "6" => Ok(Family::V6),
            "dual" => Ok(Family::Dual),
            _ => Err(format!("\"{text}\" is none of 4, 6 and dual")),
        }
    }
}
