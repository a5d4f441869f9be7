//! Packet captures: what passed an interface of a namespace, and when, by the kernel's own time stamps.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_indextoname;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeSpec;
use socket2::Socket;

mod filter;
mod frame;

pub use frame::{ACK, Arp, Datagram, FIN, Frame, Icmpv6, Mac, Multipath, Packet, RST, SYN, Segment, Subtype};

/// Room for what the kernel holds while this process does not run, in bytes.
const KERNEL_BUFFER: usize = 64 << 20;

/// What to capture.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// The namespace's file, such as `/run/netns/client`; none: this process's own.
    pub namespace: Option<PathBuf>,
    /// Only this interface; none: all of them, also those that appear later, such as an incoming VM's tap.
    pub interface: Option<String>,
    /// Only TCP and UDP from or to these, and ARP and RARP of everyone; none: of everyone. A host that carries a migration needs
    /// it: the migration's own stream would drown the rest.
    pub macs: Vec<Mac>,
    /// Whatever it is, not TCP, UDP and ARP alone.
    pub everything: bool,
}

/// A capture could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot capture in {place}: {step}; are you root, and does it exist?")]
pub struct CaptureError {
    place: String,
    step: &'static str,
    source: io::Error,
}

/// A running capture. Dropped, it ends.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    recording: Arc<Mutex<Recording>>,
    thread: Option<JoinHandle<()>>,
}

/// What a capture saw, in order of time once it was handed over.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    pub frames: Vec<Frame>,
    /// Names of the interfaces by index.
    pub interfaces: HashMap<u32, String>,
    /// Frames that the kernel could not hold for us since the capture began. Not zero: the recording has holes.
    pub dropped: u32,
}

impl Recording {
    /// The frames of the interface of this name.
    pub fn on<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Frame> + Clone {
        self.frames.iter().filter(move |frame| self.interfaces.get(&frame.interface).is_some_and(|known| known == name))
    }

    /// Adds what the same capture saw later.
    pub fn extend(&mut self, later: Recording) {
        self.frames.extend(later.frames);
        self.interfaces.extend(later.interfaces);
        self.dropped = later.dropped;
    }
}

