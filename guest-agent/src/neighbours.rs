//! Who answers on the link: asking whether a gateway is there, telling everybody where an address is, and making the
//! kernel ask again.
//!
//! IPv4 speaks ARP (RFC 826, RFC 5227), IPv6 neighbour discovery (RFC 4861), either on a packet socket.

mod discovery;

pub(crate) use discovery::{read_advertisement, read_frame};

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use lsm_protocol::Mac;
use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    libc,
    net::if_::if_indextoname,
    sys::socket::{LinkAddr, bind},
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{MissedTickBehavior, interval},
};

use crate::{
    netlink::{Changed, Channel, Error, Message},
    raw::watch,
    routing::Exit,
};

/// Between two questions. The answer of a gateway behind a tunnel takes its round trip; only loss makes a second one useful.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// What was announced is announced again after these.
const AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// Asks, from `source`, who has `target`, on the card `ifindex` whose address is `mac`, again every 100 ms until somebody
/// answers; gives the answerer's MAC. There is no deadline: the caller sets one by dropping the future. The address need
/// not be configured.
///
/// # Errors
/// When the card is gone or down, the addresses are of different families, or CAP_NET_RAW is missing.
pub async fn probe(ifindex: u32, mac: Mac, source: IpAddr, target: IpAddr) -> Result<Mac, Error> {
    let asked = async {
        match (source, target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let question = arp(ARP_REQUEST, (mac, source), (UNKNOWN, target), BROADCAST);
                let read = |bytes: &[u8]| read_arp_reply(bytes, mac, target);
                ask(packet_socket(ifindex, ARP)?, &question, read).await
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let question = discovery::solicitation(mac, source, target);
                let read = |bytes: &[u8]| read_advertisement(read_frame(bytes)?.1, target);
                ask(discovery::socket(ifindex)?, &question, read).await
            }
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "an IPv4 and an IPv6 address")),
        }
    };
    let what = || format!("probe {target} from {source} ({mac}, interface {ifindex})");
    asked.await.map_err(|error| Error::new(what(), error))
}

/// Waits until the gateways of all these exits of one card have answered. `silent` is told which is waited for. There is
/// no deadline, as of [`probe`].
///
/// # Errors
/// As of [`probe`].
pub async fn all_answer(mac: Mac, exits: Vec<Exit>, silent: impl Fn(IpAddr)) -> Result<(), Error> {
    let mut left: Vec<IpAddr> = exits.iter().map(|exit| exit.gateway).collect();
    let ask =
        |exit: Exit| async move { probe(exit.ifindex, mac, exit.source, exit.gateway).await.map(|_| exit.gateway) };
    let mut answers: FuturesUnordered<_> = exits.into_iter().map(ask).collect();
    loop {
        let Some(first) = left.first() else { return Ok(()) };
        silent(*first);
        match answers.next().await {
            Some(answer) => {
                let gateway = answer?;
                left.retain(|one| *one != gateway);
            }
            None => return Ok(()),
        }
    }
}

/// The routers of one card's link: asks them, and hears what they say.
pub(crate) struct Routers {
    ifindex: u32,
    mac: Mac,
    socket: AsyncFd<Socket>,
}

impl Routers {
    /// # Errors
    /// When the card is gone, or CAP_NET_RAW is missing.
    pub(crate) fn of(ifindex: u32, mac: Mac) -> io::Result<Routers> {
        Ok(Routers { ifindex, mac, socket: watch(discovery::socket(ifindex)?, Interest::READABLE)? })
    }

    /// Whether they could be asked: not before the card has its link-local address, nor while its queue is full.
    ///
    /// # Errors
    /// When the card is gone or down.
    pub(crate) fn ask(&self) -> io::Result<bool> {
        let Some(question) = discovery::router_solicitation(self.ifindex, self.mac)? else { return Ok(false) };
        say(self.socket.get_ref(), &question)
    }

    /// The next message of a neighbour or router, and whose it is.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) async fn hear<T>(&self, read: impl Fn(Ipv6Addr, &[u8]) -> Option<T>) -> io::Result<T> {
        hear(&self.socket, |frame| read_frame(frame).and_then(|(from, message)| read(from, message))).await
    }
}

