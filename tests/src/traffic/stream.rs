//! The two halves of a connection's end: what is to be sent, and what was received and how much of it was right.

use std::io::{self, Write};

use super::pattern;
use super::record::{HEADER, Header, Kind};

/// Records on their way into a socket.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    key: u64,
    position: u64,
    queue: Vec<u8>,
    written: usize,
    /// Position of the one byte to falsify, for tests of the checker.
    falsify: Option<u64>,
}

impl Outgoing {
    pub(super) fn new(key: u64) -> Self {
        Self { key, ..Self::default() }
    }

    pub(super) fn falsify(&mut self, position: u64) {
        self.falsify = Some(position);
    }

    /// Bytes queued since the beginning, sent or not.
    pub(super) fn total(&self) -> u64 {
        self.position
    }

    /// Bytes not yet taken by the socket.
    pub(super) fn pending(&self) -> usize {
        self.queue.len() - self.written
    }

    pub(super) fn push(&mut self, kind: Kind, payload: usize, received: u64, stamp: u64) {
        if self.written == self.queue.len() {
            self.queue.clear();
            self.written = 0;
        } else if self.written > 1 << 18 {
            self.queue.drain(..self.written);
            self.written = 0;
        }
        let header = Header { kind, length: payload as u32, position: self.position, received, stamp };
        let start = self.position;
        // The peer learns the key from the hello.
        let key = if kind == Kind::Hello { 0 } else { self.key };
        self.queue.extend_from_slice(&header.encode(key));
        self.position += HEADER as u64;
        self.queue.extend_from_slice(pattern::at(self.key, self.position, payload));
        self.position += payload as u64;
        if let Some(place) = self.falsify.filter(|place| (start..self.position).contains(place)) {
            let back = (self.position - place) as usize;
            let at = self.queue.len() - back;
            self.queue[at] ^= 0x10;
        }
    }

    /// Gives the socket what it takes now. Errors are the socket's, except that a full socket is none.
    pub(super) fn flush(&mut self, mut socket: impl Write) -> io::Result<()> {
        while self.pending() > 0 {
            match socket.write(&self.queue[self.written..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes as they come from a socket.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    key: u64,
    position: u64,
    wrong: u64,
    header: Vec<u8>,
    /// Header of the record whose payload is being read, and bytes of it still to come.
    open: Option<(Header, usize)>,
}

/// A header that is not the one that belongs there: where the next record starts is no longer known.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the record at byte {position} is not what the peer sends there; bytes were lost, repeated or changed")]
pub(super) struct Broken {
    position: u64,
}

impl Incoming {
    pub(super) fn new(key: u64) -> Self {
        Self { key, ..Self::default() }
    }

    /// Bytes received since the beginning.
    pub(super) fn total(&self) -> u64 {
        self.position
    }

    /// How many of them were wrong.
    pub(super) fn wrong(&self) -> u64 {
        self.wrong
    }

    pub(super) fn set_key(&mut self, key: u64) {
        self.key = key;
    }

    /// Checks the next `bytes` up to the end of the first record that they complete: gives how many were used, and
    /// that record.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Header>), Broken> {
        let mut used = 0;
        if self.open.is_none() {
            used = bytes.len().min(HEADER - self.header.len());
            self.header.extend_from_slice(&bytes[..used]);
            self.position += used as u64;
            let Ok(whole) = <&[u8; HEADER]>::try_from(&self.header[..]) else { return Ok((used, None)) };
            let position = self.position - HEADER as u64;
            // Only the hello, at the beginning, comes before the key.
            let key = if position == 0 && self.key == 0 { 0 } else { self.key };
            let header = Header::decode(whole, key).filter(|header| header.position == position);
            let Some(header) = header else {
                self.wrong += HEADER as u64;
                return Err(Broken { position });
            };
            self.header.clear();
            self.open = Some((header, header.length as usize));
        }
        let Some((header, left)) = self.open else { return Ok((used, None)) };
        let payload = &bytes[used..used + left.min(bytes.len() - used)];
        self.wrong += pattern::wrong(self.key, self.position, payload);
        self.position += payload.len() as u64;
        let left = left - payload.len();
        self.open = (left > 0).then_some((header, left));
        Ok((used + payload.len(), (left == 0).then_some(header)))
    }

    /// The kind of the record that is being received.
    pub(super) fn open_kind(&self) -> Option<Kind> {
        self.open.map(|(header, _)| header.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(falsify: Option<u64>) -> Vec<u8> {
        let mut outgoing = Outgoing::new(7);
        if let Some(position) = falsify {
            outgoing.falsify(position);
        }
        outgoing.push(Kind::Data, 168, 0, 0);
        outgoing.push(Kind::Probe, 0, 0, 99);
        outgoing.push(Kind::BulkData, super::super::record::LONGEST_PAYLOAD, 0, 0);
        let mut wire = Vec::new();
        outgoing.flush(&mut wire).unwrap();
        assert_eq!(outgoing.pending(), 0);
        assert_eq!(outgoing.total(), wire.len() as u64);
        wire
    }

    fn received(wire: &[u8], piece: usize) -> Result<(Vec<Kind>, u64), Broken> {
        let mut incoming = Incoming::new(7);
        let mut kinds = Vec::new();
        for mut bytes in wire.chunks(piece) {
            while !bytes.is_empty() {
                let (used, record) = incoming.take(bytes)?;
                bytes = &bytes[used..];
                kinds.extend(record.map(|header| header.kind));
            }
        }
        assert_eq!(incoming.total(), wire.len() as u64);
        Ok((kinds, incoming.wrong()))
    }

    #[test]
    fn records_come_out_whole_however_they_are_cut() {
        for piece in [1, 7, 31, 33, 200, 70_000] {
            assert_eq!(received(&sent(None), piece), Ok((vec![Kind::Data, Kind::Probe, Kind::BulkData], 0)));
        }
    }

    #[test]
    fn a_flipped_payload_byte_is_counted_and_the_stream_goes_on() {
        assert_eq!(received(&sent(Some(100)), 50).map(|(kinds, wrong)| (kinds.len(), wrong)), Ok((3, 1)));
    }

    #[test]
    fn a_flipped_header_byte_breaks_the_stream() {
        assert_eq!(received(&sent(Some(201)), 50), Err(Broken { position: 200 }));
    }

    #[test]
    fn a_lost_or_repeated_byte_is_noticed() {
        let mut shorter = sent(None);
        shorter.remove(120);
        assert!(received(&shorter, 64).is_err());
        let mut longer = sent(None);
        longer.insert(120, longer[120]);
        assert!(received(&longer, 64).is_err());
    }
}
