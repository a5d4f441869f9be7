//! The frame every message travels in, on every transport.
//!
//! ```text
//! 0        4          8      10      12        16
//! +--------+----------+------+-------+---------+------------------+
//! | "LSM1" | length   | kind | flags | sequence| body (postcard)  |
//! +--------+----------+------+-------+---------+------------------+
//!            u32       u16    u16     u32        length bytes      little-endian
//! ```
//!
//! Flag 1: the last 16 bytes of the body are a seal over all that is before them, header included (see [`crate::proof`]).
//!
//! On a byte stream that keeps its edges (vsock, TLS) frames follow each other as they are. A virtio-serial port can
//! begin in the middle of an old frame, so there each frame is followed by its CRC-32 (u32, little-endian), the whole
//! is COBS-encoded, and a zero byte ends it: the next zero is always the way back into step.

use alloc::vec::Vec;

use serde::{Serialize, de::DeserializeOwned};

/// The first four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"LSM1";
/// Bytes before the body.
pub const HEADER: usize = 16;
/// The longest body, in bytes. Nothing LSM says comes near it; what is longer is not LSM.
pub const MAX_BODY: usize = 64 * 1024 - HEADER;
/// Bytes of a seal: half an HMAC-SHA256, as RFC 2104 (section 5) allows.
const SEAL: usize = 16;
/// The flag of a sealed frame.
const SEALED: u16 = 1;
/// The longest frame on virtio-serial: COBS adds one byte in 254, then the CRC and the zero.
const MAX_SERIAL: usize = (HEADER + MAX_BODY + 4) * 255 / 254 + 3;

/// Which enum a body holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`crate::Hello`]: always the first frame in either direction.
    Hello = 0,
    /// [`crate::ToGuest`].
    ToGuest = 1,
    /// [`crate::FromGuest`].
    FromGuest = 2,
    /// [`crate::Peer`].
    Peer = 3,
    /// [`crate::Bye`]: always the last frame in its direction.
    Bye = 4,
    /// [`crate::Proof`]: where there is a key, between Hello and everything else.
    Proof = 5,
}

/// One frame, taken off the wire but not yet understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which enum the body holds, as sent; see [`Kind`].
    pub kind: u16,
    /// Counts up per direction and connection; a log line can name the frame it is about.
    pub sequence: u32,
    /// The postcard bytes, and the seal behind them where there is one.
    pub body: Vec<u8>,
    pub sealed: bool,
}

/// A frame without its seal, the bytes that the seal covers, and the seal.
pub(crate) struct Unsealed {
    pub frame: Frame,
    pub covered: Vec<u8>,
    pub tag: [u8; SEAL],
}

/// Why bytes were not a frame. The connection they came on is not worth keeping (except on virtio-serial, where what
/// follows the next zero is tried).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame does not begin with LSM1: the other side does not speak this protocol")]
    Magic,
    #[error("the frame claims {0} bytes of body; {MAX_BODY} are allowed")]
    TooLong(u32),
    #[error("the frame has flags {0:#06x}, of which this version knows none")]
    Flags(u16),
    #[error("the frame is of kind {got}, where kind {wanted} was expected")]
    Kind { wanted: u16, got: u16 },
    #[error("the body of a frame of kind {0} is not what this kind holds")]
    Body(u16),
    #[error("{0} bytes follow the message in its frame")]
    Trailing(usize),
    #[error("the frame is sealed, and no key was proved in this conversation")]
    Sealed,
    #[error("the check sum of a frame on the serial port is wrong")]
    Checksum,
    #[error("bytes on the serial port are not a frame")]
    Noise,
}

impl Frame {
    /// Puts a message into a frame.
    pub fn new<T: Serialize>(kind: Kind, sequence: u32, message: &T) -> Result<Frame, FrameError> {
        let body = postcard::to_allocvec(message).map_err(|_| FrameError::Body(kind as u16))?;
        if body.len() > MAX_BODY - SEAL {
            return Err(FrameError::TooLong(u32::try_from(body.len()).unwrap_or(u32::MAX)));
        }
        Ok(Frame { kind: kind as u16, sequence, body, sealed: false })
    }