/// Tells the link that `address` is at `mac`: a gratuitous ARP in both forms (stacks differ in which they heed), or an
/// unsolicited neighbour advertisement.
///
/// # Errors
/// When the card is gone or down, or CAP_NET_RAW is missing.
pub fn announce(ifindex: u32, mac: Mac, address: IpAddr) -> Result<(), Error> {
    let announced = || match address {
        IpAddr::V4(v4) => {
            let socket = packet_socket(ifindex, ARP)?;
            socket.send(&arp(ARP_REQUEST, (mac, v4), (UNKNOWN, v4), BROADCAST))?;
            socket.send(&arp(ARP_REPLY, (mac, v4), (mac, v4), BROADCAST))
        }
        IpAddr::V6(v6) => packet_socket(ifindex, libc::ETH_P_IPV6 as u16)?.send(&discovery::advertisement(mac, v6)),
    };
    announced()
        .map(drop)
        .map_err(|error: io::Error| Error::new(format!("announce {address} at {mac} on interface {ifindex}"), error))
}

/// The same again, after longer and longer: it may be lost, and nobody answers.
pub async fn announce_again(ifindex: u32, mac: Mac, address: IpAddr) {
    for wait in AGAIN {
        tokio::time::sleep(wait).await;
        let _ = announce(ifindex, mac, address); // a card that is gone needs none
    }
}

/// The kernel's own table of neighbours, of the namespace that the calling thread was in when it was opened.
pub struct Neighbours {
    channel: Channel,
}

impl Neighbours {
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let channel =
            Channel::open(libc::NETLINK_ROUTE).map_err(|cause| Error::new("reach the neighbour table", cause))?;
        Ok(Neighbours { channel })
    }

    /// Makes the kernel ask the neighbour again at once, while it goes on using what it knows; an entry that knows nothing
    /// is deleted, so that the next packet asks. `Changed::No` when there is no entry.
    pub fn refresh(&mut self, ifindex: u32, neighbour: IpAddr) -> Result<Changed, Error> {
        const RTM_NEWNEIGH: u16 = 28;
        const RTM_DELNEIGH: u16 = 29;

        let probe = entry(RTM_NEWNEIGH, libc::NLM_F_REPLACE, ifindex, neighbour, libc::NUD_PROBE);
        let done = match self.channel.change(probe) {
            // Without a link-layer address, probing is refused (__neigh_update).
            Err(cause) if cause.errno() == Some(Errno::EINVAL) => {
                self.channel.change(entry(RTM_DELNEIGH, 0, ifindex, neighbour, libc::NUD_NONE))
            }
            other => other,
        };
        match done {
            Ok(()) => Ok(Changed::Yes),
            Err(cause) if cause.errno() == Some(Errno::ENOENT) => Ok(Changed::No),
            Err(cause) => Err(Error::new(format!("refresh the neighbour {neighbour} on interface {ifindex}"), cause)),
        }
    }
}

fn entry(kind: u16, flags: i32, ifindex: u32, neighbour: IpAddr, state: u16) -> Message {
    const NDA_DST: u16 = 1;

    let (family, octets) = match neighbour {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    };
    // struct ndmsg: family u8, padding, interface s32, state u16, flags u8, type u8
    let mut fixed = [0; 12];
    fixed[0] = family as u8;
    fixed[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    fixed[8..10].copy_from_slice(&state.to_ne_bytes());
    Message::new(kind, flags).raw(&fixed).attribute(NDA_DST, &octets)
}

async fn ask(socket: Socket, question: &[u8], read: impl Fn(&[u8]) -> Option<Mac>) -> io::Result<Mac> {
    let socket = watch(socket, Interest::READABLE)?;
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => drop(say(socket.get_ref(), question)?),
            answer = hear(&socket, &read) => return answer,
        }
    }
}

/// Whether it went out. A full queue is loss, and loss is answered by the next time.
fn say(socket: &Socket, frame: &[u8]) -> io::Result<bool> {
    match socket.send(frame) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(false),
        sent => sent.map(|_| true),
    }
}

