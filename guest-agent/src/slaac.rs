//! Stateless autoconfiguration (RFC 4862) for VMs in which nobody else does it for the vNIC: the kernel makes the address
//! and keeps it, here a router is asked, and heard, whose path the address is for.
//!
//! The kernel is told to take no default route from advertisements: the main table is not to change before
//! the move ([`follow`]).

mod advertisement;
mod duplicates;
mod routers;

use std::{
    io,
    net::Ipv6Addr,
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval, timeout};

use advertisement::Advertisement;
use duplicates::Duplicates;
pub use routers::follow;

use crate::{
    dhcp::Card,
    neighbours::Routers,
    netlink, sysctl,
    vnic::{self, Autoconfigured, Vnics},
};

/// Routers answer within half a second, or once in three if they answer everybody at once (RFC 4861, 6.2.6).
pub const PATIENCE: Duration = Duration::from_millis(3_500);
/// Asked again after this; only loss makes it useful.
const AGAIN: Duration = Duration::from_millis(1_000);
/// The card's addresses are looked at so often meanwhile.
const LOOK: Duration = Duration::from_millis(25);

/// Of a vNIC that has an owner, which asks the routers itself, and gives the card two addresses one after the other: before
/// it looks whether an address is another's the kernel waits for up to so many seconds (addrconf_dad_kick, 6.12).
pub const WITH_AN_OWNER: [(&str, &str); 1] = [("router_solicitation_delay", "0")];
/// Parameters of the vNIC, under net/ipv6/conf/NAME. Optimistic addresses (RFC 4429) can ask for a router at once.
pub const PARAMETERS: [(&str, &str); 9] = [
    ("accept_ra", "2"), // also where the VM forwards
    ("accept_ra_defrtr", "0"),
    ("accept_ra_pinfo", "1"),
    ("autoconf", "1"),
    ("use_tempaddr", "0"),
    ("optimistic_dad", "1"),
    ("use_optimistic", "1"),
    ("router_solicitations", "0"), // asked from here
    ("disable_ipv6", "0"),         // last: with it begins what the others are for
];
/// How long whoever has the address already has for saying so, under net/ipv6/neigh/NAME: more than a tunnel's round trip.
pub const RETRANS: (&str, &str) = ("retrans_time_ms", "500");

/// An address, and the way out for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configured {
    pub address: Ipv6Addr,
    pub prefix_len: u8,
    pub gateway: Ipv6Addr,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no router advertised itself within {} s; is there one on the LAN, and does host.toml say addressing = \"slaac\" for it?", .0.as_secs_f32())]
    NoAdvertisement(Duration),
    #[error("router {0} says that it is none any more (lifetime 0), and there is no other")]
    NoRouter(Ipv6Addr),
    #[error("router {0} advertises no prefix of 64 bits to make addresses of")]
    NoPrefix(Ipv6Addr),
    #[error("{0} is in use by somebody else on the LAN; find out whose it is, or give the vNIC another MAC")]
    Duplicate(Ipv6Addr),
    #[error("the kernel made no address of what router {0} advertises; see \"sysctl net.ipv6.conf\"")]
    NoAddress(Ipv6Addr),
    #[error("cannot speak on the vNIC")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Card(#[from] vnic::Error),
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    #[error(transparent)]
    Parameter(#[from] sysctl::Error),
}

/// Waits for a router, and for the kernel's address.
///
/// # Errors
/// See [`Failure`].
pub async fn acquire(card: Card, vnics: &Vnics) -> Result<Configured, Failure> {
    let routers = Routers::of(card.ifindex, card.mac)?;
    let mut duplicates = Duplicates::open(card.ifindex)?;
    let mut heard: Vec<Advertisement> = Vec::new();
    let configured = async {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked: Option<Instant> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if asked.is_none_or(|asked| asked.elapsed() > AGAIN) && routers.ask()? {
                        asked = Some(Instant::now());
                    }
                    let standing = vnics.autoconfigured(card.ifindex).await?;
                    if let Some(configured) = judge(&heard, &standing)? {
                        return Ok(configured);
                    }
                }
                duplicate = duplicates.next() => return Err(Failure::Duplicate(duplicate?)),
                advertisement = routers.hear(|from, message| Advertisement::read(message, from)) => {
                    let advertisement = advertisement?;
                    heard.retain(|known| known.router != advertisement.router);
                    heard.push(advertisement);
                }
            }
        }
    };
    match timeout(PATIENCE, configured).await {
        Ok(result) => result,
        Err(_) => Err(why_not(&heard)),
    }
}