    /// Puts a seal on, given what makes a tag of the bytes that it covers.
    pub(crate) fn seal(mut self, tag: impl FnOnce(&[u8]) -> [u8; 32]) -> Frame {
        self.sealed = true;
        self.body.extend_from_slice(&[0; SEAL]);
        let whole = self.encode();
        let at = self.body.len() - SEAL;
        let tag = tag(&whole[..HEADER + at]);
        self.body[at..].copy_from_slice(&tag[..SEAL]);
        self
    }

    /// Takes the seal off; `None` where there is none.
    pub(crate) fn unseal(&self) -> Option<Unsealed> {
        let (body, tag) = self.body.split_last_chunk::<SEAL>().filter(|_| self.sealed)?;
        let mut covered = self.encode();
        covered.truncate(HEADER + body.len());
        let frame = Frame { kind: self.kind, sequence: self.sequence, body: body.into(), sealed: false };
        Some(Unsealed { frame, covered, tag: *tag })
    }

    /// Takes the message out. Every byte of the body must belong to it.
    pub fn open<T: DeserializeOwned>(&self, kind: Kind) -> Result<T, FrameError> {
        if self.kind != kind as u16 {
            return Err(FrameError::Kind { wanted: kind as u16, got: self.kind });
        }
        if self.sealed {
            return Err(FrameError::Sealed);
        }
        let (message, rest) = postcard::take_from_bytes(&self.body).map_err(|_| FrameError::Body(self.kind))?;
        if rest.is_empty() { Ok(message) } else { Err(FrameError::Trailing(rest.len())) }
    }

    /// The frame's bytes for a stream that keeps its edges.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.body.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&(self.body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.kind.to_le_bytes());
        bytes.extend_from_slice(&(if self.sealed { SEALED } else { 0 }).to_le_bytes());
        bytes.extend_from_slice(&self.sequence.to_le_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The frame's bytes for a virtio-serial port.
    pub fn encode_serial(&self) -> Vec<u8> {
        let mut plain = self.encode();
        plain.extend_from_slice(&crc32fast::hash(&plain).to_le_bytes());
        let mut bytes = cobs::encode_vec(&plain);
        bytes.push(0);
        bytes
    }

    /// Reads the frame at the head of `bytes`: the frame and how many bytes it took, or `None` while it is not whole.
    fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, FrameError> {
        let seen = bytes.len().min(4);
        if bytes[..seen] != MAGIC[..seen] {
            return Err(FrameError::Magic);
        }
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [_, _, _, _, l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3] = *header;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > MAX_BODY {
            return Err(FrameError::TooLong(length));
        }
        let flags = u16::from_le_bytes([f0, f1]);
        if flags & !SEALED != 0 {
            return Err(FrameError::Flags(flags));
        }
        let Some(body) = rest.get(..length as usize) else { return Ok(None) };
        let frame = Frame {
            kind: u16::from_le_bytes([k0, k1]),
            sequence: u32::from_le_bytes([s0, s1, s2, s3]),
            body: body.to_vec(),
            sealed: flags & SEALED != 0,
        };
        Ok(Some((frame, HEADER + body.len())))
    }
}

/// How the bytes of a connection are divided into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// vsock, Unix sockets, TLS.
    Stream,
    /// virtio-serial.
    Serial,
}

impl Wire {
    /// The frame's bytes on this kind of connection.
    pub fn encode(self, frame: &Frame) -> Vec<u8> {
        match self {
            Wire::Stream => frame.encode(),
            Wire::Serial => frame.encode_serial(),
        }
    }
}

/// Takes bytes as they come and gives frames. Holds at most one frame's worth of bytes beyond what was pushed last.
#[derive(Debug)]
pub struct Decoder {
    wire: Wire,
    bytes: Vec<u8>,
}

impl Decoder {
    pub fn new(wire: Wire) -> Self {
        Decoder { wire, bytes: Vec::new() }
    }

