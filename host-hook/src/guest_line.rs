//! The way to a guest: dialled until it answers, for as long as somebody wants to speak to it.

use std::{io, ops::Range, os::fd::AsRawFd as _, path::PathBuf, time::Duration};

use lsm_protocol::{
    FromGuest, ToGuest,
    frame::{FrameError, Kind, Wire},
};
use tokio::{net::UnixStream, sync::mpsc, task::JoinHandle};

use crate::{
    keys::KeyOf,
    line::{Line, LineError, Stream},
    random::random,
    story,
};

/// Where the agent listens on vsock.
const PORT: u32 = 19_539;
/// Source ports, which the kernel gives to the privileged alone.
const PORTS: Range<u32> = 512..1024;
/// CIDs below are not guests (linux/vm_sockets.h): 0 the hypervisor, 1 loopback, 2 the host itself.
const FIRST_GUEST_CID: u32 = 3;
/// A guest that has just arrived is there within milliseconds; one that boots takes seconds.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(1);
/// A dead agent behind a live channel does not say Hello.
const HELLO: Duration = Duration::from_secs(2);
/// A goodbye is a few bytes; whoever does not take them is not there.
const LEAVE: Duration = Duration::from_millis(300);

/// How a guest can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub cid: Option<u32>,
    /// The host's end of the virtio-serial port.
    pub channel: Option<PathBuf>,
    pub key: KeyOf,
}

/// An open or opening line. Closed when dropped.
pub struct GuestLine {
    /// Without an order: say goodbye.
    orders: mpsc::UnboundedSender<Option<ToGuest>>,
    replies: mpsc::UnboundedReceiver<FromGuest>,
    task: JoinHandle<()>,
}

impl GuestLine {
    /// Dials in the background, first after `patience`. What is told before the guest answers is kept.
    pub fn open(address: Address, patience: Duration) -> GuestLine {
        let (orders, orders_out) = mpsc::unbounded_channel();
        let (replies_in, replies) = mpsc::unbounded_channel();
        let task = tokio::task::spawn_local(async move {
            tokio::time::sleep(patience).await;
            keep(address, orders_out, replies_in).await;
        });
        GuestLine { orders, replies, task }
    }

    pub fn tell(&self, order: ToGuest) {
        let _ = self.orders.send(Some(order)); // the task outlives us
    }

    /// Ends the line in good order: the guest is not to take it for its arrival elsewhere.
    pub async fn leave(mut self) {
        let _ = self.orders.send(None);
        let _ = tokio::time::timeout(LEAVE, &mut self.task).await;
    }

    /// What the guest says next. Never ends while the line is kept.
    pub async fn hear(&mut self) -> FromGuest {
        match self.replies.recv().await {
            Some(reply) => reply,
            None => std::future::pending().await,
        }
    }
}

impl Drop for GuestLine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn keep(
    address: Address,
    mut orders: mpsc::UnboundedReceiver<Option<ToGuest>>,
    replies: mpsc::UnboundedSender<FromGuest>,
) {
    let mut wait = AGAIN;
    let mut last = String::new();
    // An order that could not be sent is sent first on the next line.
    let mut unsent = None;
    loop {
        match tokio::time::timeout(HELLO, dial(&address))
            .await
            .unwrap_or(Err(LineError::Broken(io::ErrorKind::TimedOut.into())))
        {
            Ok(line) => {
                wait = AGAIN;
                let Some(error) = talk(line, &mut unsent, &mut orders, &replies).await else { return };
                match error {
                    LineError::Unproved(_) => {
                        tracing::warn!(reason = story(&error), "line to the guest ended");
                    }
                    error => tracing::info!(reason = story(&error), "line to the guest ended"),
                }
            }
            Err(error) => {
                let now = story(&error);
                if now != last {
                    if let LineError::Unproved(_) | LineError::Key(_) = error {
                        tracing::warn!(error = now, "nothing is said to the guest's agent");
                    } else {
                        tracing::info!(error = now, "the guest's agent does not answer yet");
                    }
                    last = now;
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(AGAIN_MAX);
    }
}

/// Until the line fails, or is to end.
async fn talk(
    mut line: Line,
    unsent: &mut Option<ToGuest>,
    orders: &mut mpsc::UnboundedReceiver<Option<ToGuest>>,
    replies: &mpsc::UnboundedSender<FromGuest>,
) -> Option<LineError> {
    let mut unanswered = None;
    loop {
        if let Some(order) = unsent.as_ref() {
            if let Err(error) = line.send(Kind::ToGuest, order).await {
                return Some(error);
            }
            unanswered = unsent.take();
        }
        tokio::select! {
            reply = line.receive(Kind::FromGuest) => match reply {
                Ok(reply) => {
                    unanswered = None;
                    drop(replies.send(reply));
                }
                Err(error) => {
                    // A virtio-serial port outlives its agent: the next one says Hello instead of an answer, and has
                    // not understood what it was told.
                    if matches!(error, LineError::Frame(FrameError::Kind { got, .. }) if got == Kind::Hello as u16) {
                        *unsent = unanswered;
                    }
                    return Some(error);
                }
            },
            Some(order) = orders.recv() => match order {
                Some(order) => *unsent = Some(order),
                None => {
                    line.close().await;
                    return None;
                }
            },
        }
    }
}

async fn dial(address: &Address) -> Result<Line, LineError> {
    let key = address.key.read()?;
    if let Some(cid) = address.cid {
        match vsock(cid).await {
            Ok(stream) => return Line::call(stream, Wire::Stream, key).await,
            Err(error) if address.channel.is_none() => return Err(error.into()),
            Err(_) => {} // the other way in
        }
    }
    match &address.channel {
        Some(path) => {
            let stream = UnixStream::connect(path).await?;
            Line::call(Box::new(stream), Wire::Serial, key).await
        }
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the VM has neither a vsock device nor the channel org.lsm.guest.0",
        )
        .into()),
    }
}

/// All of [`PORTS`], another first for each of `seed`. Not always the same: a guest that has just arrived, or is just being
/// left, still has the last connection from that port, and takes a new one for a part of it.
fn sources(seed: u16) -> impl Iterator<Item = u32> {
    let count = PORTS.len() as u32;
    (0..count).map(move |offset| PORTS.start + (u32::from(seed) + offset) % count)
}

/// From a source port below 1024, which the agent demands.
async fn vsock(cid: u32) -> io::Result<Box<dyn Stream>> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, connect, socket};
    if cid < FIRST_GUEST_CID {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("CID {cid} is not a guest")));
    }
    let connected = tokio::task::spawn_blocking(move || {
        let fd = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let any = nix::libc::VMADDR_CID_ANY;
        let bound =
            sources(u16::from_ne_bytes(random()?)).any(|port| bind(fd.as_raw_fd(), &VsockAddr::new(any, port)).is_ok());
        if !bound {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "no vsock port below 1024 is free"));
        }
        connect(fd.as_raw_fd(), &VsockAddr::new(cid, PORT))?;
        Ok(fd)
    });
    let fd = connected.await.map_err(io::Error::other)??;
    let stream = vsock::VsockStream::from(fd);
    stream.set_nonblocking(true)?;
    Ok(Box::new(tokio_vsock::VsockStream::new(stream)?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_port_is_tried_and_not_always_the_same_first() {
        for seed in [0, 7, u16::MAX] {
            assert_eq!(sources(seed).collect::<BTreeSet<_>>(), PORTS.collect::<BTreeSet<_>>());
        }
        let first: BTreeSet<_> = (0..512).filter_map(|seed| sources(seed).next()).collect();
        assert_eq!(first.len(), PORTS.len());
    }
}