/// The best router's own prefix first: others may drop what comes from it (RFC 6724, rule 5.5).
fn judge(heard: &[Advertisement], addresses: &[Autoconfigured]) -> Result<Option<Configured>, Failure> {
    let mut routers: Vec<_> = heard.iter().filter(|one| one.lifetime > 0).collect();
    routers.sort_by_key(|one| std::cmp::Reverse(one.preference));
    for router in routers {
        for prefix in &router.prefixes {
            let Some(found) = addresses.iter().find(|one| prefix.contains(one.address)) else { continue };
            if found.duplicate {
                return Err(Failure::Duplicate(found.address));
            }
            if found.tentative {
                return Ok(None);
            }
            let (address, prefix_len) = (found.address, prefix.length);
            return Ok(Some(Configured { address, prefix_len, gateway: router.router }));
        }
    }
    Ok(None)
}

fn why_not(heard: &[Advertisement]) -> Failure {
    match heard.iter().max_by_key(|one| (one.lifetime > 0, !one.prefixes.is_empty())) {
        None => Failure::NoAdvertisement(PATIENCE),
        Some(one) if one.lifetime == 0 => Failure::NoRouter(one.router),
        Some(one) if one.prefixes.is_empty() => Failure::NoPrefix(one.router),
        Some(one) => Failure::NoAddress(one.router),
    }
}

#[cfg(test)]
mod tests {
    use super::{advertisement::Prefix, *};

    fn heard(router: u16, preference: i8, lifetime: u16, prefix: u16) -> Advertisement {
        let prefixes = vec![Prefix { address: Ipv6Addr::new(0x2001, 0xdb8, prefix, 0, 0, 0, 0, 0), length: 64 }];
        let router = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, router);
        Advertisement { router, lifetime, preference, prefixes }
    }

    fn address(prefix: u16) -> Autoconfigured {
        let address = Ipv6Addr::new(0x2001, 0xdb8, prefix, 0, 0, 0, 0, 7);
        Autoconfigured { address, tentative: false, duplicate: false }
    }

    #[test]
    fn of_two_routers_the_better_one_s_own_prefix_counts() {
        let both = [heard(1, 0, 1_800, 1), heard(2, 1, 1_800, 2)];
        let addresses = [address(1), address(2)];
        let found = judge(&both, &addresses).unwrap().unwrap();
        assert_eq!((found.address, found.gateway), (addresses[1].address, both[1].router));
        let found = judge(&[heard(1, 0, 1_800, 1), heard(2, 1, 0, 2)], &addresses).unwrap().unwrap();
        assert_eq!((found.address, found.gateway), (addresses[0].address, both[0].router), "the better one is none");
        assert_eq!(judge(&both, &[]).unwrap(), None);
        assert_eq!(judge(&both, &[address(3)]).unwrap(), None, "an address of neither");
    }

    #[test]
    fn an_address_is_none_before_it_is_known_to_be_the_only_one() {
        let router = [heard(1, 0, 1_800, 1)];
        let tentative = Autoconfigured { tentative: true, ..address(1) };
        assert_eq!(judge(&router, &[tentative]).unwrap(), None);
        let duplicate = Autoconfigured { duplicate: true, ..tentative };
        let said = judge(&router, &[duplicate]).unwrap_err().to_string();
        assert!(said.starts_with("2001:db8:1::7 is in use by somebody else on the LAN"), "{said}");
    }

    #[test]
    fn it_is_said_what_was_missing() {
        let none = Advertisement { prefixes: Vec::new(), ..heard(1, 0, 1_800, 1) };
        let gone = heard(2, 0, 0, 1);
        for (heard, words) in [
            (vec![], "no router advertised itself within 3.5 s"),
            (vec![gone.clone()], "router fe80::2 says that it is none any more (lifetime 0)"),
            (vec![gone.clone(), none], "router fe80::1 advertises no prefix of 64 bits"),
            (vec![gone, heard(1, 0, 9, 1)], "the kernel made no address of what router fe80::1 advertises"),
        ] {
            let said = why_not(&heard).to_string();
            assert!(said.starts_with(words), "{said}");
        }
    }
}