impl Capture {
    /// Starts to capture; every frame after the return is seen.
    ///
    /// # Errors
    /// Not root, or no such namespace.
    pub fn start(scope: Scope) -> Result<Self, CaptureError> {
        let stop = Arc::new(AtomicBool::new(false));
        let recording = Arc::new(Mutex::new(Recording::default()));
        let (started, outcome) = mpsc::channel();
        let (ends, shared) = (Arc::clone(&stop), Arc::clone(&recording));
        let thread = thread::spawn(move || match open(&scope) {
            Ok(socket) => {
                let _ = started.send(Ok(()));
                run(&socket, scope.interface.as_deref(), &ends, &shared);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        });
        let capture = Self { stop, recording, thread: Some(thread) };
        match outcome.recv() {
            Ok(Ok(())) => Ok(capture),
            Ok(Err(error)) => Err(error),
            Err(error) => Err(CaptureError {
                place: "a thread".to_owned(),
                step: "it ended at once",
                source: io::Error::other(error),
            }),
        }
    }

    /// What was seen since the start, or since the last call.
    pub fn take(&self) -> Recording {
        let mut shared = self.recording.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (interfaces, dropped) = (shared.interfaces.clone(), shared.dropped);
        let mut taken = std::mem::replace(&mut *shared, Recording { interfaces, dropped, frames: Vec::new() });
        drop(shared);
        // Processors stamp on their own, and hand over in another order.
        taken.frames.sort_by_key(|frame| frame.at);
        taken
    }

    /// Ends the capture; all that passed before is in the result.
    pub fn stop(mut self) -> Recording {
        self.end();
        self.take()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs in the capture's thread: from here on the thread lives in the namespace.
fn open(scope: &Scope) -> Result<OwnedFd, CaptureError> {
    let place = scope.namespace.as_deref().map_or("this namespace".to_owned(), |path| path.display().to_string());
    let failed = |step| move |source: io::Error| CaptureError { place, step, source };
    fn kernel<T>(result: nix::Result<T>) -> io::Result<T> {
        result.map_err(io::Error::from)
    }
    (|| {
        if let Some(path) = &scope.namespace {
            enter(path).map_err(|error| ("the namespace cannot be entered", error))?;
        }
        let socket = kernel(socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll))
            .map_err(|error| ("no packet socket", error))?;
        let socket = filtered(socket, &filter::program(&scope.macs, scope.everything))
            .map_err(|error| ("the filter is refused", error))?;
        (|| {
            setsockopt(&socket, sockopt::RcvBufForce, &KERNEL_BUFFER)?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            setsockopt(&socket, sockopt::RxqOvfl, &1)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(0, 20_000))
        })()
        .map_err(|error: Errno| ("the socket cannot be set up", error.into()))?;
        Ok(socket)
    })()
    .map_err(|(step, error)| failed(step)(error))
}

fn enter(namespace: &Path) -> io::Result<()> {
    Ok(setns(File::open(namespace)?, CloneFlags::CLONE_NEWNET)?)
}

fn filtered(socket: OwnedFd, program: &[socket2::SockFilter]) -> io::Result<OwnedFd> {
    let socket = Socket::from(socket);
    socket.attach_filter(program)?;
    Ok(OwnedFd::from(socket))
}

fn run(socket: &OwnedFd, interface: Option<&str>, stop: &AtomicBool, shared: &Mutex<Recording>) {
    let mut names: HashMap<u32, String> = HashMap::new();
    loop {
        // Read before the frames: what passed before the stop must be in.
        let stopping = stop.load(Ordering::Relaxed);
        let mut batch = Vec::new();
        let mut dropped = None;
        while batch.len() < 512 {
            match receive(
                socket,
                &mut dropped,
                if batch.is_empty() && !stopping { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT },
            ) {
                Ok(Some(frame)) => batch.push(frame),
                Ok(None) | Err(Errno::EINTR | Errno::ENETDOWN) => {}
                Err(_) => break,
            }
        }
        let idle = batch.is_empty();
        for frame in &batch {
            names.entry(frame.interface).or_insert_with(|| name(frame.interface));
        }
        if let Some(wanted) = interface {
            batch.retain(|frame| names.get(&frame.interface).is_some_and(|name| name == wanted));
        }
        if !idle || dropped.is_some() {
            let mut shared = shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            shared.frames.append(&mut batch);
            if shared.interfaces.len() != names.len() {
                shared.interfaces = names.clone();
            }
            shared.dropped = dropped.unwrap_or(shared.dropped);
        }
        if stopping && idle {
            return;
        }
    }
}

fn name(index: u32) -> String {
    // One that has gone already keeps its number.
    if_indextoname(index).ok().and_then(|name: CString| name.into_string().ok()).unwrap_or_else(|| format!("#{index}"))
}

fn receive(socket: &OwnedFd, dropped: &mut Option<u32>, flags: MsgFlags) -> nix::Result<Option<Frame>> {
    let mut bytes = [0; filter::SNAP as usize];
    let mut control = cmsg_space!(TimeSpec, u32);
    let mut pieces = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<LinkAddr>(socket.as_raw_fd(), &mut pieces, Some(&mut control), flags)?;
    let mut at = 0;
    for part in message.cmsgs()? {
        match part {
            ControlMessageOwned::ScmTimestampns(time) => {
                at = Duration::from(time).as_nanos() as u64;
            }
            ControlMessageOwned::RxqOvfl(count) => *dropped = Some(count),
            _ => {}
        }
    }
    let (from, length) = (message.address, message.bytes);
    Ok(from.and_then(|from| {
        let outgoing = from.pkttype() == libc::PACKET_OUTGOING;
        frame::read(&bytes[..length], at, from.ifindex() as u32, outgoing)
    }))
}
