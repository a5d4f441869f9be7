//! What the client saw, in nanoseconds of CLOCK_REALTIME.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// Nanoseconds of CLOCK_REALTIME.
pub type Nanos = u64;

/// Everything since the start or since the log was last taken.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Log {
    pub from: Nanos,
    pub until: Nanos,
    pub connections: Vec<ConnectionLog>,
    /// Round trips of the probe: when it was sent, and how long it took in microseconds.
    pub rtt: Vec<(Nanos, u32)>,
    pub datagrams: DatagramLog,
    pub bulks: Vec<Bulk>,
}

impl Log {
    /// Adds what a later log saw of the same connections.
    pub fn extend(&mut self, later: Log) {
        if self.until == 0 {
            *self = later;
            return;
        }
        self.until = later.until;
        for connection in later.connections {
            match self.connections.iter_mut().find(|known| known.id == connection.id) {
                Some(known) => {
                    let mut arrivals = std::mem::take(&mut known.arrivals);
                    arrivals.extend(&connection.arrivals);
                    *known = ConnectionLog { arrivals, ..connection };
                }
                None => self.connections.push(connection),
            }
        }
        self.rtt.extend(later.rtt);
        self.datagrams.sent.extend(later.datagrams.sent);
        self.datagrams.arrivals.extend(later.datagrams.arrivals);
        self.datagrams.wrong += later.datagrams.wrong;
        self.bulks.extend(later.bulks);
    }

    /// Bytes that were not what the other end sent, seen by either end, on all connections and datagrams.
    pub fn bytes_wrong(&self) -> u64 {
        let connections = self
            .connections
            .iter()
            .map(|connection| connection.wrong + connection.end.as_ref().map_or(0, |end| end.peer_wrong));
        connections.sum::<u64>() + self.datagrams.wrong
    }

    /// The MPTCP connections.
    pub fn multipath(&self) -> impl Iterator<Item = &ConnectionLog> {
        self.connections.iter().filter(|connection| connection.origin != Origin::Plain)
    }

    /// The plain TCP connections.
    pub fn plain(&self) -> impl Iterator<Item = &ConnectionLog> {
        self.connections.iter().filter(|connection| connection.origin == Origin::Plain)
    }
}

/// Who opened a connection, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// MPTCP, opened by the client.
    Client,
    /// MPTCP, opened by the VM.
    Vm,
    /// Plain TCP, opened by the client.
    Plain,
}

/// A connection as its addresses name it, at the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    pub id: u16,
    pub origin: Origin,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// One read of the client's: when, how many bytes, and the totals at that moment: bytes the client had sent, and bytes
/// of them that the VM's program had received when it sent what was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u32, u64, u64)", into = "(u64, u32, u64, u64)")]
pub struct Arrival {
    pub at: Nanos,
    pub bytes: u32,
    pub sent: u64,
    pub acknowledged: u64,
}

impl From<(u64, u32, u64, u64)> for Arrival {
    fn from((at, bytes, sent, acknowledged): (u64, u32, u64, u64)) -> Self {
        Self { at, bytes, sent, acknowledged }
    }
}

impl From<Arrival> for (u64, u32, u64, u64) {
    fn from(arrival: Arrival) -> Self {
        (arrival.at, arrival.bytes, arrival.sent, arrival.acknowledged)
    }
}

/// What the client saw of one connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConnectionLog {
    pub id: u16,
    pub origin: Origin,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub arrivals: Vec<Arrival>,
    /// Totals since the connection was opened.
    pub sent: u64,
    pub received: u64,
    pub wrong: u64,
    /// Why the connection ended too early.
    pub failed: Option<String>,
    /// The VM's counts, once the connection was ended in order.
    pub end: Option<End>,
}

/// What the VM's end counted, as told over the connection itself in its last record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub peer_sent: u64,
    pub peer_received: u64,
    pub peer_wrong: u64,
}

impl ConnectionLog {
    /// Whether every byte that either end sent was received and right. True only of a connection that was ended.
    pub fn is_whole(&self) -> bool {
        self.failed.is_none()
            && self.wrong == 0
            && self.end.as_ref().is_some_and(|end| {
                end.peer_wrong == 0 && end.peer_received == self.sent && end.peer_sent == self.received
            })
    }

    /// Whether bytes went both ways after `moment`: the client received some, and heard that the VM received bytes
    /// that were sent after it.
    pub fn moved_data_after(&self, moment: Nanos) -> bool {
        let later = || self.arrivals.iter().filter(|arrival| arrival.at > moment);
        let Some(first) = later().next() else { return false };
        later().any(|arrival| arrival.acknowledged > first.sent)
    }

    /// The demo's word: whole, and alive after the move.
    pub fn survived(&self, moved_at: Nanos) -> bool {
        self.is_whole() && self.moved_data_after(moved_at)
    }
}

/// The stream of datagrams, both ways.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DatagramLog {
    /// When each was sent, and its sequence number.
    pub sent: Vec<(Nanos, u64)>,
    /// When each answer came, the sequence number that it answers, and the VM's own count.
    pub arrivals: Vec<(Nanos, u64, u64)>,
    /// Bytes of answers that were not what the VM sends.
    pub wrong: u64,
}

/// A bulk transfer from the VM to the client.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Bulk {
    pub from: Nanos,
    pub until: Nanos,
    pub bytes: u64,
    /// Megabits (10^6) per second over the whole of it, slow start included.
    pub mbit: f64,
    /// The same over its second half.
    pub mbit_steady: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> ConnectionLog {
        ConnectionLog {
            id: 1,
            origin: Origin::Client,
            local: ([10, 9, 0, 2], 1000).into(),
            remote: ([10, 1, 0, 10], 5001).into(),
            arrivals: vec![
                Arrival { at: 10, bytes: 200, sent: 400, acknowledged: 200 },
                Arrival { at: 20, bytes: 200, sent: 600, acknowledged: 400 },
                Arrival { at: 30, bytes: 200, sent: 800, acknowledged: 800 },
            ],
            sent: 800,
            received: 600,
            wrong: 0,
            failed: None,
            end: Some(End { peer_sent: 600, peer_received: 800, peer_wrong: 0 }),
        }
    }

    #[test]
    fn survival_needs_every_byte_and_life_after_the_move() {
        assert!(connection().survived(15));
        assert!(!connection().survived(25), "nothing sent after 25 was heard to have arrived");
        assert!(!connection().survived(35), "nothing came");
        let mut lost = connection();
        lost.sent += 1;
        assert!(!lost.survived(15));
        let mut wrong = connection();
        wrong.wrong = 1;
        assert!(!wrong.survived(15));
        let mut open = connection();
        open.end = None;
        assert!(!open.survived(15));
    }

    #[test]
    fn logs_join_by_connection() {
        let part = |arrivals: Vec<Arrival>| Log {
            until: 30,
            connections: vec![ConnectionLog { arrivals, ..connection() }],
            rtt: vec![(1, 2)],
            ..Log::default()
        };
        let mut whole = part(connection().arrivals[..1].to_vec());
        whole.extend(part(connection().arrivals[1..].to_vec()));
        assert_eq!(whole.connections, vec![connection()]);
        assert_eq!(whole.rtt.len(), 2);
    }
}
