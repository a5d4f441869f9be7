//! The agent's machine without a kernel under it: whatever it orders is done at once, and its one connection joins, moves
//! and goes on. It is reached as on a virtio-serial port, on either host.

use std::{
    io::{Read as _, Write as _},
    net::IpAddr,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use lsm_protocol::{
    Counts, FromGuest, Hello, ToGuest,
    frame::{Decoder, Frame, Kind, Wire},
    guest::{Event, Guest as Machine, Order, fallback::Progress},
};

use crate::{
    conversation::framed,
    shell::{During as _, Result},
};

/// The program's word for itself.
const SOFTWARE: &str = "lsm-guest of a crowd";

enum Input {
    Said(usize, ToGuest),
    Arrived,
    Gone,
}

/// Whoever has called by this way last.
type Caller = Arc<Mutex<Option<UnixStream>>>;

/// What is known of it from outside.
#[derive(Default)]
pub(super) struct Known {
    /// Of the new LAN.
    pub(super) address: Option<IpAddr>,
    pub(super) settled: Option<Instant>,
    /// Its connection carries nothing by the new path, so that it cannot settle.
    pub(super) held: bool,
}

pub(super) struct Guest {
    pub(super) known: Arc<Mutex<Known>>,
    inputs: mpsc::Sender<Input>,
}

impl Guest {
    /// Listens where both hosts will look for it; it runs on the first.
    pub(super) fn start(channels: [&Path; 2]) -> Result<Guest> {
        let known = Arc::new(Mutex::new(Known::default()));
        let (inputs, inbox) = mpsc::channel();
        let callers = [Caller::default(), Caller::default()];
        for (side, channel) in channels.into_iter().enumerate() {
            let listener = UnixListener::bind(channel).during(|| format!("listen on {}", channel.display()))?;
            let (inputs, caller) = (inputs.clone(), callers[side].clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let _ = talk(side, stream, &inputs, &caller);
                }
            });
        }
        let shared = known.clone();
        thread::spawn(move || live(&inbox, &callers, &shared));
        Ok(Guest { known, inputs })
    }

    /// Its CPUs run on the other host now.
    pub(super) fn arrive(&self) {
        let _ = self.inputs.send(Input::Arrived);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.inputs.send(Input::Gone);
    }
}

fn talk(side: usize, mut stream: UnixStream, inputs: &mpsc::Sender<Input>, caller: &Caller) -> std::io::Result<()> {
    let mut decoder = Decoder::new(Wire::Serial);
    let mut bytes = [0; 4096];
    if let Ok(mut caller) = caller.lock() {
        *caller = Some(stream.try_clone()?);
    }
    loop {
        let length = stream.read(&mut bytes)?;
        if length == 0 {
            return Ok(());
        }
        decoder.push(&bytes[..length]);
        while let Ok(Some(frame)) = decoder.next_frame() {
            if frame.kind == Kind::Hello as u16 {
                stream.write_all(&framed(Wire::Serial, Kind::Hello, &Hello::ours(SOFTWARE)))?;
            } else if let Ok(told) = Frame::open(&frame, Kind::ToGuest) {
                let _ = inputs.send(Input::Said(side, told));
            }
        }
    }
}

/// Until it is gone.
fn live(inbox: &mpsc::Receiver<Input>, callers: &[Caller; 2], known: &Mutex<Known>) {
    let (mut machine, mut side, begun) = (Machine::default(), 0, Instant::now());
    loop {
        let now = || begun.elapsed().as_millis() as u64;
        let wait = machine
            .deadline()
            .map_or(Duration::from_secs(3_600), |deadline| Duration::from_millis(deadline.at.saturating_sub(now())));
        let event = match inbox.recv_timeout(wait) {
            Ok(Input::Said(from, _)) if from != side => continue, // a port that has no VM behind it
            Ok(Input::Said(_, told)) => Event::Told(told),
            Ok(Input::Arrived) => {
                side = 1 - side;
                Event::TransportReset
            }
            Ok(Input::Gone) | Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => Event::Deadline,
        };
        if let (Event::Told(ToGuest::Prepare(plan)), Ok(mut known)) = (&event, known.lock()) {
            (known.address, known.settled) = (plan.addressing.addresses().all().first().copied(), None);
        }
        let mut events = vec![event];
        while !events.is_empty() {
            let event = events.remove(0);
            let (after, orders) = machine.handle(now(), event);
            machine = after;
            for order in orders {
                match order {
                    // Programs are there that hold nothing back.
                    Order::Do(step) => events.push(Event::Done(step)),
                    Order::Count => events.extend(counted(known.lock().is_ok_and(|known| known.held))),
                    Order::Reply(reply) => {
                        if let (FromGuest::Settled { .. }, Ok(mut known)) = (&reply, known.lock()) {
                            known.settled.get_or_insert_with(Instant::now);
                        }
                        say(&callers[side], &reply);
                    }
                    Order::Learn | Order::Notify(_) => {}
                }
            }
        }
    }
}

fn counted(held: bool) -> [Event; 2] {
    let one = Counts { joined: 1, moved: u32::from(!held), ..Counts::default() };
    [Event::Carried(Progress { carrying: 1, ..Progress::default() }), Event::Counted(one)]
}

fn say(caller: &Caller, reply: &FromGuest) {
    if let Ok(mut caller) = caller.lock()
        && let Some(stream) = caller.as_mut()
    {
        let _ = stream.write_all(&framed(Wire::Serial, Kind::FromGuest, reply));
    }
}
