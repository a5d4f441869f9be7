//! The VM's end: answers what the client's hellos ask for, on connections from either side. One thread; it runs inside
//! emulated guests, so each segment must cost little.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::Socket;

use super::TrafficError;
use super::clock;
use super::datagrams::Answerer;
use super::fault::Fault;
use super::record::{Hello, Kind, LONGEST_PAYLOAD};
use super::sockets;
use super::stream::{Incoming, Outgoing};

/// Paced records are skipped while more than this waits for the socket, in bytes: a stalled path must not be answered
/// with a burst that hides how it recovers.
const PACED_BACKLOG: usize = 1 << 16;
const BULK_BACKLOG: usize = 2 << 16;
const BUFFER: usize = 1 << 16;

/// `lsm-traffic serve`: never returns but with an error. `at`: at this address alone, as far as TCP goes.
pub fn serve(at: Option<IpAddr>, tcp: u16, udp: Option<u16>, fault: Option<Fault>) -> Result<(), TrafficError> {
    let listeners = match at {
        Some(address) => sockets::listen_at(SocketAddr::new(address, tcp)).map(|listener| vec![listener]),
        None => sockets::listen(tcp),
    };
    let listeners = listeners.map_err(|source| TrafficError::Listen { port: tcp, source })?;
    let answerers = match udp {
        Some(port) => Answerer::both(port).map_err(|source| TrafficError::Listen { port, source })?,
        None => Vec::new(),
    };
    Responder { listeners, answerers, peers: Vec::new(), fault }.run(|_| false)
}

/// `lsm-traffic open`: opens `count` MPTCP connections to a client, to each of its addresses in turn, and returns when the
/// client has ended them all.
pub fn open(to: &[SocketAddr], count: u16) -> Result<(), TrafficError> {
    let mut peers = Vec::new();
    for &to in to.iter().cycle().take(count.into()) {
        let socket = sockets::connect(to, true, Duration::from_secs(10))
            .map_err(|source| TrafficError::Connect { to, source })?;
        peers.push(Peer::new(socket));
    }
    Responder { listeners: Vec::new(), answerers: Vec::new(), peers, fault: None }
        .run(|responder| responder.peers.is_empty())
}

struct Responder {
    listeners: Vec<Socket>,
    answerers: Vec<Answerer>,
    peers: Vec<Peer>,
    fault: Option<Fault>,
}

impl Responder {
    fn run(mut self, done: impl Fn(&Self) -> bool) -> Result<(), TrafficError> {
        if let Some(Fault::Drop(number)) = self.fault {
            self.answerers.iter_mut().for_each(|answerer| answerer.drop = Some(number));
        }
        let mut buffer = vec![0; BUFFER];
        while !done(&self) {
            let ready = self.wait()?;
            let mut ready = ready.into_iter();
            let accepting = ready.by_ref().take(self.listeners.len()).filter(|flags| !flags.is_empty()).count() > 0;
            for answerer in &mut self.answerers {
                if ready.next().is_some_and(|flags| !flags.is_empty()) {
                    answerer.answer();
                }
            }
            let now = clock::monotonic();
            let fault = self.fault;
            // What is due goes out before anything is read: after a pause a long queue waits to be read.
            self.keep_pace(now);
            self.peers.retain_mut(|peer| {
                let flags = ready.next().unwrap_or(PollFlags::empty());
                match peer.step(flags, now, &mut buffer, fault) {
                    Ok(open) => open,
                    Err(error) => {
                        eprintln!("lsm-traffic: connection {} ended: {error}", peer.name());
                        false
                    }
                }
            });
            if accepting {
                self.accept();
            }
        }
        Ok(())
    }

    /// When one connection's record is due, those nearly due go with it: fewer wake-ups.
    fn keep_pace(&mut self, now: u64) {
        if self.peers.iter().any(|peer| peer.pace.as_ref().is_some_and(|pace| pace.next <= now)) {
            self.peers.iter_mut().for_each(|peer| peer.keep_pace(now));
        }
    }

    /// What happened, in the order listeners, datagrams, peers.
    fn wait(&self) -> Result<Vec<PollFlags>, TrafficError> {
        let mut fds: Vec<PollFd> =
            self.listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
        fds.extend(self.answerers.iter().map(|answerer| PollFd::new(answerer.fd(), PollFlags::POLLIN)));
        fds.extend(self.peers.iter().map(|peer| PollFd::new(peer.socket.as_fd(), peer.interest())));
        let next = self.peers.iter().filter_map(|peer| peer.pace.as_ref().map(|pace| pace.next)).min();
        let timeout =
            next.map(|next| TimeSpec::from_duration(Duration::from_nanos(next.saturating_sub(clock::monotonic()))));
        match ppoll(&mut fds, timeout, None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(TrafficError::Poll(error.into())),
        }
        Ok(fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect())
    }

    fn accept(&mut self) {
        for listener in &self.listeners {
            while let Ok((socket, _)) = listener.accept() {
                match sockets::prepare(&socket) {
                    Ok(()) => self.peers.push(Peer::new(socket)),
                    Err(error) => eprintln!("lsm-traffic: a connection could not be taken: {error}"),
                }
            }
        }
    }
}

struct Pace {
    hello: Hello,
    /// When the next record is due, monotonic.
    next: u64,
}

