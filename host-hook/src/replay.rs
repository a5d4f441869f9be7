//! Frames that left for a vNIC too late to be read there, sent again where they will be.
//!
//! A [`Recorder`] keeps what was sent out of an interface to one MAC during the last moment; an [`Outlet`] sends it out
//! of another. At the source: from the tap into the home tunnel, when the VM has stopped. At the destination: from the
//! advance tunnel into the VM's tap.

mod packet;

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use lsm_protocol::Mac;
use tokio::{runtime::Handle, task::AbortHandle, time::MissedTickBehavior};

use self::packet::{Out, Tap, VNET_HEADER};
use crate::divert::Rtnl;

/// A recorder keeps frames for so long ...
const KEPT_FOR: Duration = Duration::from_secs(1);
/// ... and at most so many bytes of them.
const KEPT_BYTES: usize = 16 << 20;
// Between two visits the kernel keeps the frames: at 10 Gbit/s of full-sized frames about half of this fills.
const VISIT_EVERY: Duration = Duration::from_millis(50);
const RECEIVE_BUFFER: usize = 128 << 20;
// QEMU may hold a frame that it has read while the VM was stopping, and read one between count and stop.
const READ_BUT_NOT_DELIVERED: u64 = 2;

/// What went wrong with recording or replaying.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} on {interface}")]
pub struct ReplayError {
    what: &'static str,
    interface: String,
    #[source]
    source: io::Error,
}

/// What a replay did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Frames that were sent. A super-frame counts once.
    pub sent: u64,
    /// Frames that the kernel refused to send.
    pub refused: u64,
}

/// An interface that frames can be replayed into. To be opened before it is needed.
pub struct Outlet {
    out: Option<Out>,
    interface: String,
}

impl Outlet {
    /// # Errors
    /// When there is no such interface, or no right to send on it.
    pub fn open(interface: &str) -> Result<Self, ReplayError> {
        let open = || Out::open(index_of(&Rtnl::open()?, interface)?);
        let out = open().map_err(error("send frames", interface))?;
        Ok(Self { out: Some(out), interface: interface.to_owned() })
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        drop_elsewhere(self.out.take());
    }
}

/// Keeps the frames sent out of an interface to one MAC.
pub struct Recorder {
    tape: Arc<Mutex<Tape>>,
    interface: String,
    visits: AbortHandle,
}

impl Recorder {
    /// Starts to record. Needs a tokio runtime: a task of its own fetches the frames now and then.
    ///
    /// To be started well before it is needed: for some milliseconds after the first on a host, the kernel does not
    /// stamp frames yet (it turns that on in a work queue), and they bear the later time at which they were fetched.
    ///
    /// # Errors
    /// When there is no such interface, or no right to listen on it.
    pub fn start(interface: &str, mac: Mac) -> Result<Self, ReplayError> {
        let tape = Tape::open(interface, mac).map_err(error("record frames", interface))?;
        let tape = Arc::new(Mutex::new(tape));
        let visits = tokio::spawn(visit(Arc::downgrade(&tape), interface.to_owned())).abort_handle();
        Ok(Self { tape, interface: interface.to_owned(), visits })
    }

    /// Sends again what left at `since` (the kernel's wall clock) or later, oldest first.
    ///
    /// # Errors
    /// When the recording cannot be read. Frames that cannot be sent are counted, not errors.
    pub fn replay(&self, since: SystemTime, into: &Outlet) -> Result<Replayed, ReplayError> {
        let mut tape = self.lock();
        tape.fetch().map_err(error("record frames", &self.interface))?;
        let first = tape.frames.partition_point(|frame| frame.at < since);
        Ok(tape.send(first, into))
    }

    /// How many frames, for any MAC, user space has not yet read from the recorded tap. Exact while the tap drops
    /// nothing; means nothing on an interface that is not a tap.
    ///
    /// # Errors
    /// When the tap is gone.
    pub fn unread(&self) -> Result<u64, ReplayError> {
        self.lock().unread().map_err(error("count unread frames", &self.interface))
    }

    /// Sends again what was not read from the recorded tap, and the last two frames that were: they may be on their way
    /// through QEMU.
    ///
    /// # Errors
    /// As [`Recorder::unread`].
    pub fn replay_unread(&self, into: &Outlet) -> Result<Replayed, ReplayError> {
        let mut tape = self.lock();
        let unread = tape.unread().map_err(error("count unread frames", &self.interface))?;
        let count = usize::try_from(unread + READ_BUT_NOT_DELIVERED).unwrap_or(usize::MAX);
        let first = tape.frames.len().saturating_sub(count);
        Ok(tape.send(first, into))
    }

