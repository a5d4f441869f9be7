//! The sign of life of a vNIC on a port: its bridge hears its MAC there.

use std::{io, time::SystemTime};

use lsm_protocol::Mac;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState},
};
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use rtnetlink::packet_core::Nla;

use super::{DivertError, FDB_NOTIFY, FDB_NOTIFY_INACTIVE, Fdb, NDA_FDB_EXT_ATTRS, NFEA_ACTIVITY_NOTIFY, NLA_F_NESTED};

const RTNLGRP_NEIGH: u32 = 3;
// Thousands of notifications: a host's whole neighbour table may change meanwhile.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Waits for a bridge to hear a MAC on one of its ports.
pub struct LearningWatch {
    socket: TokioSocket,
    fdb: Fdb,
    bridge: u32,
    port: u32,
    port_name: String,
    mac: Mac,
    asked: bool,
}

impl LearningWatch {
    /// Starts to listen: nothing from here on is missed. Needs a tokio runtime.
    ///
    /// # Errors
    /// When an interface does not exist or the kernel gives no socket.
    pub fn start(bridge: &str, port: &str, mac: Mac) -> Result<Self, DivertError> {
        let fdb = Fdb::open()?;
        let watch = |source| DivertError::Watch { port: port.to_owned(), mac, source };
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(watch)?;
        setsockopt(socket.socket_ref(), RcvBufForce, &RECEIVE_BUFFER).map_err(|e| watch(e.into()))?;
        socket.socket_mut().bind(&SocketAddr::new(0, 1 << (RTNLGRP_NEIGH - 1))).map_err(watch)?;
        let (bridge, index) = (fdb.port(bridge)?.index, fdb.port(port)?.index);
        Ok(Self { socket, fdb, bridge, port: index, port_name: port.to_owned(), mac, asked: false })
    }

    /// Returns when the bridge has heard the MAC on the port, with the time at which this host knew it. At once, if
    /// that was before the watch began. May be dropped and called again.
    ///
    /// # Errors
    /// When the kernel stops answering, or the bridge is gone.
    pub async fn heard(&mut self) -> Result<SystemTime, DivertError> {
        self.wait().await.map_err(|source| DivertError::Watch { port: self.port_name.clone(), mac: self.mac, source })
    }

    async fn wait(&mut self) -> io::Result<SystemTime> {
        loop {
            if !self.asked {
                let entry = self.fdb.0.fdb_entry(self.bridge, self.mac.0)?;
                self.asked = true;
                if entry.is_some_and(|entry| self.is_sign(&entry)) {
                    return Ok(SystemTime::now());
                }
            }
            match self.socket.recv_from_full().await {
                Ok((bytes, _)) if self.any_sign(&bytes) => return Ok(SystemTime::now()),
                Ok(_) => {}
                // Notifications were lost: the table itself knows.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => self.asked = false,
                Err(error) => return Err(error),
            }
        }
    }

    fn any_sign(&self, mut bytes: &[u8]) -> bool {
        while let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(entry)) = &message.payload
                && self.is_sign(entry)
            {
                return true;
            }
            let length = (message.header.length as usize).next_multiple_of(4).max(4);
            bytes = bytes.get(length..).unwrap_or_default();
        }
        false
    }

    fn is_sign(&self, entry: &NeighbourMessage) -> bool {
        let ours = NeighbourAttribute::LinkLayerAddress(self.mac.0.to_vec());
        entry.header.family == AddressFamily::Bridge
            && entry.header.ifindex == self.port
            && entry.attributes.contains(&ours)
            && match entry.header.state {
                NeighbourState::Reachable => true,
                // Put there by us: then it says whether the vNIC has been heard since.
                NeighbourState::Noarp => activity(entry).is_some_and(|bits| bits & FDB_NOTIFY_INACTIVE == 0),
                _ => false,
            }
    }
}

/// The bits of an entry that tells of its activity.
fn activity(entry: &NeighbourMessage) -> Option<u8> {
    let value = entry.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Other(nla) if nla.kind() == NDA_FDB_EXT_ATTRS | NLA_F_NESTED => {
            let mut value = vec![0; nla.value_len()];
            nla.emit_value(&mut value);
            Some(value)
        }
        _ => None,
    })?;
    let [_, _, k0, k1, bits, ..] = value[..] else { return None };
    let notifies = u16::from_ne_bytes([k0, k1]) == NFEA_ACTIVITY_NOTIFY && bits & FDB_NOTIFY != 0;
    notifies.then_some(bits)
}