/// The first frame in which `read` finds something.
async fn hear<T>(socket: &AsyncFd<Socket>, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<T> {
    let mut buffer = [0; 1514];
    loop {
        let mut guard = socket.readable().await?;
        match guard.try_io(|socket| io::Read::read(&mut socket.get_ref(), &mut buffer)) {
            Ok(length) => {
                if let Some(found) = read(&buffer[..length?]) {
                    return Ok(found);
                }
            }
            Err(_would_block) => {}
        }
    }
}

/// A packet socket for one protocol (ETH_P_*) on one card.
pub(crate) fn packet_socket(ifindex: u32, protocol: u16) -> io::Result<Socket> {
    let protocol = i32::from(protocol.to_be());
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.set_nonblocking(true)?;
    // nix can only *read* a sockaddr_ll; the C library hands out one per card, and its protocol of 0 leaves the socket's.
    bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &link_address(ifindex)?)?;
    Ok(socket)
}

fn link_address(ifindex: u32) -> io::Result<LinkAddr> {
    getifaddrs()?
        .filter_map(|interface| interface.address?.as_link_addr().copied())
        .find(|address| address.ifindex() == ifindex as usize)
        .ok_or_else(|| io::Error::from(Errno::ENODEV))
}

/// The name behind an index, for what is asked by name.
pub(crate) fn interface_name(ifindex: u32) -> io::Result<std::ffi::CString> {
    Ok(if_indextoname(ifindex)?)
}

const ARP: u16 = libc::ETH_P_ARP as u16;
const BROADCAST: Mac = Mac([0xff; 6]);
const UNKNOWN: Mac = Mac([0; 6]);
const ARP_REQUEST: u16 = 1;
const ARP_REPLY: u16 = 2;
const ARP_LENGTH: usize = 42;

/// Ethernet header {destination, source, 0x0806}, then ARP for Ethernet and IPv4 {1, 0x0800, 6, 4, operation, sender, target}.
fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr), to: Mac) -> [u8; ARP_LENGTH] {
    let mut frame = [0; ARP_LENGTH];
    frame[0..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&sender.0.0);
    frame[12..20].copy_from_slice(&ARP_START);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&sender.0.0);
    frame[28..32].copy_from_slice(&sender.1.octets());
    frame[32..38].copy_from_slice(&target.0.0);
    frame[38..42].copy_from_slice(&target.1.octets());
    frame
}

const ARP_START: [u8; 8] = [0x08, 0x06, 0, 1, 0x08, 0, 6, 4];

/// The MAC in an answer to us from `target`.
pub(crate) fn read_arp_reply(frame: &[u8], us: Mac, target: Ipv4Addr) -> Option<Mac> {
    let frame: &[u8; ARP_LENGTH] = frame.first_chunk()?; // short frames are padded
    let right = frame[12..20] == ARP_START
        && frame[20..22] == ARP_REPLY.to_be_bytes()
        && frame[28..32] == target.octets()
        && frame[32..38] == us.0;
    right.then(|| Mac([frame[22], frame[23], frame[24], frame[25], frame[26], frame[27]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_us_from_the_target_counts() {
        let (us, gateway) = (Mac([2; 6]), Mac([4; 6]));
        let (ours, theirs) = (Ipv4Addr::new(192, 0, 2, 7), Ipv4Addr::new(192, 0, 2, 254));
        let answer = arp(ARP_REPLY, (gateway, theirs), (us, ours), us);
        assert_eq!(read_arp_reply(&answer, us, theirs), Some(gateway));
        assert_eq!(read_arp_reply(&[&answer[..], &[0; 18]].concat(), us, theirs), Some(gateway));
        for wrong in [
            arp(ARP_REQUEST, (gateway, theirs), (us, ours), us),
            arp(ARP_REPLY, (gateway, ours), (us, ours), us),
            arp(ARP_REPLY, (gateway, theirs), (gateway, ours), us),
        ] {
            assert_eq!(read_arp_reply(&wrong, us, theirs), None);
        }
        for length in 0..ARP_LENGTH {
            assert_eq!(read_arp_reply(&answer[..length], us, theirs), None);
        }
    }
}
