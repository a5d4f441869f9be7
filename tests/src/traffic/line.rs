//! One connection at the client.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::PollFlags;
use socket2::Socket;

use super::clock;
use super::log::{Arrival, Bulk, Connection, ConnectionLog, End, Origin};
use super::record::{HEADER, Header, Hello, Kind};
use super::stream::{Incoming, Outgoing};

const PACED_BACKLOG: usize = 1 << 16;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running,
    /// The last record is on its way; the VM's is awaited.
    Finishing,
    /// The VM's last record came; its end of the stream is awaited.
    Closing,
    Closed,
    Failed(String),
}

pub(super) struct Line {
    pub(super) connection: Connection,
    socket: Socket,
    hello: Hello,
    incoming: Incoming,
    outgoing: Outgoing,
    phase: Phase,
    next: u64,
    arrivals: Vec<Arrival>,
    /// What the VM said last that it had received.
    acknowledged: u64,
    end: Option<End>,
    bulk: Option<RunningBulk>,
    done_bulks: Vec<Bulk>,
    news: Option<Bulk>,
}

struct RunningBulk {
    reads: Vec<(u64, usize)>,
}

impl Line {
    pub(super) fn new(socket: Socket, origin: Origin, hello: Hello) -> io::Result<Self> {
        let address = |address: socket2::SockAddr| address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable.into());
        let connection = Connection {
            id: hello.id,
            origin,
            local: socket.local_addr().and_then(address)?,
            remote: socket.peer_addr().and_then(address)?,
        };
        Ok(Self {
            connection,
            socket,
            hello,
            incoming: Incoming::new(hello.down()),
            outgoing: Outgoing::new(hello.up()),
            phase: Phase::Waiting,
            next: 0,
            arrivals: Vec::new(),
            acknowledged: 0,
            end: None,
            bulk: None,
            done_bulks: Vec::new(),
            news: None,
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn interest(&self) -> PollFlags {
        if self.outgoing.pending() > 0 { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    pub(super) fn next_due(&self) -> Option<u64> {
        (self.phase == Phase::Running).then_some(self.next)
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Failed(_))
    }

    pub(super) fn start(&mut self, now: u64) {
        if self.phase == Phase::Waiting {
            self.phase = Phase::Running;
            self.outgoing.push(Kind::Hello, 0, 0, self.hello.to_stamp());
            self.next = now + self.hello.phase_us() * 1_000;
        }
    }

    pub(super) fn keep_pace(&mut self, now: u64) {
        if self.phase != Phase::Running {
            return;
        }
        let period = u64::from(self.hello.period_us.max(1)) * 1_000;
        while self.next <= now {
            self.next += period;
            if self.bulk.is_none() && self.outgoing.pending() < PACED_BACKLOG {
                self.outgoing.push(Kind::Data, self.hello.payload(), self.incoming.total(), 0);
            }
        }
        self.flush();
    }

    pub(super) fn probe(&mut self, now: u64) {
        if self.phase == Phase::Running && self.bulk.is_none() && self.outgoing.pending() < PACED_BACKLOG {
            self.outgoing.push(Kind::Probe, 0, self.incoming.total(), now);
            self.flush();
        }
    }

    pub(super) fn start_bulk(&mut self, milliseconds: u64) {
        if self.phase == Phase::Running {
            self.outgoing.push(Kind::Bulk, 0, self.incoming.total(), milliseconds);
            self.bulk = Some(RunningBulk { reads: Vec::new() });
            self.flush();
        } else {
            self.news = Some(Bulk::default());
        }
    }

    pub(super) fn finish(&mut self) {
        match self.phase {
            Phase::Running => {
                self.outgoing.push(Kind::Finish, 0, self.incoming.total(), self.incoming.wrong());
                self.phase = Phase::Finishing;
                self.flush();
            }
            Phase::Waiting => self.phase = Phase::Closed,
            _ => {}
        }
    }

    /// A bulk that has just ended.
    pub(super) fn ended_bulk(&mut self) -> Option<Bulk> {
        let bulk = self.news.take()?;
        let offset = clock::offset();
        Some(Bulk {
            from: bulk.from.saturating_add_signed(offset),
            until: bulk.until.saturating_add_signed(offset),
            ..bulk
        })
    }

    fn flush(&mut self) {
        if let Err(error) = self.outgoing.flush(&self.socket) {
            self.phase = Phase::Failed(format!("cannot send: {error}"));
        }
    }

    /// Why the connection failed, if it did now.
    pub(super) fn step(&mut self, flags: PollFlags, buffer: &mut [u8], rtt: &mut Vec<(u64, u32)>) -> Option<String> {
        if self.is_over() {
            return None;
        }
        if flags.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR)
            && let Err(error) = self.read(buffer, rtt)
        {
            self.phase = Phase::Failed(error.to_string());
        }
        if !self.is_over() && flags.contains(PollFlags::POLLOUT) {
            self.flush();
        }
        match &self.phase {
            Phase::Failed(why) => {
                if self.bulk.take().is_some() {
                    self.news = Some(Bulk::default());
                }
                Some(why.clone())
            }
            _ => None,
        }
    }

    fn read(&mut self, buffer: &mut [u8], rtt: &mut Vec<(u64, u32)>) -> io::Result<()> {
        loop {
            let length = match (&self.socket).read(buffer) {
                Ok(0) if self.phase == Phase::Closing => {
                    self.phase = Phase::Closed;
                    return Ok(());
                }
                Ok(0) => return Err(io::Error::other("the VM closed the connection")),
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let now = clock::monotonic();
            let in_bulk = self.bulk.is_some() && self.incoming.open_kind() == Some(Kind::BulkData);
            let mut bulk_bytes = if in_bulk { length } else { 0 };
            let mut bytes = &buffer[..length];
            while !bytes.is_empty() {
                let (used, record) = self.incoming.take(bytes).map_err(io::Error::other)?;
                bytes = &bytes[used..];
                if let Some(header) = record {
                    self.handle(header, now, rtt)?;
                }
            }
            if self.bulk.is_some() && self.incoming.open_kind() == Some(Kind::BulkData) {
                bulk_bytes = length;
            }
            if let Some(bulk) = &mut self.bulk
                && bulk_bytes > 0
            {
                bulk.reads.push((now, bulk_bytes));
            }
            self.arrivals.push(Arrival {
                at: now,
                bytes: length as u32,
                sent: self.outgoing.total(),
                acknowledged: self.acknowledged,
            });
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, header: Header, now: u64, rtt: &mut Vec<(u64, u32)>) -> io::Result<()> {
        self.acknowledged = self.acknowledged.max(header.received);
        match header.kind {
            Kind::Echo => {
                rtt.push((header.stamp, u32::try_from(now.saturating_sub(header.stamp) / 1_000).unwrap_or(u32::MAX)))
            }
            Kind::BulkEnd => {
                if let Some(bulk) = self.bulk.take() {
                    let bulk = bulk.result();
                    self.done_bulks.push(bulk.clone());
                    self.news = Some(bulk);
                }
            }
            Kind::Finish => {
                self.end = Some(End {
                    peer_sent: header.position + HEADER as u64,
                    peer_received: header.received,
                    peer_wrong: header.stamp,
                });
                self.phase = Phase::Closing;
                self.socket.shutdown(std::net::Shutdown::Write)?;
            }
            Kind::Data | Kind::BulkData | Kind::Hello | Kind::Probe | Kind::Bulk => {}
        }
        Ok(())
    }

    pub(super) fn take_log(&mut self, real: impl Fn(u64) -> u64) -> ConnectionLog {
        let Connection { id, origin, local, remote } = self.connection;
        ConnectionLog {
            id,
            origin,
            local,
            remote,
            arrivals: self.arrivals.drain(..).map(|arrival| Arrival { at: real(arrival.at), ..arrival }).collect(),
            sent: self.outgoing.total(),
            received: self.incoming.total(),
            wrong: self.incoming.wrong(),
            failed: match &self.phase {
                Phase::Failed(why) => Some(why.clone()),
                Phase::Finishing | Phase::Closing => Some("it did not end in order in time".to_owned()),
                Phase::Waiting | Phase::Running | Phase::Closed => None,
            },
            end: self.end.clone(),
        }
    }

    pub(super) fn take_bulks(&mut self, real: impl Fn(u64) -> u64) -> Vec<Bulk> {
        let times = |bulk: Bulk| Bulk { from: real(bulk.from), until: real(bulk.until), ..bulk };
        self.done_bulks.drain(..).map(times).collect()
    }
}

impl RunningBulk {
    fn result(&self) -> Bulk {
        let (Some((from, _)), Some((until, _))) = (self.reads.first(), self.reads.last()) else {
            return Bulk::default();
        };
        let rate = |since: u64| {
            // The first read opens the interval; its bytes came before it.
            let bytes: usize = self.reads.iter().filter(|(at, _)| *at > since).map(|(_, bytes)| bytes).sum();
            let nanos = until.saturating_sub(since);
            if nanos == 0 { 0.0 } else { bytes as f64 * 8_000.0 / nanos as f64 }
        };
        Bulk {
            from: *from,
            until: *until,
            bytes: self.reads.iter().map(|(_, bytes)| *bytes as u64).sum(),
            mbit: rate(*from),
            mbit_steady: rate(from + (until - from) / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bulk_is_measured_between_its_first_and_last_bytes() {
        let reads = (0..=10).map(|step| (step * 10_000_000, 125_000)).collect();
        let bulk = RunningBulk { reads }.result();
        assert_eq!(bulk.bytes, 11 * 125_000);
        assert!((bulk.mbit - 100.0).abs() < 0.01, "{}", bulk.mbit);
        assert!((bulk.mbit_steady - 100.0).abs() < 0.01, "{}", bulk.mbit_steady);
    }
}
