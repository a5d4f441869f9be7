//! What `lab-wire` does: carries frames between two TAP devices, late by a fixed time.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, ErrorKind, Read as _, Write as _},
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, ppoll},
    sys::time::TimeSpec,
};

use crate::{
    middlebox::{Fate, Middlebox},
    netns::enter_here,
    shell::{During as _, Result},
    tap,
};

/// The wire wakes up at most this often: it bounds the cost (waking up is dearer than carrying a frame where the machine
/// itself is a virtual one), and the error.
const TICK: Duration = Duration::from_micros(200);
/// More waiting frames than this are dropped: 2 Gbit/s of full frames over 500 ms.
const QUEUE_FRAMES: usize = 84_000;
/// A 9000-byte payload with its Ethernet header and two VLAN tags.
const FRAME: usize = 9_022;

/// One frame on its way: the first `length` bytes of a buffer that is never cleared.
struct Frame {
    due: Instant,
    length: usize,
    buffer: Box<[u8; FRAME]>,
}

/// Frames on their way in one direction.
struct Way {
    waiting: VecDeque<Frame>,
}

/// What the lab may change while the wire runs.
struct Settings {
    delay: Duration,
    cut: bool,
    middlebox: Middlebox,
}

/// Carries frames until standard input closes, taking orders from it: `delay MICROSECONDS`, `cut`, `mend`, and those of
/// the [`Middlebox`]. Prints `ready` once both devices exist.
///
/// # Errors
/// The devices could not be made, or polling failed.
pub fn carry(ends: [(&Path, &str); 2], delay: Duration, loss: f64, seed: u64) -> Result<()> {
    let mut taps = Vec::new();
    for (ns, interface) in ends {
        enter_here(ns)?;
        taps.push(tap::open(interface)?);
    }
    println!("ready");
    let mut spare = Vec::new();
    let mut ways = [Way { waiting: VecDeque::new() }, Way { waiting: VecDeque::new() }];
    let mut settings = Settings { delay, cut: false, middlebox: Middlebox::new(loss, seed) };
    let input = io::stdin();
    let mut pending = String::new();
    let mut last = Instant::now();
    loop {
        let due = ways.iter().filter_map(|way| way.waiting.front()).map(|frame| frame.due).min();
        let Some(readable) = wait([input.as_fd(), taps[0].as_fd(), taps[1].as_fd()], due)? else { continue };
        let early = TICK.saturating_sub(last.elapsed());
        if !early.is_zero() {
            std::thread::sleep(early);
        }
        last = Instant::now();
        if readable[0] && !obey(&input, &mut pending, &mut settings, &mut ways) {
            return Ok(());
        }
        for (index, way) in ways.iter_mut().enumerate() {
            // What came in while this slept came at its middle, on average.
            take(&taps[index], last - early / 2, way, &mut settings, &mut spare);
            deliver(way, &taps[1 - index], &mut spare);
        }
    }
}

/// Waits until something can be read or the next frame is due. `None`: a signal came between.
fn wait(fds: [BorrowedFd<'_>; 3], due: Option<Instant>) -> Result<Option<[bool; 3]>> {
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let timeout = due.map(|due| TimeSpec::from_duration(due.saturating_duration_since(Instant::now())));
    match ppoll(&mut polled, timeout, None) {
        Ok(_) => Ok(Some(polled.map(|fd| fd.any().unwrap_or(false)))),
        Err(Errno::EINTR) => Ok(None),
        Err(error) => Err(error).during(|| "wait for frames".into()),
    }
}

/// Reads orders. False: the lab is gone.
fn obey(input: &io::Stdin, pending: &mut String, settings: &mut Settings, ways: &mut [Way; 2]) -> bool {
    let mut buffer = [0; 256];
    match nix::unistd::read(input.as_fd(), &mut buffer) {
        Ok(0) | Err(_) => return false,
        Ok(length) => pending.push_str(&String::from_utf8_lossy(&buffer[..length])),
    }
    while let Some((line, rest)) = pending.split_once('\n') {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("delay", micros) => settings.delay = Duration::from_micros(micros.parse().unwrap_or(0)),
            ("cut", _) => {
                settings.cut = true;
                ways.iter_mut().for_each(|way| way.waiting.clear());
            }
            ("mend", _) => settings.cut = false,
            (order, value) if settings.middlebox.obey(order, value) => {}
            _ => eprintln!("lab-wire: unknown order {line:?}"),
        }
        *pending = rest.to_owned();
    }
    true
}

/// Takes all frames that a device has sent.
fn take(mut tap: &File, arrival: Instant, way: &mut Way, settings: &mut Settings, spare: &mut Vec<Box<[u8; FRAME]>>) {
    let due = arrival + settings.delay;
    loop {
        let mut buffer = spare.pop().unwrap_or_else(|| Box::new([0; FRAME]));
        match tap.read(&mut buffer[..]) {
            Ok(_) if settings.cut || way.waiting.len() >= QUEUE_FRAMES => spare.push(buffer),
            Ok(length) => match settings.middlebox.pass(&mut buffer[..length]) {
                Fate::Dropped => spare.push(buffer),
                Fate::Passed { late, twice } => {
                    if twice {
                        way.put(Frame { due, length, buffer: buffer.clone() });
                    }
                    way.put(Frame { due: due + late, length, buffer });
                }
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => spare.push(buffer),
            Err(_) => return spare.push(buffer), // WouldBlock: that was all; EBADFD: the device is being removed
        }
    }
}

/// Hands over the frames whose time has come.
fn deliver(way: &mut Way, mut tap: &File, spare: &mut Vec<Box<[u8; FRAME]>>) {
    let now = Instant::now();
    while way.waiting.front().is_some_and(|frame| frame.due <= now)
        && let Some(frame) = way.waiting.pop_front()
    {
        // A device that is down loses what comes to it, as a real one does.
        let _ = tap.write(&frame.buffer[..frame.length]);
        if spare.len() < 4096 {
            spare.push(frame.buffer);
        }
    }
}

impl Way {
    /// In order of time: what is late is overtaken.
    fn put(&mut self, frame: Frame) {
        let behind = self.waiting.iter().rev().take_while(|waiting| waiting.due > frame.due).count();
        self.waiting.insert(self.waiting.len() - behind, frame);
    }
}
