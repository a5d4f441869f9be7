//! Packet sockets (packet(7)) with virtio-net headers, so that super-frames and frames without a check sum come and go
//! as what they are.

use std::{
    io::{self, IoSliceMut},
    os::fd::AsRawFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lsm_protocol::Mac;
use nix::{
    errno::Errno,
    libc, setsockopt_impl, sockopt_impl,
    sys::socket::{
        ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, setsockopt,
        sockopt::{RcvBufForce, ReceiveTimestampns, RxqOvfl, SndBufForce},
    },
};
use socket2::{Domain, SockFilter, Socket, Type};

use crate::raw::link_address;

// A super-frame is at most 64 KiB with its headers; the virtio-net header comes before it.
const LARGEST_FRAME: usize = 65536 + 64;
const FRAMES_PER_CALL: usize = 32;
const ETHERNET_HEADER: u32 = 14;

sockopt_impl!(
    /// A `struct virtio_net_hdr` of 10 bytes comes before every frame, in both directions.
    PacketVnetHdr,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);

/// A frame that left an interface.
pub(super) struct Seen<'a> {
    pub(super) at: SystemTime,
    /// virtio-net header and frame; of a frame that was not asked for, the Ethernet header only.
    pub(super) bytes: &'a [u8],
    pub(super) ours: bool,
}

/// Hears the frames that leave an interface.
pub(super) struct Tap {
    socket: Socket,
    buffers: Vec<u8>,
    mac: Mac,
    /// Frames the kernel could not keep for us, as it counts them.
    pub(super) missed: u32,
}

impl Tap {
    /// Frames for `mac` come whole, of all others only that they were.
    pub(super) fn open(index: u32, mac: Mac, receive_buffer: usize) -> io::Result<Self> {
        // Protocol 0: nothing is heard before the filter is in place and the interface is chosen.
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        setsockopt(&socket, PacketVnetHdr, &true)?;
        setsockopt(&socket, RcvBufForce, &receive_buffer)?;
        setsockopt(&socket, ReceiveTimestampns, &true)?;
        setsockopt(&socket, RxqOvfl, &1)?;
        socket.attach_filter(&outgoing(mac))?;
        socket.set_nonblocking(true)?;
        socket.bind(&link_address(index, libc::ETH_P_ALL as u16)?)?;
        Ok(Self { socket, buffers: vec![0; LARGEST_FRAME * FRAMES_PER_CALL], mac, missed: 0 })
    }

    /// Gives everything that the kernel has kept since the last call.
    pub(super) fn drain(&mut self, mut take: impl FnMut(Seen<'_>)) -> io::Result<()> {
        let space = nix::cmsg_space!(libc::timespec, u32);
        let mut headers = MultiHeaders::<()>::preallocate(FRAMES_PER_CALL, Some(space));
        loop {
            let mut slices: Vec<_> = self.buffers.chunks_mut(LARGEST_FRAME).map(|b| [IoSliceMut::new(b)]).collect();
            let flags = MsgFlags::MSG_DONTWAIT;
            let messages = match recvmmsg(self.socket.as_raw_fd(), &mut headers, &mut slices, flags, None) {
                Ok(messages) => messages,
                Err(Errno::EAGAIN) => return Ok(()),
                // One frame of a kind that a virtio-net header cannot tell; it is gone from the queue.
                Err(Errno::EINVAL) => {
                    self.missed = self.missed.wrapping_add(1);
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let mut seen = Vec::with_capacity(FRAMES_PER_CALL);
            for message in messages {
                let mut at = None;
                for control in message.cmsgs()? {
                    match control {
                        ControlMessageOwned::ScmTimestampns(time) => {
                            at = Some(UNIX_EPOCH + Duration::from(time));
                        }
                        ControlMessageOwned::RxqOvfl(missed) => self.missed = self.missed.max(missed),
                        _ => {}
                    }
                }
                seen.push((at.unwrap_or_else(SystemTime::now), message.bytes));
            }
            let count = seen.len();
            for ((at, length), buffer) in seen.into_iter().zip(self.buffers.chunks(LARGEST_FRAME)) {
                let bytes = &buffer[..length.min(LARGEST_FRAME)];
                let ours = bytes.get(VNET_HEADER..VNET_HEADER + 6).is_some_and(|to| to == self.mac.0);
                take(Seen { at, bytes, ours });
            }
            if count < FRAMES_PER_CALL {
                return Ok(());
            }
        }
    }
}

/// Length of `struct virtio_net_hdr`.
pub(super) const VNET_HEADER: usize = 10;

/// Sends frames, with their virtio-net headers, out of one interface.
pub(super) struct Out(Socket);

impl Out {
    pub(super) fn open(index: u32) -> io::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        setsockopt(&socket, PacketVnetHdr, &true)?;
        setsockopt(&socket, SndBufForce, &(16 << 20))?;
        socket.bind(&link_address(index, 0)?)?;
        Ok(Self(socket))
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        self.0.send(bytes).map(drop)
    }
}

/// A classic BPF program: of what leaves, frames for `mac` whole, of others the Ethernet header, of what comes nothing.
fn outgoing(mac: Mac) -> [SockFilter; 9] {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const PACKET_TYPE: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let [a, b, c, d, e, f] = mac.0;
    [
        SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
        SockFilter::new(IF_EQUAL, 0, 6, libc::PACKET_OUTGOING.into()),
        SockFilter::new(LOAD_WORD, 0, 0, 0),
        SockFilter::new(IF_EQUAL, 0, 3, u32::from_be_bytes([a, b, c, d])),
        SockFilter::new(LOAD_HALF, 0, 0, 4),
        SockFilter::new(IF_EQUAL, 0, 1, u16::from_be_bytes([e, f]).into()),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, ETHERNET_HEADER),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}
