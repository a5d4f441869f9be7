//! Whether a tunnel carries the LAN's full frames: some are sent through it and back. What the kernel knows of the path
//! ([`super::path_mtu`]) is not enough: a network between the hosts may drop fragments, or all of UDP, without a word.
//!
//! The destination asks, the source answers, both at the tunnel's VXLAN device, below the bridges. No such frame comes
//! further: its source address is one that the filters at the far end let through to nobody.
//!
//! ```text
//! Ethernet header | "lsm?" or "lsm!" | migration, 16 | size of the question, 2 | size of the answer, 2 | zeros
//! ```
//!
//! Sizes are in bytes after the Ethernet header, big endian, and true: who reads a frame of another size ignores it.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use lsm_protocol::{
    Mac, MigrationId,
    destination::{Impassable, TRIAL, Way},
};
use nix::libc;
use socket2::{Domain, SockFilter, Socket, Type};
use tokio::{io::unix::AsyncFd, task::AbortHandle, time::Instant};

use super::{TunnelSpec, device, path_mtu};
use crate::raw::{self, link_address};

/// For experiments within one's own network (IEEE 802, local experimental EtherType 1).
const ETHERTYPE: u16 = 0x88b5;
pub(crate) const QUESTION: [u8; 4] = *b"lsm?";
pub(crate) const ANSWER: [u8; 4] = *b"lsm!";
const ETHERNET_HEADER: usize = 14;
/// Ethernet's shortest payload; what is in it needs 24.
const SMALL: u16 = 46;
/// Nobody's address; from a vNIC's LAN end only the vNIC's own comes to the LAN.
const NOBODY: Mac = Mac([0x02, b'l', b's', b'm', 0, 1]);
/// Where the largest packet that comes through is looked for: what tunnels and old links leave of 1500, IPv6's least
/// and IPv4's least.
const COMMON: [u16; 5] = [1_450, 1_400, 1_280, 1_000, 576];
/// What has not come back is sent again after this, and then each time twice as late.
const AGAIN: Duration = Duration::from_millis(100);
/// Questions that one migration can need: who asks more asks in vain.
const MOST_ANSWERS: u32 = 256;

/// The end of a tunnel that frames are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Lan,
    Vm,
}

impl End {
    /// A source address that gets no further than this end. See [`crate::filters`].
    fn stranger(self, vnic: Mac) -> Mac {
        match self {
            End::Lan => NOBODY,
            End::Vm => vnic,
        }
    }
}

/// Answers at one end of a tunnel, until dropped.
pub struct Answering(AbortHandle);

