//! The client's end: opens and accepts the connections, leads the traffic, and notes what it sees. One thread does
//! all of it, and none of it waits: writing logs out is another thread's work.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::Socket;

use super::TrafficError;
use super::clock;
use super::control::{Command, Event};
use super::datagrams::Caller;
use super::line::Line;
use super::log::{ConnectionLog, DatagramLog, Log, Origin};
use super::options::ClientOptions;
use super::record::Hello;
use super::sockets;

const BUFFER: usize = 1 << 18;
/// How long the connections may take to come about.
const CONNECT: Duration = Duration::from_secs(10);
const ACCEPT: u64 = 120_000_000_000;
/// How long the connections may take to end in order.
const END: u64 = 20_000_000_000;

/// `lsm-traffic client`: obeys standard input and reports on standard output until told to stop.
pub fn client(options: &ClientOptions) -> Result<(), TrafficError> {
    let (events, queue) = mpsc::channel::<Event>();
    let writer = thread::spawn(move || {
        let mut out = io::stdout().lock();
        for event in queue {
            // A parent that does not read any more has gone.
            let written = serde_json::to_writer(&mut out, &event).map_err(io::Error::from);
            if written.and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush()).is_err() {
                break;
            }
        }
    });
    let ended = Controller::connect(options, &events).and_then(Controller::run);
    if let Err(error) = &ended {
        let _ = events.send(Event::Error(super::chain(error)));
    }
    drop(events);
    let _ = writer.join();
    ended
}

struct Controller<'a> {
    events: &'a mpsc::Sender<Event>,
    /// Kept for the joins: without a listener the kernel refuses new subflows of the VM's connections.
    _listeners: Vec<Socket>,
    lines: Vec<Line>,
    caller: Option<Caller>,
    datagram: u64,
    next_datagram: Option<u64>,
    probe: u64,
    next_probe: Option<u64>,
    rtt: Vec<(u64, u32)>,
    input: Vec<u8>,
    from: u64,
    /// When the orderly end is given up; present once it was asked for.
    end_by: Option<u64>,
}

impl<'a> Controller<'a> {
    fn connect(options: &ClientOptions, events: &'a mpsc::Sender<Event>) -> Result<Self, TrafficError> {
        let listeners = if options.accept > 0 {
            sockets::listen(options.listen).map_err(|source| TrafficError::Listen { port: options.listen, source })?
        } else {
            Vec::new()
        };
        let _ = events.send(Event::Listening);
        let mut turns = [Some(options.to), options.also].into_iter().flatten().cycle();
        let to = SocketAddr::new(options.to, options.tcp);
        let mut sockets = Vec::new();
        let kinds = [(Origin::Client, options.connections), (Origin::Plain, options.plain)];
        for (origin, count) in kinds {
            for address in turns.by_ref().take(count.into()) {
                let to = SocketAddr::new(address, options.tcp);
                let socket = sockets::connect(to, origin != Origin::Plain, CONNECT)
                    .map_err(|source| TrafficError::Connect { to, source })?;
                sockets.push((origin, socket));
            }
        }
        for socket in accept(&listeners, usize::from(options.accept))? {
            sockets.push((Origin::Vm, socket));
        }
        let caller = match options.udp {
            Some(port) => {
                let to = SocketAddr::new(options.to, port);
                Some(Caller::new(to).map_err(|source| TrafficError::Connect { to, source })?)
            }
            None => None,
        };
        let period_us = u32::try_from(options.period.as_micros()).unwrap_or(u32::MAX);
        let lines: Vec<Line> = sockets
            .into_iter()
            .zip(1..)
            .map(|((origin, socket), id)| Line::new(socket, origin, Hello { id, chunk: options.chunk, period_us }))
            .collect::<io::Result<_>>()
            .map_err(|source| TrafficError::Connect { to, source })?;
        let _ = events.send(Event::Ready(lines.iter().map(|line| line.connection.clone()).collect()));
        Ok(Self {
            events,
            _listeners: listeners,
            lines,
            caller,
            datagram: options.datagram.as_nanos() as u64,
            next_datagram: None,
            probe: options.probe.as_nanos() as u64,
            next_probe: None,
            rtt: Vec::new(),
            input: Vec::new(),
            from: clock::monotonic(),
            end_by: None,
        })
    }