struct Peer {
    socket: Socket,
    incoming: Incoming,
    outgoing: Outgoing,
    hello: Option<Hello>,
    /// Present while paced records are sent.
    pace: Option<Pace>,
    /// When the bulk ends, monotonic.
    bulk_until: Option<u64>,
    finished: bool,
}

impl Peer {
    fn new(socket: Socket) -> Self {
        Self {
            socket,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            hello: None,
            pace: None,
            bulk_until: None,
            finished: false,
        }
    }

    fn name(&self) -> String {
        let peer = self.socket.peer_addr().ok().and_then(|address| address.as_socket());
        let id = self.hello.map_or("without hello".to_owned(), |hello| hello.id.to_string());
        peer.map_or(id.clone(), |peer| format!("{id} of {peer}"))
    }

    fn interest(&self) -> PollFlags {
        let sending = self.outgoing.pending() > 0 || self.bulk_until.is_some();
        if sending { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// Whether the connection is still open.
    fn step(&mut self, flags: PollFlags, now: u64, buffer: &mut [u8], fault: Option<Fault>) -> io::Result<bool> {
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) && !self.read(buffer, fault)? {
            return if self.finished { Ok(false) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        self.fill_bulk(now);
        if self.outgoing.pending() > 0 {
            self.outgoing.flush(&self.socket)?;
        }
        if let Some(Fault::Reset(_)) =
            fault.filter(|fault| matches!(fault, Fault::Reset(at) if *at < self.outgoing.total()))
        {
            self.socket.set_linger(Some(Duration::ZERO))?;
            return Err(io::Error::other("reset on demand"));
        }
        Ok(true)
    }

    fn keep_pace(&mut self, now: u64) {
        let Some(pace) = &mut self.pace else { return };
        let period = u64::from(pace.hello.period_us.max(1)) * 1_000;
        while pace.next <= now + period / 2 {
            pace.next += period;
            if self.bulk_until.is_none() && self.outgoing.pending() < PACED_BACKLOG {
                self.outgoing.push(Kind::Data, pace.hello.payload(), self.incoming.total(), 0);
            }
            if now.saturating_sub(pace.next) > 10 * period {
                // The program was not running; what it did not send then is not made up for.
                pace.next = now + period;
            }
        }
        // An error shows again, and is told, where the connection is read.
        let _ = self.outgoing.flush(&self.socket);
    }

    /// A record of the client's woke us: if ours is nearly due, it goes now and carries the acknowledgement. That halves
    /// the segments and wake-ups, which are what an emulated guest spends its time on. The timer then has some slack,
    /// so that it speaks only when the client is silent.
    fn send_with(&mut self, now: u64) {
        let Some(pace) = &mut self.pace else { return };
        let period = u64::from(pace.hello.period_us.max(1)) * 1_000;
        if now + period * 3 / 4 >= pace.next && self.bulk_until.is_none() && self.outgoing.pending() < PACED_BACKLOG {
            pace.next = now + period * 5 / 4;
            self.outgoing.push(Kind::Data, pace.hello.payload(), self.incoming.total(), 0);
        }
    }

    fn fill_bulk(&mut self, now: u64) {
        let Some(until) = self.bulk_until else { return };
        if now >= until {
            self.outgoing.push(Kind::BulkEnd, 0, self.incoming.total(), 0);
            self.bulk_until = None;
            return;
        }
        while self.outgoing.pending() < BULK_BACKLOG {
            self.outgoing.push(Kind::BulkData, LONGEST_PAYLOAD, self.incoming.total(), 0);
        }
    }

    /// Whether the client has not closed its direction.
    fn read(&mut self, buffer: &mut [u8], fault: Option<Fault>) -> io::Result<bool> {
        loop {
            let length = match (&self.socket).read(buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let mut bytes = &buffer[..length];
            while !bytes.is_empty() {
                let (used, record) = self.incoming.take(bytes).map_err(io::Error::other)?;
                bytes = &bytes[used..];
                if let Some(header) = record {
                    self.answer(header.kind, header.stamp, fault);
                }
            }
            if length < buffer.len() {
                return Ok(true);
            }
        }
    }

    fn answer(&mut self, kind: Kind, stamp: u64, fault: Option<Fault>) {
        let now = clock::monotonic();
        let received = self.incoming.total();
        match kind {
            Kind::Hello => {
                let hello = Hello::from_stamp(stamp);
                self.hello = Some(hello);
                self.incoming.set_key(hello.up());
                self.outgoing = Outgoing::new(hello.down());
                if let Some(Fault::Flip(position)) = fault {
                    self.outgoing.falsify(position);
                }
                self.pace = Some(Pace { hello, next: now + hello.phase_us() * 1_000 });
            }
            Kind::Probe => self.outgoing.push(Kind::Echo, 0, received, stamp),
            Kind::Bulk => self.bulk_until = Some(now + stamp.min(600_000) * 1_000_000),
            Kind::Finish => {
                self.pace = None;
                self.bulk_until = None;
                self.finished = true;
                self.outgoing.push(Kind::Finish, 0, received, self.incoming.wrong());
            }
            Kind::Data => self.send_with(now),
            Kind::Echo | Kind::BulkData | Kind::BulkEnd => {}
        }
    }
}
