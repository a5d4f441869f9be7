//! WireGuard underneath the tunnels: one interface of this host, `lsmw`, with a peer for each host that it has tunnels
//! with, for as long as a migration needs one.
//!
//! ```text
//!   lsmt<vni> (VXLAN, fe80::ours to fe80::theirs, by lsmw alone) -- lsmw -- UDP ~~~ underlay ~~~ UDP -- lsmw -- lsmt<vni>
//! ```
//!
//! Nobody manages keys: the private one is made with the interface, stays in the kernel and goes with it; the public ones
//! cross the peer channel ahead of an offer. Addresses inside are link-local and made of the public keys, so that a
//! tunnel's frames have no other way out than `lsmw`: the kernel takes a VXLAN device away with the interface that it
//! leads by (`vxlan_handle_lowerdev_unregister`). See [`crate::filters`] for what may come in.

pub(crate) mod kernel;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use lsm_protocol::{MigrationId, Offer, WireguardEnd};
use rtnetlink::{LinkMessageBuilder, LinkWireguard};

use self::kernel::Kernel;
use super::{
    TunnelError, Tunnels,
    links::{Link, Links},
};
use crate::{
    filters::{self, Entrance},
    random::random,
};

/// The interface.
pub const INTERFACE: &str = "lsmw";

/// How long a handshake may take before it is begun again, and that one.
const MEETING: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(1)];

/// A tunnel's ends inside WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside {
    pub local: Ipv6Addr,
    pub remote: Ipv6Addr,
    /// UDP port of the other host's WireGuard.
    pub port: u16,
}

