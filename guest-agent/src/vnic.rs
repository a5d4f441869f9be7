//! The machine's network cards as LSM sees them: found by MAC, raised, given addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::{StreamExt, TryStreamExt};
use lsm_protocol::Mac;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage},
};
use nix::errno::Errno;
use rtnetlink::{AddressMessageBuilder, Handle, LinkUnspec};

pub use crate::netlink::Changed;

/// A network card of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vnic {
    pub index: u32,
    pub name: String,
    pub mac: Mac,
    /// Administratively up.
    pub up: bool,
    /// Plugged in, as far as the card can tell; false while it is down.
    pub carrier: bool,
    /// In bytes.
    pub mtu: u32,
    /// Addresses and their prefix lengths; IPv6 link-local ones included.
    pub addresses: Vec<(IpAddr, u8)>,
}

impl Vnic {
    /// The addresses of a family, with their prefix lengths; of IPv6 none that is link-local.
    pub fn of_family(&self, v6: bool) -> impl Iterator<Item = (IpAddr, u8)> + Clone {
        self.addresses.iter().copied().filter(move |(address, _)| match address {
            IpAddr::V4(_) => !v6,
            IpAddr::V6(a) => v6 && !a.is_unicast_link_local(),
        })
    }
}

/// An IPv6 address that the kernel made of a router's advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Autoconfigured {
    pub address: Ipv6Addr,
    /// Not known yet to be the only one on the link.
    pub tentative: bool,
    /// Known not to be.
    pub duplicate: bool,
}

/// What could not be done to which card.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: String,
    source: Cause,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("the kernel refuses with {0}")]
    Refused(Errno),
    #[error(transparent)]
    Netlink(rtnetlink::Error),
    #[error(transparent)]
    Socket(std::io::Error),
}

impl Error {
    /// The kernel's errno, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self.source {
            Cause::Refused(errno) => Some(errno),
            _ => None,
        }
    }
}

/// The cards of the network namespace that the calling thread was in when it was opened.
pub struct Vnics {
    handle: Handle,
}

impl Vnics {
    /// Opens the socket and leaves its task to the current runtime, until this is dropped.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| Error { what: "reach the network cards".to_owned(), source: Cause::Socket(error) })?;
        tokio::spawn(connection);
        Ok(Vnics { handle })
    }

    /// All Ethernet cards with an address, in the order of their index.
    pub async fn list(&self) -> Result<Vec<Vnic>, Error> {
        let failed = |error| failed("list the network cards", error);
        let mut vnics: Vec<Vnic> = self
            .handle
            .link()
            .get()
            .execute()
            .try_filter_map(async |link| Ok(read_link(&link)))
            .try_collect()
            .await
            .map_err(failed)?;
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses.try_next().await.map_err(failed)? {
            if let Some(vnic) = vnics.iter_mut().find(|vnic| vnic.index == message.header.index) {
                vnic.addresses.extend(read_address(&message));
            }
        }
        vnics.sort_by_key(|vnic| vnic.index);
        Ok(vnics)
    }

    /// The card with this address; `None` when there is none. Where a stacked device (bridge, VLAN) bears the address of
    /// its card, the card is the one with the smallest index.
    pub async fn find(&self, mac: Mac) -> Result<Option<Vnic>, Error> {
        Ok(self.list().await?.into_iter().find(|vnic| vnic.mac == mac))
    }

    /// The addresses that the kernel has made itself for a card; not the link-local one.
    pub async fn autoconfigured(&self, index: u32) -> Result<Vec<Autoconfigured>, Error> {
        let failed = |error| failed("list the addresses", error);
        let of_card = |message: &AddressMessage| message.header.index == index;
        let all = self.handle.address().get().execute();
        let read = async |message| Ok(Some(message).filter(of_card).as_ref().and_then(read_autoconfigured));
        all.try_filter_map(read).try_collect().await.map_err(failed)
    }

    /// Addresses of a card that nothing may be sent from, not yet or not at all: somebody else may have them, or has.
    pub async fn unusable(&self, index: u32) -> Result<Vec<IpAddr>, Error> {
        let failed = |error| failed("list the addresses", error);
        let of_card = |message: &AddressMessage| message.header.index == index;
        let all = self.handle.address().get().execute();
        let read = async |message| {
            let found = Some(message).filter(of_card).filter(|message| {
                let flags = flags(message);
                let waits = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
                waits || flags.contains(AddressFlags::Dadfailed)
            });
            Ok(found.as_ref().and_then(read_address).map(|(address, _)| address))
        };
        all.try_filter_map(read).try_collect().await.map_err(failed)
    }

    /// Raises or lowers a card.
    pub async fn set_up(&self, vnic: &Vnic, up: bool) -> Result<Changed, Error> {
        let word = if up { "up" } else { "down" };
        let what = || format!("set vNIC {} ({}) {word}", vnic.mac, vnic.name);
        let now = self.link(vnic.index, &what).await?;
        if now.header.flags.contains(LinkFlags::Up) == up {
            return Ok(Changed::No);
        }
        let builder = LinkUnspec::new_with_index(vnic.index);
        let message = if up { builder.up() } else { builder.down() }.build();
        self.handle.link().set(message).execute().await.map_err(|error| failed(what(), error))?;
        Ok(Changed::Yes)
    }

    /// Sets the MTU, in bytes.
    pub async fn set_mtu(&self, vnic: &Vnic, mtu: u32) -> Result<Changed, Error> {
        let what = || format!("set the MTU of vNIC {} ({}) to {mtu}", vnic.mac, vnic.name);
        let now = self.link(vnic.index, &what).await?;
        if now.attributes.contains(&LinkAttribute::Mtu(mtu)) {
            return Ok(Changed::No);
        }
        let message = LinkUnspec::new_with_index(vnic.index).mtu(mtu).build();
        self.handle.link().set(message).execute().await.map_err(|error| failed(what(), error))?;
        Ok(Changed::Yes)
    }

    /// Adds an address and with it the route to its prefix; for IPv6 without duplicate address detection, which would hold
    /// back joins for 1 to 2 s.
    pub async fn add_address(&self, vnic: &Vnic, address: IpAddr, prefix: u8) -> Result<Changed, Error> {
        let mut message = address_message(vnic.index, address, prefix);
        if address.is_ipv6() {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewAddress(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE;
        let mut handle = self.handle.clone();
        let what = || format!("add {address}/{prefix} to vNIC {} ({})", vnic.mac, vnic.name);
        let mut answers = handle.request(request).map_err(|error| failed(what(), error))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.code.is_some()
            {
                return changed(Err(rtnetlink::Error::NetlinkError(error)), &[Errno::EEXIST], what);
            }
        }
        Ok(Changed::Yes)
    }

    /// Removes an address.
    pub async fn remove_address(&self, vnic: &Vnic, address: IpAddr, prefix: u8) -> Result<Changed, Error> {
        let result = self.handle.address().del(address_message(vnic.index, address, prefix)).execute().await;
        let what = || format!("remove {address}/{prefix} from vNIC {} ({})", vnic.mac, vnic.name);
        changed(result, &[Errno::EADDRNOTAVAIL, Errno::ENODEV], what)
    }

    async fn link(&self, index: u32, what: &impl Fn() -> String) -> Result<LinkMessage, Error> {
        let link = self.handle.link().get().match_index(index).execute().boxed().try_next().await;
        match link {
            Ok(Some(link)) => Ok(link),
            Ok(None) => Err(Error { what: what(), source: Cause::Refused(Errno::ENODEV) }),
            Err(error) => Err(failed(what(), error)),
        }
    }
}

