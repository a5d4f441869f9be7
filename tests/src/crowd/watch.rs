//! Somebody on the path between the hosts, who reads all that passes; and what a VM and a client say meanwhile.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    netns::Netns,
    shell::{During as _, LabError, Result, wait_for},
};

/// What is in each frame of the VM's and of the client's, again and again.
const SAID: &[u8] = b"said in confidence ";
/// Not of a VM's: what a bridge learns of it is nothing that a move leaves.
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];
/// Ethernet's header and a LAN's full packet.
const FULL: usize = 14 + 1_500;
/// A frame crosses within this, a handshake of WireGuard's before it that is tried every 5 s.
const CROSSES: Duration = Duration::from_secs(20);
/// So long nothing may come.
const LOST: Duration = Duration::from_secs(3);
/// VXLAN's port, and WireGuard's as lsm-hook has it.
const VXLAN: u16 = 4_789;
const WIREGUARD: u16 = 16_520;

/// Packets that passed between the hosts, and how their services ran meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Those in which something could be read that was said.
    pub readable: usize,
    /// First or only parts of UDP packets to a port.
    pub vxlan: usize,
    pub wireguard: usize,
    /// To other ports.
    pub other_udp: usize,
    /// Later parts of packets that were too large.
    pub fragments: usize,
    /// Hosts whose service AppArmor confines, and does not merely watch.
    pub confined: usize,
}

pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: JoinHandle<Result<()>>,
}

impl Watch {
    pub(super) fn start(between: &Netns) -> Result<Watch> {
        // All protocols, of all interfaces there.
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = between.enter(|| Socket::new(Domain::PACKET, Type::RAW, Some(all)))?;
        let mut socket = socket.during(|| "open a packet socket".into())?;
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20)).during(|| "enlarge its buffer".into())?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).during(|| "set a time limit".into())?;
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let (ends, shared) = (stop.clone(), seen.clone());
        let thread = thread::spawn(move || {
            let mut frame = vec![0; 1 << 16];
            while !ends.load(Ordering::Relaxed) {
                match socket.read(&mut frame) {
                    Ok(length) => look(&frame[..length], &mut shared.lock().unwrap_or_else(PoisonError::into_inner)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).during(|| "look at what passes".into()),
                }
            }
            Ok(())
        });
        Ok(Watch { stop, seen, thread })
    }

    pub(super) fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| LabError::Other("the watcher panicked".into()))??;
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(seen)
    }
}

fn look(frame: &[u8], seen: &mut Seen) {
    seen.readable += usize::from(frame.windows(SAID.len()).any(|part| part == SAID));
    // IPv4 without options, as the hosts speak it.
    let (Some([8, 0]), Some(header)) = (frame.get(12..14), frame.get(14..34)) else { return };
    let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
    let port = frame.get(36..38).map(|port| u16::from_be_bytes([port[0], port[1]]));
    match (i32::from(header[9]), offset, port) {
        (libc::IPPROTO_UDP, 0, Some(VXLAN)) => seen.vxlan += 1,
        (libc::IPPROTO_UDP, 0, Some(WIREGUARD)) => seen.wireguard += 1,
        (libc::IPPROTO_UDP, 0, _) => seen.other_udp += 1,
        (libc::IPPROTO_UDP, ..) => seen.fragments += 1,
        _ => {}
    }
}

/// A full frame from the client to the vNIC, and one back: through the advance tunnel, both ways.
pub(super) fn cross(client: &File, vnic: &File, mac: [u8; 6], address: Option<IpAddr>) -> Result<()> {
    let [there, back] = frames(mac, address)?;
    within("the client's frame at the vNIC", client, vnic, &there, CROSSES)?;
    within("the vNIC's frame at the client", vnic, client, &back, CROSSES)
}

/// No frame of the client's comes to the vNIC any more.
pub(super) fn lost(client: &File, vnic: &File, mac: [u8; 6], address: Option<IpAddr>) -> Result<()> {
    let [there, _] = frames(mac, address)?;
    thread::sleep(Duration::from_millis(200)); // for what was on its way
    let mut frame = vec![0; FULL + 1];
    let mut at = vnic;
    while let Ok(1..) = at.read(&mut frame) {}
    match within("nothing", client, vnic, &there, LOST) {
        Err(LabError::Timeout { .. }) => Ok(()),
        Ok(()) => Err(LabError::Other("a host with another key is heard".into())),
        Err(error) => Err(error),
    }
}

fn frames(mac: [u8; 6], address: Option<IpAddr>) -> Result<[Vec<u8>; 2]> {
    let Some(IpAddr::V4(address)) = address else { return Err(LabError::Other("the VM has no IPv4 address".into())) };
    let lan = Ipv4Addr::new(10, 2, 0, 9);
    Ok([frame(CLIENT, mac, lan, address), frame(mac, CLIENT, address, lan)])
}

fn within(what: &str, mut from: &File, mut to: &File, sent: &[u8], limit: Duration) -> Result<()> {
    let mut frame = vec![0; FULL + 1];
    wait_for(what, limit, || {
        // What is lost on its way is lost.
        let _ = from.write(sent);
        thread::sleep(Duration::from_millis(20));
        while let Ok(length) = to.read(&mut frame) {
            if frame[..length] == *sent {
                return Some(());
            }
        }
        None
    })
}

fn frame(from: [u8; 6], to: [u8; 6], source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&((FULL - 14) as u16).to_be_bytes());
    header[8..10].copy_from_slice(&[64, 253]); // for experiments (RFC 3692)
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    // A kernel whose bridges ask iptables drops what has no right sum (RFC 1071).
    let words = header.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = !((words.sum::<u64>() % 0xffff) as u16);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = [&to[..], &from, &[8, 0], &header].concat();
    let said = SAID.iter().cycle().take(FULL - frame.len());
    frame.extend(said);
    frame
}
