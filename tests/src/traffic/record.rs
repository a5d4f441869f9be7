//! What travels on a connection: records of a 32-byte header and a payload taken from the pattern. Little endian:
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | check over the rest of the header and the stream's key |
//! | 4..8 | payload length in the low 24 bits, [`Kind`] in the high 8 |
//! | 8..16 | position of the header's first byte in this direction's stream |
//! | 16..24 | bytes the sender has received so far |
//! | 24..32 | stamp: its meaning is the kind's |
//!
//! Headers count as stream bytes, and every one is checked; so no byte of a connection goes unchecked. The client
//! leads: it says hello on each connection, whoever opened it, and ends it.

use super::pattern;

/// Length of a header in bytes.
pub(super) const HEADER: usize = 32;

/// Longest payload in bytes: header and payload together are 64 KiB.
pub(super) const LONGEST_PAYLOAD: usize = pattern::LONGEST - HEADER;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// First record of a connection, client to VM; the stamp holds a [`Hello`]. It is checked with key 0.
    Hello = 1,
    /// Paced payload.
    Data = 2,
    /// Client to VM: send it back at once. The stamp is the client's clock.
    Probe = 3,
    /// VM to client: the stamp of a probe.
    Echo = 4,
    /// Client to VM: send as much as you can for the stamp's number of milliseconds.
    Bulk = 5,
    /// VM to client: bulk payload.
    BulkData = 6,
    /// VM to client: the bulk is over, pacing goes on.
    BulkEnd = 7,
    /// Last record of either direction: the stamp is the number of wrong bytes its sender received.
    Finish = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Hello, Self::Data, Self::Probe, Self::Echo, Self::Bulk, Self::BulkData, Self::BulkEnd, Self::Finish]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    pub(super) length: u32,
    pub(super) position: u64,
    pub(super) received: u64,
    pub(super) stamp: u64,
}

impl Header {
    pub(super) fn encode(&self, key: u64) -> [u8; HEADER] {
        let words =
            [u64::from(self.length) | u64::from(self.kind as u8) << 24, self.position, self.received, self.stamp];
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&check(key, words).to_le_bytes());
        bytes[4..8].copy_from_slice(&(words[0] as u32).to_le_bytes());
        for (place, word) in bytes[8..].chunks_exact_mut(8).zip(&words[1..]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// None if any byte is not what a sender writes.
    pub(super) fn decode(bytes: &[u8; HEADER], key: u64) -> Option<Self> {
        let half = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let words = [u64::from(half(4)), word(8), word(16), word(24)];
        if half(0) != check(key, words) {
            return None;
        }
        let header = Self {
            kind: Kind::from_byte(bytes[7])?,
            length: half(4) & 0x00ff_ffff,
            position: words[1],
            received: words[2],
            stamp: words[3],
        };
        (header.length as usize <= LONGEST_PAYLOAD).then_some(header)
    }
}

fn check(key: u64, words: [u64; 4]) -> u32 {
    let sum = words.iter().fold(key ^ 0x6c73_6d20_7472_6166, |sum, word| {
        let mixed = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    });
    (sum ^ (sum >> 32)) as u32
}

/// What the client asks of the VM's end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hello {
    /// Number of the connection; the streams of both directions follow from it.
    pub(super) id: u16,
    /// Bytes per record, header included.
    pub(super) chunk: u16,
    /// Time between records, in microseconds.
    pub(super) period_us: u32,
}

impl Hello {
    pub(super) fn to_stamp(self) -> u64 {
        u64::from(self.id) << 48 | u64::from(self.chunk) << 32 | u64::from(self.period_us)
    }

    pub(super) fn from_stamp(stamp: u64) -> Self {
        Self { id: (stamp >> 48) as u16, chunk: (stamp >> 32) as u16, period_us: stamp as u32 }
    }

    /// Key of the stream from client to VM.
    pub(super) fn up(self) -> u64 {
        pattern::key(u64::from(self.id) * 2)
    }

    /// Key of the stream from VM to client.
    pub(super) fn down(self) -> u64 {
        pattern::key(u64::from(self.id) * 2 + 1)
    }

    /// Payload of a paced record in bytes.
    pub(super) fn payload(self) -> usize {
        usize::from(self.chunk).saturating_sub(HEADER)
    }

    /// Where in the period this connection sends, in microseconds: at one of four moments, so that connections do not
    /// all speak at once, and yet an emulated guest, where waking up is what costs, need not wake for each of them.
    pub(super) fn phase_us(self) -> u64 {
        u64::from(self.id % 4) * u64::from(self.period_us) / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER_SEEN: Header =
        Header { kind: Kind::Echo, length: 168, position: 1 << 40, received: 77, stamp: u64::MAX };

    #[test]
    fn a_header_comes_back() {
        assert_eq!(Header::decode(&HEADER_SEEN.encode(5), 5), Some(HEADER_SEEN));
        assert_eq!(Header::decode(&HEADER_SEEN.encode(5), 6), None);
    }

    #[test]
    fn any_flipped_bit_of_a_header_is_noticed() {
        for bit in 0..HEADER * 8 {
            let mut bytes = HEADER_SEEN.encode(5);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes, 5), None, "bit {bit}");
        }
    }

    #[test]
    fn hello_comes_back_from_its_stamp() {
        let hello = Hello { id: 9, chunk: 200, period_us: 5_000 };
        assert_eq!(Hello::from_stamp(hello.to_stamp()), hello);
        assert!(hello.phase_us() < 5_000);
    }
}