fn address_message(index: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    match address {
        IpAddr::V4(v4) => AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4, prefix).build(),
        IpAddr::V6(v6) => AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6, prefix).build(),
    }
}

fn read_link(link: &LinkMessage) -> Option<Vnic> {
    if link.header.link_layer_type != LinkLayerType::Ether {
        return None;
    }
    let (mut name, mut mac, mut mtu) = (None, None, 0);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            _ => {}
        }
    }
    let flags = link.header.flags;
    Some(Vnic {
        index: link.header.index,
        name: name?,
        mac: mac?,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        mtu,
        addresses: Vec::new(),
    })
}

/// On a point-to-point link `Address` is the peer's; `Local` is ours where it is given.
fn read_address(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let find = |pick: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(pick);
    let local = find(|attribute| if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None });
    let plain =
        find(|attribute| if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None });
    Some((local.or(plain)?, message.header.prefix_len))
}

fn flags(message: &AddressMessage) -> AddressFlags {
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    flags.unwrap_or(AddressFlags::empty())
}

fn read_autoconfigured(message: &AddressMessage) -> Option<Autoconfigured> {
    let (IpAddr::V6(address), _) = read_address(message)? else { return None };
    let flags = flags(message);
    let has = |flag| flags.contains(flag);
    let ours = !address.is_unicast_link_local() && !has(AddressFlags::Permanent);
    ours.then(|| Autoconfigured {
        address,
        tentative: has(AddressFlags::Tentative) || has(AddressFlags::Optimistic),
        duplicate: has(AddressFlags::Dadfailed),
    })
}

fn changed(
    result: Result<(), rtnetlink::Error>,
    already: &[Errno],
    what: impl Fn() -> String,
) -> Result<Changed, Error> {
    match result.map_err(|error| failed(what(), error)) {
        Ok(()) => Ok(Changed::Yes),
        Err(error) if error.errno().is_some_and(|errno| already.contains(&errno)) => Ok(Changed::No),
        Err(error) => Err(error),
    }
}

fn failed(what: impl Into<String>, error: rtnetlink::Error) -> Error {
    let source = match error {
        rtnetlink::Error::NetlinkError(message) => match message.code {
            Some(code) => Cause::Refused(Errno::from_raw(code.get().saturating_neg())),
            None => Cause::Netlink(rtnetlink::Error::NetlinkError(message)),
        },
        other => Cause::Netlink(other),
    };
    Error { what: what.into(), source }
}