    /// Adds bytes read from the connection.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes come. On a stream an error is final; on a serial port the
    /// offending bytes are gone and the next call goes on behind them.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        match self.wire {
            Wire::Stream => match Frame::decode(&self.bytes)? {
                Some((frame, taken)) => {
                    self.bytes.drain(..taken);
                    Ok(Some(frame))
                }
                None => Ok(None),
            },
            Wire::Serial => self.next_serial(),
        }
    }

    fn next_serial(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let Some(end) = self.bytes.iter().position(|&b| b == 0) else {
                if self.bytes.len() > MAX_SERIAL {
                    self.bytes.clear();
                    return Err(FrameError::Noise);
                }
                return Ok(None);
            };
            let mut packet: Vec<u8> = self.bytes.drain(..=end).take(end).collect();
            if packet.is_empty() {
                continue; // a lone zero: a writer making sure it starts in step
            }
            let length = cobs::decode_in_place(&mut packet).map_err(|_| FrameError::Noise)?;
            let (plain, crc) = packet[..length].split_last_chunk::<4>().ok_or(FrameError::Noise)?;
            if crc32fast::hash(plain) != u32::from_le_bytes(*crc) {
                return Err(FrameError::Checksum);
            }
            return match Frame::decode(plain)? {
                Some((frame, taken)) if taken == plain.len() => Ok(Some(frame)),
                _ => Err(FrameError::Noise),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn frame(body: Vec<u8>) -> Frame {
        Frame { kind: 2, sequence: 7, body, sealed: false }
    }

    #[test]
    fn one_byte_at_a_time() {
        for wire in [Wire::Stream, Wire::Serial] {
            let sent = [frame(vec![0, 1, 0, 255]), frame(vec![]), frame(vec![0; 700])];
            let mut decoder = Decoder::new(wire);
            let mut got = Vec::new();
            for byte in sent.iter().flat_map(|f| wire.encode(f)) {
                decoder.push(&[byte]);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    got.push(frame);
                }
            }
            assert_eq!(got, sent);
        }
    }

    #[test]
    fn serial_finds_the_next_frame_after_noise() {
        let mut decoder = Decoder::new(Wire::Serial);
        let good = frame(vec![1, 2, 3]);
        let mut torn = good.encode_serial();
        torn.drain(..5);
        decoder.push(&torn);
        decoder.push(&good.encode_serial());
        assert!(decoder.next_frame().is_err());
        assert_eq!(decoder.next_frame(), Ok(Some(good)));
    }

    #[test]
    fn oversized_and_foreign_bytes_are_refused_before_they_are_stored() {
        let mut header = frame(vec![]).encode();
        header[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut decoder = Decoder::new(Wire::Stream);
        decoder.push(&header);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(u32::MAX)));
        let mut decoder = Decoder::new(Wire::Stream);
        decoder.push(b"GE");
        assert_eq!(decoder.next_frame(), Err(FrameError::Magic));
        let mut decoder = Decoder::new(Wire::Serial);
        decoder.push(&vec![1; MAX_SERIAL + 1]);
        assert_eq!(decoder.next_frame(), Err(FrameError::Noise));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut frame = Frame::new(Kind::Hello, 0, &7u8).unwrap();
        assert_eq!(frame.open::<u8>(Kind::Hello), Ok(7));
        assert_eq!(frame.open::<u8>(Kind::Peer), Err(FrameError::Kind { wanted: 3, got: 0 }));
        frame.body.push(0);
        assert_eq!(frame.open::<u8>(Kind::Hello), Err(FrameError::Trailing(1)));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), serial: bool) {
            let mut decoder = Decoder::new(if serial { Wire::Serial } else { Wire::Stream });
            decoder.push(&bytes);
            for _ in 0..=bytes.len() {
                match decoder.next_frame() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) if serial => {}
                    Err(_) => break,
                }
            }
        }

        #[test]
        fn any_body_round_trips(body in proptest::collection::vec(any::<u8>(), 0..3000), serial: bool) {
            let wire = if serial { Wire::Serial } else { Wire::Stream };
            let mut decoder = Decoder::new(wire);
            decoder.push(&wire.encode(&frame(body.clone())));
            prop_assert_eq!(decoder.next_frame(), Ok(Some(frame(body))));
        }
    }
}