impl Answering {
    /// `asker`: the end that asks. Needs a tokio runtime with a local set.
    ///
    /// # Errors
    /// When the tunnel does not stand.
    pub fn start(spec: &TunnelSpec, asker: End, migration: MigrationId) -> io::Result<Answering> {
        let mut device = Device::open(spec, asker)?;
        let task = tokio::task::spawn_local(async move {
            for _ in 0..MOST_ANSWERS {
                let sizes = match device.hear(QUESTION, migration).await {
                    Ok(sizes) => sizes,
                    Err(error) => {
                        tracing::debug!(%migration, %error, "no more answers through this tunnel");
                        return;
                    }
                };
                let (_, answer) = sizes;
                // A frame lost here is as good as one lost on its way.
                let _ = device.send(ANSWER, migration, sizes, answer);
            }
        });
        Ok(Answering(task.abort_handle()))
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends the LAN's full frames to the far end and has them sent back, both within [`TRIAL`].
///
/// # Errors
/// Whichever way they do not come through, with the numbers.
pub async fn cross(spec: &TunnelSpec, far: End, migration: MigrationId) -> Result<(), Impassable> {
    let unknown = |error: &dyn std::error::Error| {
        tracing::warn!(%migration, error = crate::story(error), "full frames cannot be tried");
        Impassable::Unknown(TRIAL)
    };
    let path = path_mtu(spec).map_err(|error| unknown(&error))?;
    let overhead = path.needed - spec.mtu;
    let full = u16::try_from(spec.mtu).unwrap_or(u16::MAX);
    let whole = u16::try_from(path.underlay.saturating_sub(overhead)).unwrap_or(u16::MAX);
    let mut device = Device::open(spec, far).map_err(|error| unknown(&error))?;

    let mut sizes = vec![SMALL, full];
    sizes.extend(COMMON.into_iter().chain([whole]).filter(|size| (SMALL + 1..full).contains(size)));
    let mut open: Vec<(u16, u16)> = sizes.iter().map(|size| (*size, SMALL)).collect();
    open.extend(sizes.iter().map(|size| (SMALL, *size)));
    open.dedup();
    let asked = open.clone();

    let deadline = Instant::now() + Duration::from_millis(TRIAL);
    let mut wait = AGAIN;
    'asking: while Instant::now() < deadline {
        for (question, answer) in &open {
            // A frame that does not even leave is one that does not come through.
            let _ = device.send(QUESTION, migration, (*question, *answer), *question);
        }
        let until = deadline.min(Instant::now() + wait);
        wait *= 2;
        while let Ok(heard) = tokio::time::timeout_at(until, device.hear(ANSWER, migration)).await {
            let sizes = heard.map_err(|error| unknown(&error))?;
            open.retain(|asked| *asked != sizes);
            if !open.iter().any(|(question, answer)| full == *question.max(answer)) {
                break 'asking;
            }
        }
    }
    let through = |way: fn(&(u16, u16)) -> u16, small: fn(&(u16, u16)) -> u16| {
        let passed = asked.iter().filter(|sizes| !open.contains(sizes) && small(sizes) == SMALL);
        passed.map(way).max()
    };
    let (there, back) = (through(|s| s.0, |s| s.1), through(|s| s.1, |s| s.0));
    let (Some(there), Some(back)) = (there, back) else {
        return Err(Impassable::Closed { port: spec.inside.map_or(spec.port, |inside| inside.port) });
    };
    let way = match (there < full, back < full) {
        (false, false) => return Ok(()),
        (true, false) => Way::There,
        (false, true) => Way::Back,
        (true, true) => Way::Both,
    };
    Err(Impassable::Large { needed: path.needed, available: u32::from(there.min(back)) + overhead, way })
}

/// The tunnel's VXLAN device.
struct Device {
    socket: AsyncFd<Socket>,
    vnic: Mac,
    stranger: Mac,
    buffer: Vec<u8>,
}

impl Device {
    /// For frames to the `far` end and from it.
    fn open(spec: &TunnelSpec, far: End) -> io::Result<Device> {
        let index = nix::net::if_::if_nametoindex(device(spec.vni).as_str())?;
        // Protocol 0: nothing is heard before the filter is in place and the interface is chosen.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        socket.attach_filter(&incoming())?;
        socket.set_nonblocking(true)?;
        // All protocols: the macvlan on the device takes each frame before those who wait for one protocol.
        socket.bind(&link_address(index, libc::ETH_P_ALL as u16)?)?;
        let buffer = vec![0; ETHERNET_HEADER + spec.mtu as usize + 1];
        Ok(Device { socket: raw::watch(socket)?, vnic: spec.mac, stranger: far.stranger(spec.mac), buffer })
    }

    fn send(&self, kind: [u8; 4], migration: MigrationId, sizes: (u16, u16), size: u16) -> io::Result<()> {
        let mut frame = Vec::with_capacity(ETHERNET_HEADER + usize::from(size));
        frame.extend(self.vnic.0.iter().chain(&self.stranger.0));
        frame.extend(ETHERTYPE.to_be_bytes());
        frame.extend(kind.iter().chain(&migration.0));
        frame.extend(sizes.0.to_be_bytes().iter().chain(&sizes.1.to_be_bytes()));
        frame.resize(ETHERNET_HEADER + usize::from(size).min(self.buffer.len()), 0);
        self.socket.get_ref().send(&frame).map(drop)
    }

    /// The sizes of the next frame of this kind.
    async fn hear(&mut self, kind: [u8; 4], migration: MigrationId) -> io::Result<(u16, u16)> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.get_inner().read(&mut self.buffer) {
                Ok(length) => {
                    let sizes = understood(&self.buffer[..length], kind, migration);
                    if let Some(sizes) = sizes {
                        return Ok(sizes);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

pub(crate) fn understood(frame: &[u8], kind: [u8; 4], migration: MigrationId) -> Option<(u16, u16)> {
    let payload = frame.get(ETHERNET_HEADER..)?;
    let rest = payload.strip_prefix(&kind)?.strip_prefix(&migration.0)?;
    let [q0, q1, a0, a1, ..] = *rest else { return None };
    let sizes = (u16::from_be_bytes([q0, q1]), u16::from_be_bytes([a0, a1]));
    let own = if kind == QUESTION { sizes.0 } else { sizes.1 };
    (usize::from(own) == payload.len()).then_some(sizes)
}

/// A classic BPF program: frames of our EtherType that come, whole; nothing else.
fn incoming() -> [SockFilter; 6] {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    [
        SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
        SockFilter::new(IF_EQUAL, 2, 0, libc::PACKET_OUTGOING.into()),
        SockFilter::new(LOAD_HALF, 0, 0, 12),
        SockFilter::new(IF_EQUAL, 1, 0, ETHERTYPE.into()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}
