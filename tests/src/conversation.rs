//! The host's end of a conversation with an agent, spoken frame by frame: what a test says is what is on the wire.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use lsm_protocol::{
    FromGuest, GuestStatus, Hello, ToGuest,
    frame::{Decoder, Frame, Kind, MAX_BODY, Wire},
};
use serde::Serialize;

use crate::shell::{During as _, LabError, Result};

/// An agent answers within this, joins and gateways awaited.
const LIMIT: Duration = Duration::from_secs(30);

/// One connection to an agent.
#[derive(Debug)]
pub struct Conversation {
    stream: UnixStream,
    wire: Wire,
    decoder: Decoder,
}

impl Conversation {
    /// On an open connection.
    ///
    /// # Errors
    /// The connection takes no time limit.
    pub fn new(stream: UnixStream, wire: Wire) -> Result<Conversation> {
        stream.set_read_timeout(Some(Duration::from_millis(100))).during(|| "set a time limit".into())?;
        Ok(Conversation { stream, wire, decoder: Decoder::new(wire) })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).during(|| "write to the agent".into())
    }

    /// Sends a message in its frame.
    ///
    /// # Errors
    /// As [`Conversation::send`].
    pub fn say(&mut self, kind: Kind, message: &impl Serialize) -> Result<()> {
        self.send(&framed(self.wire, kind, message))
    }

    /// The next frame; `None` when the other side closed.
    ///
    /// # Errors
    /// Nothing came, or no frame.
    pub fn hear(&mut self) -> Result<Option<Frame>> {
        let deadline = Instant::now() + LIMIT;
        let mut chunk = [0; 4096];
        loop {
            let frame = self.decoder.next_frame();
            if let Some(frame) = frame.map_err(|error| LabError::Other(format!("from the agent: {error}")))? {
                return Ok(Some(frame));
            }
            if Instant::now() > deadline {
                return Err(LabError::Timeout { what: "a frame from the agent".into(), after: LIMIT });
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(length) => self.decoder.push(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).during(|| "read from the agent".into()),
            }
        }
    }

    /// Says Hello and hears the agent's.
    ///
    /// # Errors
    /// It says something else, or nothing.
    pub fn greet(&mut self, ours: &Hello) -> Result<Hello> {
        self.say(Kind::Hello, ours)?;
        self.message(Kind::Hello)
    }

    /// Says something and hears what the agent says to it.
    ///
    /// # Errors
    /// As [`Conversation::hear`].
    pub fn tell(&mut self, told: &ToGuest) -> Result<FromGuest> {
        self.say(Kind::ToGuest, told)?;
        self.answer()
    }

    /// What the agent says next.
    ///
    /// # Errors
    /// As [`Conversation::hear`].
    pub fn answer(&mut self) -> Result<FromGuest> {
        self.message(Kind::FromGuest)
    }

    /// Where the agent stands.
    ///
    /// # Errors
    /// As [`Conversation::hear`].
    pub fn status(&mut self) -> Result<GuestStatus> {
        match self.tell(&ToGuest::Query)? {
            FromGuest::Status(status) => Ok(status),
            other => Err(LabError::Other(format!("asked for its status, the agent says {other:?}"))),
        }
    }

    fn message<T: serde::de::DeserializeOwned>(&mut self, kind: Kind) -> Result<T> {
        let frame = self.hear()?.ok_or_else(|| LabError::Other("the agent closed the connection".into()))?;
        frame.open(kind).map_err(|error| LabError::Other(format!("from the agent: {error}")))
    }
}

/// A message as it is on the wire.
///
/// # Panics
/// It fits no frame.
#[must_use]
pub fn framed(wire: Wire, kind: Kind, message: &impl Serialize) -> Vec<u8> {
    match Frame::new(kind, 1, message) {
        Ok(frame) => wire.encode(&frame),
        Err(error) => panic!("{error}"),
    }
}

/// Hello from a program of a time to come, which speaks none of our versions.
#[must_use]
pub fn stranger(program: &str) -> Hello {
    Hello { versions: vec![9, 8], software: format!("{program} 9.0") }
}

/// A frame whose header claims more than any frame may have.
#[must_use]
pub fn oversized(wire: Wire) -> Vec<u8> {
    let mut bytes = Frame { kind: Kind::ToGuest as u16, sequence: 1, body: Vec::new(), sealed: false }.encode();
    bytes[4..8].copy_from_slice(&(MAX_BODY as u32 + 1).to_le_bytes());
    match wire {
        Wire::Stream => bytes,
        Wire::Serial => {
            let check = crc(&bytes);
            bytes.extend_from_slice(&check);
            cobs(&bytes)
        }
    }
}

/// A frame that is well-formed, with a body that is no message.
#[must_use]
pub fn senseless(wire: Wire, kind: Kind) -> Vec<u8> {
    wire.encode(&Frame { kind: kind as u16, sequence: 1, body: vec![0xff; 40], sealed: false })
}

/// CRC-32 as the frames have it (IEEE 802.3).
fn crc(bytes: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}

/// COBS, and the zero that ends it; for less than 254 bytes.
fn cobs(bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 254);
    let mut coded = Vec::new();
    for run in bytes.split(|byte| *byte == 0) {
        coded.push(run.len() as u8 + 1);
        coded.extend_from_slice(run);
    }
    coded.push(0);
    coded
}