/// Why tunnels cannot be inside WireGuard.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireguardError {
    #[error(
        "this host's kernel has no WireGuard, which encrypt = \"wireguard\" under [tunnel] in host.toml asks for; install its module (\"modprobe wireguard\" says whether it is there), or set encrypt = \"none\" on all hosts, for tunnels that whoever is between them can read"
    )]
    Lacking,
    #[error(
        "cannot listen on UDP port {0} for WireGuard; free it (\"ss -ulpn\" shows who has it), or set another wireguard_port under [tunnel] in host.toml"
    )]
    Port(u16, #[source] Box<TunnelError>),
    #[error("cannot {what}")]
    Kernel {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{peer} shows a WireGuard key that is {other}'s; each host makes its own")]
    Taken { peer: String, other: String },
    #[error("the other host's WireGuard key is not known any more; cancel the migration and start it again")]
    Unknown,
    #[error(transparent)]
    Tunnel(#[from] Box<TunnelError>),
}

impl From<TunnelError> for WireguardError {
    fn from(error: TunnelError) -> Self {
        WireguardError::Tunnel(Box::new(error))
    }
}

/// A migration whose tunnels are inside WireGuard.
#[derive(Clone, Debug)]
struct Use {
    peer: String,
    /// Once the other host has said it.
    theirs: Option<WireguardEnd>,
    /// The other host's underlay address, and the port of the tunnels, once there is an offer.
    tunnel: Option<(IpAddr, u16)>,
}

/// All of them on this host.
pub struct Wireguard {
    links: Links,
    /// To listen on.
    port: u16,
    uses: RefCell<BTreeMap<MigrationId, Use>>,
    /// This host's end, while the interface stands.
    ours: RefCell<Option<WireguardEnd>>,
    /// Who changes the kernel's side does it alone.
    turn: tokio::sync::Mutex<()>,
}

/// Whether the kernel has WireGuard, or a module of it.
///
/// # Errors
/// When not, with what to do.
pub fn supported() -> Result<(), WireguardError> {
    open().map(drop)
}

fn open() -> Result<Kernel, WireguardError> {
    Kernel::open().map_err(failed("ask the kernel for WireGuard"))?.ok_or(WireguardError::Lacking)
}

/// The address inside that belongs to a key.
pub fn address_of(key: &[u8; 32]) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets[..2].copy_from_slice(&[0xfe, 0x80]);
    octets[8..].copy_from_slice(&key[..8]);
    octets.into()
}

impl Wireguard {
    /// `port`: to listen on.
    pub fn new(tunnels: &Tunnels, port: u16) -> Self {
        let links = tunnels.links.clone();
        Self { links, port, uses: RefCell::default(), ours: RefCell::default(), turn: tokio::sync::Mutex::default() }
    }

    /// A migration with `peer` is to have its tunnels inside: this host's end. [`Wireguard::over`] ends it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn begin(&self, migration: MigrationId, peer: &str) -> Result<WireguardEnd, WireguardError> {
        let begun = Use { peer: peer.to_owned(), theirs: None, tunnel: None };
        self.uses.borrow_mut().entry(migration).or_insert(begun);
        let _turn = self.turn.lock().await;
        self.stand().await
    }

    /// The other host's end.
    ///
    /// # Errors
    /// When it is another peer's: WireGuard knows its peers by their keys, and gives an address inside to one of them.
    pub fn hear(&self, migration: MigrationId, theirs: WireguardEnd) -> Result<(), WireguardError> {
        let mut uses = self.uses.borrow_mut();
        let peer = uses.get(&migration).ok_or(WireguardError::Unknown)?.peer.clone();
        let same = |key: &[u8; 32]| address_of(key) == address_of(&theirs.key);
        let other = uses.values().find(|used| used.peer != peer && used.theirs.is_some_and(|end| same(&end.key)));
        let other = other.map(|used| used.peer.clone());
        let own = self.ours.borrow().filter(|end| same(&end.key)).map(|_| "this host".to_owned());
        if let Some(other) = other.or(own) {
            return Err(WireguardError::Taken { peer, other });
        }
        uses.entry(migration).and_modify(|used| used.theirs = Some(theirs));
        Ok(())
    }

    /// This host's end as an earlier service left it, for migrations that go on: before [`Wireguard::remember`].
    ///
    /// # Errors
    /// When the kernel does not describe the interface.
    pub async fn take_up(&self) -> Result<(), WireguardError> {
        if let Some(link) = self.links.find(INTERFACE).await?
            && link.is_wireguard()
        {
            let device = open()?.device(INTERFACE).map_err(failed("read WireGuard's key"))?;
            *self.ours.borrow_mut() = Some(WireguardEnd { key: device.key, port: device.port });
        }
        Ok(())
    }

    /// Of a migration that goes on after a restart. `remote`: the other host's underlay address.
    pub fn remember(&self, offer: &Offer, peer: &str, theirs: WireguardEnd, remote: IpAddr) {
        let tunnel = Some((remote, offer.port));
        let goes_on = Use { peer: peer.to_owned(), theirs: Some(theirs), tunnel };
        self.uses.borrow_mut().insert(offer.migration, goes_on);
    }

    /// Whose migration it is, where the tunnels are to be inside.
    pub fn peer(&self, migration: MigrationId) -> Option<String> {
        self.uses.borrow().get(&migration).map(|used| used.peer.clone())
    }

    /// The other host's end, where the tunnels of this migration are inside.
    pub fn theirs(&self, migration: MigrationId) -> Option<WireguardEnd> {
        self.uses.borrow().get(&migration)?.theirs
    }

    /// Lets the two hosts of a migration speak, where its tunnels are inside: before one is built. `remote`: the other
    /// host's underlay address.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn connect(&self, offer: &Offer, remote: IpAddr) -> Result<(), WireguardError> {
        let Some(theirs) = self.theirs(offer.migration) else { return Ok(()) };
        let _turn = self.turn.lock().await;
        self.stand().await?;
        self.uses.borrow_mut().entry(offer.migration).and_modify(|used| used.tunnel = Some((remote, offer.port)));
        self.guard().await?;
        let set = open()?.set_peer(INTERFACE, &theirs.key, (remote, theirs.port), address_of(&theirs.key));
        set.map_err(failed("add the other host to WireGuard"))
    }

    /// Sees to it that the two hosts of a migration have shaken hands, where its tunnels are inside: on the host that tries
    /// them. Where both begin at once, each gives up its own beginning for the other's and takes no answer to it; the kernel
    /// tries again after 5 s (`REKEY_TIMEOUT`), but at once with a peer that is new to it.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn meet(&self, migration: MigrationId) -> Result<(), WireguardError> {
        for wait in MEETING {
            tokio::time::sleep(wait).await;
            let _turn = self.turn.lock().await;
            let used = self.uses.borrow().get(&migration).cloned();
            let Some((theirs, (remote, _))) = used.and_then(|used| used.theirs.zip(used.tunnel)) else {
                return Ok(());
            };
            let kernel = open()?;
            let device = kernel.device(INTERFACE).map_err(failed("ask WireGuard about the other host"))?;
            if device.met.contains(&theirs.key) {
                return Ok(());
            }
            tracing::debug!(%migration, "begins WireGuard's handshake again");
            let again = kernel
                .remove_peer(INTERFACE, &theirs.key)
                .and_then(|()| kernel.set_peer(INTERFACE, &theirs.key, (remote, theirs.port), address_of(&theirs.key)));
            again.map_err(failed("add the other host to WireGuard again"))?;
        }
        Ok(())
    }

    /// Where the tunnels of a migration end inside; `None` where they are not inside.
    ///
    /// # Errors
    /// When they are to be, and this host's end does not stand.
    pub fn inside(&self, migration: MigrationId) -> Result<Option<Inside>, WireguardError> {
        let uses = self.uses.borrow();
        let Some(used) = uses.get(&migration) else { return Ok(None) };
        let (Some(theirs), Some(ours)) = (used.theirs, *self.ours.borrow()) else {
            return Err(WireguardError::Unknown);
        };
        Ok(Some(Inside { local: address_of(&ours.key), remote: address_of(&theirs.key), port: theirs.port }))
    }

    /// A migration is over, or never came to be. What no other needs goes.
    ///
    /// # Errors
    /// What the kernel refused; the rest is gone.
    pub async fn over(&self, migration: MigrationId) -> Result<(), WireguardError> {
        if self.uses.borrow_mut().remove(&migration).is_none() {
            return Ok(());
        }
        self.tidy().await
    }

    /// Removes what an earlier service left and no migration needs, which [`Wireguard::remember`] has named.
    ///
    /// # Errors
    /// As [`Wireguard::over`].
    pub async fn tidy(&self) -> Result<(), WireguardError> {
        let _turn = self.turn.lock().await;
        if self.uses.borrow().is_empty() {
            *self.ours.borrow_mut() = None;
            let removed = match self.links.find(INTERFACE).await? {
                Some(link) if link.is_wireguard() => self.links.delete(INTERFACE).await,
                _ => Ok(()), // another of that name is not ours
            };
            // Last: as long as the interface stands, so does its guard.
            filters::shut().await.map_err(TunnelError::from)?;
            return Ok(removed?);
        }
        if self.links.find(INTERFACE).await?.is_none() {
            return Ok(()); // whoever builds makes it
        }
        let kernel = open()?;
        let device = kernel.device(INTERFACE).map_err(failed("list WireGuard's peers"))?;
        let needed: BTreeSet<_> = self.uses.borrow().values().filter_map(|used| Some(used.theirs?.key)).collect();
        for key in device.peers.iter().filter(|key| !needed.contains(*key)) {
            kernel.remove_peer(INTERFACE, key).map_err(failed("remove a host from WireGuard"))?;
        }
        self.guard().await
    }

    /// The interface, up, with this host's address inside.
    async fn stand(&self) -> Result<WireguardEnd, WireguardError> {
        let kernel = open()?;
        let link = match self.links.find(INTERFACE).await? {
            Some(link) if link.is_wireguard() => link,
            Some(_) => return Err(TunnelError::NotWireguard(INTERFACE.to_owned()).into()),
            None => {
                self.guard().await?;
                let link = self.links.create(INTERFACE, LinkWireguard::new(INTERFACE).build()).await?;
                let made = random().map_err(failed("get random bytes"));
                let made = made.and_then(|private| {
                    kernel.set_up(INTERFACE, &private, self.port).map_err(failed("give WireGuard its key"))
                });
                if let Err(error) = made {
                    self.links.delete(INTERFACE).await?;
                    return Err(error);
                }
                link
            }
        };
        let device = kernel.device(INTERFACE).map_err(failed("read WireGuard's key"))?;
        if device.port != self.port {
            // The operator has changed it, and the service was started again.
            kernel.set_port(INTERFACE, self.port).map_err(failed("change WireGuard's port"))?;
        }
        let ours = WireguardEnd { key: device.key, port: self.port };
        self.bring_up(&link, address_of(&ours.key)).await?;
        *self.ours.borrow_mut() = Some(ours);
        Ok(ours)
    }

    async fn bring_up(&self, link: &Link, address: Ipv6Addr) -> Result<(), WireguardError> {
        // A host may have IPv6 off, on interfaces that are new.
        let switch = Path::new("/proc/sys/net/ipv6/conf").join(INTERFACE).join("disable_ipv6");
        std::fs::write(switch, "0").map_err(failed("use IPv6 inside WireGuard; is it off in this host's kernel?"))?;
        self.links.address(INTERFACE, link.index(), address.into(), 64).await?;
        let up = self.links.set(INTERFACE, link.index(), LinkMessageBuilder::up).await;
        up.map_err(|error| WireguardError::Port(self.port, Box::new(error)))
    }

    async fn guard(&self) -> Result<(), WireguardError> {
        let uses = self.uses.borrow().clone();
        let entrances = uses.values().filter_map(|used| {
            let ((outside, port), theirs) = (used.tunnel?, used.theirs?);
            Some(Entrance { outside, inside: address_of(&theirs.key), port })
        });
        let guarded = filters::guard_wireguard(self.port, entrances.collect()).await;
        Ok(guarded.map_err(TunnelError::from)?)
    }
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> WireguardError {
    move |source| WireguardError::Kernel { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(first: u8) -> WireguardEnd {
        let mut key = [7; 32];
        key[0] = first;
        WireguardEnd { key, port: 16_520 }
    }

    fn begun(uses: &[(u8, &str)]) -> Wireguard {
        let wireguard = Wireguard::new(&Tunnels::open().unwrap(), 16_520);
        for (migration, peer) in uses {
            let begun = Use { peer: (*peer).to_owned(), theirs: None, tunnel: None };
            wireguard.uses.borrow_mut().insert(MigrationId([*migration; 16]), begun);
        }
        wireguard
    }

    #[tokio::test]
    async fn a_key_is_one_host_s_alone() {
        let wireguard = begun(&[(1, "dallas"), (2, "dallas"), (3, "oslo")]);
        *wireguard.ours.borrow_mut() = Some(end(9));
        let hear = |migration: u8, first| wireguard.hear(MigrationId([migration; 16]), end(first));
        hear(1, 1).unwrap();
        hear(2, 1).unwrap();
        hear(3, 3).unwrap();
        let told = |heard: Result<(), WireguardError>| heard.unwrap_err().to_string();
        assert!(told(hear(3, 1)).contains("oslo shows a WireGuard key that is dallas's"));
        assert!(told(hear(3, 9)).contains("that is this host's"));
        // The first eight bytes are the address, which belongs to one key.
        let mut same = end(1);
        same.key[8] = 0;
        assert!(wireguard.hear(MigrationId([3; 16]), same).is_err());
        assert_eq!(wireguard.theirs(MigrationId([3; 16])), Some(end(3)), "what was heard before stays");
        hear(2, 2).unwrap(); // it was started anew
    }

    #[tokio::test]
    async fn what_is_to_be_inside_never_goes_without() {
        let wireguard = begun(&[(1, "dallas")]);
        let [inside, plain] = [1, 2].map(|migration| MigrationId([migration; 16]));
        assert!(matches!(wireguard.inside(plain), Ok(None)));
        assert!(wireguard.inside(inside).is_err(), "the other host's key is not there");
        wireguard.hear(inside, end(1)).unwrap();
        assert!(wireguard.inside(inside).is_err(), "this host's end does not stand");
        *wireguard.ours.borrow_mut() = Some(end(9));
        let ends = wireguard.inside(inside).unwrap().unwrap();
        assert_eq!(ends.local.to_string(), "fe80::907:707:707:707");
        assert_eq!((ends.remote, ends.port), (address_of(&end(1).key), 16_520));
    }
}