    fn run(mut self) -> Result<(), TrafficError> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let (commands, datagrams, ready) = self.wait()?;
            let polled = self.lines.iter_mut().filter(|line| !line.is_over());
            for (line, flags) in polled.zip(ready) {
                let failed = line.step(flags, &mut buffer, &mut self.rtt);
                if let Some(why) = failed {
                    let _ = self.events.send(Event::Failed { id: line.connection.id, why });
                }
                if let Some(bulk) = line.ended_bulk() {
                    let _ = self.events.send(Event::Bulk(bulk));
                }
            }
            if let (true, Some(caller)) = (datagrams, &mut self.caller) {
                caller.receive();
            }
            self.keep_pace();
            if commands && !self.obey()? {
                return Ok(());
            }
            if let Some(end_by) = self.end_by
                && (self.lines.iter().all(Line::is_over) || clock::monotonic() > end_by)
            {
                let log = self.take_log();
                let _ = self.events.send(Event::Stopped(log));
                return Ok(());
            }
        }
    }

    fn wait(&self) -> Result<(bool, bool, Vec<PollFlags>), TrafficError> {
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.caller.iter().map(|caller| PollFd::new(caller.fd(), PollFlags::POLLIN)));
        let first_line = fds.len();
        // A closed connection would be ready for ever.
        let polled = self.lines.iter().filter(|line| !line.is_over());
        fds.extend(polled.map(|line| PollFd::new(line.fd(), line.interest())));
        let next = self.lines.iter().filter_map(Line::next_due).chain(self.next_datagram).chain(self.next_probe);
        let timeout = next
            .chain(self.end_by)
            .min()
            .map(|next| TimeSpec::from_duration(Duration::from_nanos(next.saturating_sub(clock::monotonic()))));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(TrafficError::Poll(error.into())),
        }
        let flags: Vec<PollFlags> = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect();
        Ok((!flags[0].is_empty(), first_line == 2 && !flags[1].is_empty(), flags[first_line..].to_vec()))
    }

    fn keep_pace(&mut self) {
        let now = clock::monotonic();
        for line in &mut self.lines {
            line.keep_pace(now);
        }
        if self.next_datagram.is_some_and(|next| next <= now) {
            if let Some(caller) = &mut self.caller {
                caller.send(now);
            }
            self.next_datagram = Some(following(self.next_datagram, self.datagram, now));
        }
        if self.next_probe.is_some_and(|next| next <= now) {
            if let Some(line) = self.lines.first_mut() {
                line.probe(now);
            }
            self.next_probe = Some(following(self.next_probe, self.probe, now));
        }
    }

    /// Whether to go on.
    fn obey(&mut self) -> Result<bool, TrafficError> {
        let mut bytes = [0; 4096];
        let length = nix::unistd::read(io::stdin(), &mut bytes).map_err(|error| TrafficError::Input(error.into()))?;
        if length == 0 {
            return Ok(false);
        }
        self.input.extend_from_slice(&bytes[..length]);
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let command = serde_json::from_slice(&line).map_err(|source| TrafficError::Command { source })?;
            self.execute(command);
        }
        Ok(true)
    }

    fn execute(&mut self, command: Command) {
        let now = clock::monotonic();
        match command {
            Command::Start => {
                self.from = now;
                self.lines.iter_mut().for_each(|line| line.start(now));
                self.next_datagram = self.caller.as_ref().map(|_| now);
                // The probe belongs to an MPTCP connection; there is none if none was asked for.
                self.next_probe = self.lines.first().map(|_| now);
                let _ = self.events.send(Event::Started);
            }
            Command::BulkMs(milliseconds) => {
                if let Some(line) = self.lines.first_mut() {
                    line.start_bulk(milliseconds);
                }
            }
            Command::Log => {
                let log = self.take_log();
                let _ = self.events.send(Event::Log(log));
            }
            Command::Stop => {
                self.next_datagram = None;
                self.next_probe = None;
                self.lines.iter_mut().for_each(Line::finish);
                self.end_by = Some(now + END);
            }
        }
    }

    fn take_log(&mut self) -> Log {
        let offset = clock::offset();
        let real = |time: u64| time.saturating_add_signed(offset);
        let until = clock::monotonic();
        let from = std::mem::replace(&mut self.from, until);
        let connections: Vec<ConnectionLog> = self.lines.iter_mut().map(|line| line.take_log(real)).collect();
        let datagrams = self.caller.as_mut().map_or_else(DatagramLog::default, |caller| DatagramLog {
            sent: caller.sent.drain(..).map(|(at, sequence)| (real(at), sequence)).collect(),
            arrivals: caller.arrivals.drain(..).map(|(at, sequence, count)| (real(at), sequence, count)).collect(),
            wrong: std::mem::take(&mut caller.wrong),
        });
        Log {
            from: real(from),
            until: real(until),
            connections,
            rtt: self.rtt.drain(..).map(|(at, rtt)| (real(at), rtt)).collect(),
            datagrams,
            bulks: self.lines.iter_mut().flat_map(|line| line.take_bulks(real)).collect(),
        }
    }
}

/// The next due time after `now` that is a whole number of periods after `due`.
fn following(due: Option<u64>, period: u64, now: u64) -> u64 {
    let due = due.unwrap_or(now);
    due + (now.saturating_sub(due) / period.max(1) + 1) * period.max(1)
}

fn accept(listeners: &[Socket], count: usize) -> Result<Vec<Socket>, TrafficError> {
    let mut accepted = Vec::new();
    let deadline = clock::monotonic() + ACCEPT;
    while accepted.len() < count {
        let left = deadline.saturating_sub(clock::monotonic());
        if left == 0 {
            return Err(TrafficError::NotOpened { expected: count, came: accepted.len() });
        }
        let mut fds: Vec<PollFd> =
            listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(Duration::from_nanos(left))), None);
        for listener in listeners {
            while accepted.len() < count
                && let Ok((socket, _)) = listener.accept()
            {
                sockets::prepare(&socket).map_err(TrafficError::Poll)?;
                accepted.push(socket);
            }
        }
    }
    Ok(accepted)
}
