//! What a tunnel asks of the kernel's links, over rtnetlink: find, create, plug, set, remove. Nothing here knows what
//! a tunnel is.

use std::{io::ErrorKind, net::IpAddr, path::Path};

use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridgePort, LinkDelRequest, LinkMessageBuilder, LinkUnspec,
    packet_route::link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
    },
};

use super::TunnelError;

/// The group of interfaces ("ip link show group") that are put into it to be removed: "LSM" in ASCII, lest it be anybody
/// else's.
const DOOMED: u32 = 0x4c_534d;

/// An open rtnetlink socket.
#[derive(Clone)]
pub(super) struct Links {
    handle: Handle,
}

/// One link, as the kernel describes it.
pub(super) struct Link(LinkMessage);

impl Link {
    pub(super) fn index(&self) -> u32 {
        self.0.header.index
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// The bridge it is plugged into.
    pub(super) fn master(&self) -> Option<u32> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Controller(0) => None,
            LinkAttribute::Controller(index) => Some(*index),
            _ => None,
        })
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.info().any(|info| *info == LinkInfo::Kind(InfoKind::Bridge))
    }

    pub(super) fn is_wireguard(&self) -> bool {
        self.info().any(|info| *info == LinkInfo::Kind(InfoKind::Wireguard))
    }

    pub(super) fn mtu(&self) -> Option<u32> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        })
    }

    /// Frames that have come out of it since it was made.
    pub(super) fn received(&self) -> Option<u64> {
        self.0.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(counts) => Some(counts.rx_packets),
            _ => None,
        })
    }

    pub(super) fn data(&self) -> Option<&InfoData> {
        self.info().find_map(|info| match info {
            LinkInfo::Data(data) => Some(data),
            _ => None,
        })
    }

    fn info(&self) -> impl Iterator<Item = &LinkInfo> {
        self.0.attributes.iter().flat_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.as_slice(),
            _ => &[],
        })
    }
}

impl Links {
    /// Opens the socket in the network namespace of the calling thread. Needs a tokio runtime.
    pub(super) fn open() -> Result<Self, TunnelError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|source| TunnelError::Io { what: "open a route netlink socket".into(), source })?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(super) async fn find(&self, name: &str) -> Result<Option<Link>, TunnelError> {
        let answer = self.handle.link().get().match_name(name).execute().try_next().await;
        found(answer, || format!("look up the interface {name}"))
    }

    pub(super) async fn find_index(&self, index: u32) -> Result<Option<Link>, TunnelError> {
        let answer = self.handle.link().get().match_index(index).execute().try_next().await;
        found(answer, || format!("look up the interface with index {index}"))
    }

    pub(super) async fn need(&self, name: &str) -> Result<Link, TunnelError> {
        self.find(name).await?.ok_or_else(|| TunnelError::Missing(name.to_owned()))
    }

    pub(super) async fn all(&self) -> Result<Vec<Link>, TunnelError> {
        let links: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("list the interfaces"))?;
        Ok(links.into_iter().map(Link).collect())
    }

    /// Creates a link; that it exists already is the caller's business, so `EEXIST` is an error here.
    pub(super) async fn create(&self, name: &str, message: LinkMessage) -> Result<Link, TunnelError> {
        self.handle.link().add(message).execute().await.map_err(failed(format!("create the interface {name}")))?;
        self.need(name).await
    }

    /// Removes a link. Gone already is success.
    pub(super) async fn delete(&self, name: &str) -> Result<(), TunnelError> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        match self.handle.link().del(link.index()).execute().await {
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            other => other.map_err(failed(format!("remove the interface {name}"))),
        }
    }

    /// Removes the links of these names in one piece: what is removed one by one waits each time until no CPU uses it any
    /// more, and all that changes links waits with it. Gone already is success.
    pub(super) async fn delete_together(&self, names: &[String]) -> Result<(), TunnelError> {
        let mut marked = false;
        for name in names {
            if let Some(link) = self.find(name).await? {
                let message =
                    LinkUnspec::new_with_index(link.index()).append_extra_attribute(LinkAttribute::Group(DOOMED));
                match self.handle.link().set(message.build()).execute().await {
                    Err(error) if is(&error, Errno::ENODEV) => {}
                    other => {
                        other.map_err(failed(format!("change the interface {name}")))?;
                        marked = true;
                    }
                }
            }
        }
        if !marked {
            return Ok(());
        }
        let mut group = LinkMessage::default();
        group.attributes.push(LinkAttribute::Group(DOOMED));
        match LinkDelRequest::new_with_message(self.handle.clone(), group).execute().await {
            Err(error) if is(&error, Errno::ENODEV) => Ok(()),
            other => other.map_err(failed(format!("remove the interfaces {}", names.join(", ")))),
        }
    }

    /// Keeps the host's own IP stack off a link that is about to come up: no link-local address, no IPv6 at all.
    pub(super) async fn keep_ip_off(&self, name: &str, index: u32) -> Result<(), TunnelError> {
        let generate_none = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])];
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(generate_none))
            .build();
        // A kernel without IPv6 knows neither; then there is nothing to keep off.
        if let Err(error) = self.handle.link().set(message).execute().await
            && !is(&error, Errno::EAFNOSUPPORT)
        {
            return Err(failed(format!("turn IPv6 addresses off on {name}"))(error));
        }
        let switch = Path::new("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6");
        match std::fs::write(&switch, "1") {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(TunnelError::Io { what: format!("write {}", switch.display()), source: error })
            }
            _ => Ok(()),
        }
    }

    /// Gives a link an address. That it has it already is success.
    pub(super) async fn address(&self, name: &str, index: u32, address: IpAddr, prefix: u8) -> Result<(), TunnelError> {
        let request = self.handle.address().add(index, address, prefix).replace();
        request.execute().await.map_err(failed(format!("give {name} the address {address}")))
    }

    pub(super) async fn set(
        &self,
        name: &str,
        index: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), TunnelError> {
        let message = change(LinkUnspec::new_with_index(index)).build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("change the interface {name}")))
    }

    pub(super) async fn set_port(
        &self,
        name: &str,
        index: u32,
        change: impl FnOnce(LinkMessageBuilder<LinkBridgePort>) -> LinkMessageBuilder<LinkBridgePort>,
    ) -> Result<(), TunnelError> {
        let message = change(LinkBridgePort::new(index)).build();
        let request = self.handle.link().set_port(message);
        request.execute().await.map_err(failed(format!("change the bridge port {name}")))
    }
}

fn found(
    answer: Result<Option<LinkMessage>, rtnetlink::Error>,
    what: impl FnOnce() -> String,
) -> Result<Option<Link>, TunnelError> {
    match answer {
        Ok(link) => Ok(link.map(Link)),
        Err(error) if is(&error, Errno::ENODEV) => Ok(None),
        Err(error) => Err(failed(what())(error)),
    }
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> TunnelError {
    let what = what.into();
    move |source| TunnelError::Kernel { what, source }
}

fn is(error: &rtnetlink::Error, errno: Errno) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -(errno as i32))
}
