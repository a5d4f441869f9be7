//! Requests to the kernel's route netlink that are answered before the call returns: no task is switched, nothing is
//! awaited. The kernel does the work inside `send`, so the answer is there when `recv` asks for it.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{RouteAttribute, RouteMessage, RouteMetric, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An open route netlink socket, in the network namespace of the thread that opened it.
pub(crate) struct Rtnl(Socket);

impl Rtnl {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Sends one request and gives the first message of the answer; `None` for a bare acknowledgement.
    pub(crate) fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut found = None;
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let length = (message.header.length as usize).next_multiple_of(4).clamp(4, rest.len().max(4));
                rest = rest.get(length..).unwrap_or_default();
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) => return Ok(found),
                    NetlinkPayload::InnerMessage(inner) => found = found.or(Some(inner)),
                    _ => {}
                }
            }
        }
    }

    /// The link with this name.
    pub(crate) fn link(&self, name: &str) -> io::Result<LinkMessage> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(message)
    }

    /// Frames that user space has read from a tap, ever: a tun device counts a frame as transmitted when it is read
    /// (`tun_put_user`). And frames the tap has dropped because its queue was full.
    pub(crate) fn tap_counts(&self, index: u32) -> io::Result<(u64, u64)> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let link = self.get_link(message)?;
        let stats = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(stats) => Some((stats.tx_packets, stats.tx_dropped)),
            _ => None,
        });
        stats.ok_or_else(|| io::Error::other("the kernel gave no statistics"))
    }

    fn get_link(&self, message: LinkMessage) -> io::Result<LinkMessage> {
        match self.ask(RouteNetlinkMessage::GetLink(message), 0)? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link),
            _ => Err(io::Error::other("the kernel gave no link")),
        }
    }

    /// Whether an address is this host's.
    pub(crate) fn is_own(&self, address: IpAddr) -> io::Result<bool> {
        Ok(self.route(address, None)?.header.kind == RouteType::Local)
    }

    /// The largest packet that goes to there whole, in bytes, by the kernel's present knowledge.
    pub(crate) fn mtu_to(&self, to: IpAddr, from: IpAddr) -> io::Result<u32> {
        let route = self.route(to, Some(from))?;
        let metrics = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics.as_slice()),
            _ => None,
        });
        let learned = metrics.unwrap_or_default().iter().find_map(|metric| match metric {
            RouteMetric::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        if let Some(mtu) = learned {
            return Ok(mtu);
        }
        let mut message = LinkMessage::default();
        message.header.index = route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            })
            .ok_or_else(|| io::Error::other("the kernel's route has no interface"))?;
        let link = self.get_link(message)?;
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        mtu.ok_or_else(|| io::Error::other("the kernel gave no MTU"))
    }

    /// The route that a packet would take.
    fn route(&self, to: IpAddr, from: Option<IpAddr>) -> io::Result<RouteMessage> {
        let (family, whole) = if to.is_ipv4() { (AddressFamily::Inet, 32) } else { (AddressFamily::Inet6, 128) };
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.destination_prefix_length = whole;
        message.attributes.push(RouteAttribute::Destination(to.into()));
        if let Some(from) = from {
            message.header.source_prefix_length = whole;
            message.attributes.push(RouteAttribute::Source(from.into()));
        }
        match self.ask(RouteNetlinkMessage::GetRoute(message), 0)? {
            Some(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
            _ => Err(io::Error::other("the kernel gave no route")),
        }
    }

    /// Where a bridge has a MAC; `None` when it does not know it.
    pub(crate) fn fdb_entry(&self, bridge: u32, mac: [u8; 6]) -> io::Result<Option<NeighbourMessage>> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        message.attributes.push(NeighbourAttribute::Controller(bridge));
        match self.ask(RouteNetlinkMessage::GetNeighbour(message), 0) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(entry))) => Ok(Some(entry)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