    /// Frames that were sent but that the recorder could not keep up with.
    pub fn missed(&self) -> u64 {
        self.lock().missed()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Tape> {
        // Nothing between lock and unlock leaves the tape half changed.
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.visits.abort();
        drop_elsewhere(self.lock().tap.take());
    }
}

/// Closing a packet socket waits for the kernel's RCU (`packet_release`): milliseconds that a paused VM would feel.
fn drop_elsewhere<T: Send + 'static>(socket: Option<T>) {
    if let (Some(socket), Ok(runtime)) = (socket, Handle::try_current()) {
        runtime.spawn_blocking(move || drop(socket));
    }
}

async fn visit(tape: std::sync::Weak<Mutex<Tape>>, interface: String) {
    let mut ticks = tokio::time::interval(VISIT_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(tape) = tape.upgrade() else { return };
        let mut tape = tape.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = tape.fetch().and_then(|()| tape.calibrate()) {
            tracing::info!(interface, %error, "frames are no longer recorded");
            return;
        }
    }
}

struct Frame {
    at: SystemTime,
    /// virtio-net header and frame; empty when it was for another MAC.
    bytes: Box<[u8]>,
}

struct Tape {
    tap: Option<Tap>,
    frames: VecDeque<Frame>,
    bytes: usize,
    recorded: u64,
    rtnl: Rtnl,
    index: u32,
    /// Lowest seen difference between frames sent out of the tap and frames read from it: what it is when all is read.
    all_read: Option<i64>,
}

impl Tape {
    fn open(interface: &str, mac: Mac) -> io::Result<Self> {
        let rtnl = Rtnl::open()?;
        let index = index_of(&rtnl, interface)?;
        let tap = Some(Tap::open(index, mac, RECEIVE_BUFFER)?);
        let mut tape = Self { tap, frames: VecDeque::new(), bytes: 0, recorded: 0, rtnl, index, all_read: None };
        tape.calibrate()?;
        Ok(tape)
    }

    fn fetch(&mut self) -> io::Result<()> {
        let Some(tap) = &mut self.tap else { return Ok(()) };
        let (frames, total, recorded) = (&mut self.frames, &mut self.bytes, &mut self.recorded);
        tap.drain(|seen| {
            let bytes: Box<[u8]> = if seen.ours { seen.bytes.into() } else { Box::default() };
            *total += bytes.len() + VNET_HEADER;
            *recorded += 1;
            frames.push_back(Frame { at: seen.at, bytes });
        })?;
        let oldest = SystemTime::now().checked_sub(KEPT_FOR).unwrap_or(SystemTime::UNIX_EPOCH);
        while let Some(frame) = self.frames.front()
            && (frame.at < oldest || self.bytes > KEPT_BYTES)
        {
            self.bytes -= frame.bytes.len() + VNET_HEADER;
            self.frames.pop_front();
        }
        Ok(())
    }

    /// Frames sent out of the tap and neither dropped nor read, off by a constant. The frames are counted before the
    /// reads here, so at worst too low.
    fn difference(&self) -> io::Result<i64> {
        let (read, dropped) = self.rtnl.tap_counts(self.index)?;
        let sent = self.recorded + self.missed();
        Ok(sent.wrapping_sub(read).wrapping_sub(dropped).cast_signed())
    }

    fn calibrate(&mut self) -> io::Result<()> {
        let difference = self.difference()?;
        self.all_read = Some(self.all_read.map_or(difference, |lowest| lowest.min(difference)));
        Ok(())
    }

    fn unread(&mut self) -> io::Result<u64> {
        // The other way round than when calibrating: at worst too high, so that nothing is forgotten.
        let (read, dropped) = self.rtnl.tap_counts(self.index)?;
        self.fetch()?;
        let sent = self.recorded + self.missed();
        let difference = sent.wrapping_sub(read).wrapping_sub(dropped).cast_signed();
        let all_read = self.all_read.map_or(difference, |lowest| lowest.min(difference));
        Ok((difference - all_read).unsigned_abs())
    }

    fn missed(&self) -> u64 {
        self.tap.as_ref().map_or(0, |tap| tap.missed.into())
    }

    fn send(&self, first: usize, into: &Outlet) -> Replayed {
        let mut done = Replayed::default();
        let Some(out) = &into.out else { return done };
        for frame in self.frames.range(first.min(self.frames.len())..).filter(|frame| !frame.bytes.is_empty()) {
            match out.send(&frame.bytes) {
                Ok(()) => done.sent += 1,
                Err(error) => {
                    tracing::debug!(interface = into.interface, %error, "a frame was not replayed");
                    done.refused += 1;
                }
            }
        }
        done
    }
}

fn index_of(rtnl: &Rtnl, interface: &str) -> io::Result<u32> {
    Ok(rtnl.link(interface)?.header.index)
}

fn error(what: &'static str, interface: &str) -> impl FnOnce(io::Error) -> ReplayError {
    let interface = interface.to_owned();
    move |source| ReplayError { what, interface, source }
}
