//! The agent's two ways in, spoken to frame by frame on a VM that stays where it is: virtio-serial, and vsock by way of
//! `vhost-device-vsock` where that program is there.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use lsm_protocol::{
    FromGuest, Hello, ToGuest, VERSIONS,
    frame::{Decoder, Frame, Kind, MAX_BODY, Wire},
};
use lsm_tests::stage::{Stage, StageOptions, lacking};

const LIMIT: Duration = Duration::from_secs(10);

/// The host's end of a conversation.
struct Line {
    stream: UnixStream,
    wire: Wire,
    decoder: Decoder,
}

impl Line {
    fn new(stream: UnixStream, wire: Wire) -> Line {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Line { stream, wire, decoder: Decoder::new(wire) }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn say<T: serde::Serialize>(&mut self, kind: Kind, message: &T) {
        let bytes = self.wire.encode(&Frame::new(kind, 1, message).unwrap());
        self.send(&bytes);
    }

    /// The next frame; `None` when the other side closed.
    fn hear(&mut self) -> Option<Frame> {
        let deadline = Instant::now() + LIMIT;
        let mut chunk = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            assert!(Instant::now() < deadline, "waited {LIMIT:?} for a frame");
            match self.stream.read(&mut chunk) {
                Ok(0) => return None,
                Ok(length) => self.decoder.push(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn greet(&mut self) -> Hello {
        self.say(Kind::Hello, &Hello::ours("a test"));
        self.hear().expect("a Hello").open(Kind::Hello).unwrap()
    }

    fn query(&mut self) {
        self.say(Kind::ToGuest, &ToGuest::Query);
        let status = self.hear().expect("a status").open(Kind::FromGuest).unwrap();
        let FromGuest::Status(status) = status else { panic!("{status:?}") };
        assert_eq!(status.state, "idle");
    }
}

fn stranger() -> Hello {
    Hello { versions: vec![9, 8], software: "lsm-hook 9.0".into() }
}

/// A frame whose header claims more than any frame may have.
fn oversized() -> Vec<u8> {
    let mut bytes = Frame::new(Kind::ToGuest, 1, &ToGuest::Query).unwrap().encode();
    bytes[4..8].copy_from_slice(&(MAX_BODY as u32 + 1).to_le_bytes());
    bytes
}

/// A frame that is well-formed, with a body that is no message.
fn senseless(wire: Wire) -> Vec<u8> {
    wire.encode(&Frame { kind: Kind::ToGuest as u16, sequence: 1, body: vec![0xff; 40] })
}

#[test]
fn frames_over_virtio_serial() {
    if lacking() {
        return;
    }
    let stage = Stage::set(&StageOptions::default(), |what| eprintln!("{what}")).unwrap();
    let said = |words: &str| stage.agent_said(words, LIMIT).unwrap();
    let connect = || Line::new(UnixStream::connect(stage.agent_port().unwrap()).unwrap(), Wire::Serial);

    let mut line = connect();
    assert_eq!(line.greet().versions, VERSIONS);
    line.query();
    // On a port that finds its way back into step, what is not a frame is skipped, and said so.
    line.send(&senseless(Wire::Serial));
    said("the body of a frame of kind 1 is not what this kind holds");
    line.query();
    line.send(b"\x01\x02\x03noise\x00");
    line.query();
    let mut serial = oversized();
    serial.extend_from_slice(&crc(&serial));
    line.send(&cobs(&serial));
    said("bytes of body; 65520 are allowed");
    line.query();
    line.send(&vec![1; 200_000]);
    line.send(&[0]);
    line.query();
    drop(line);

    let mut line = connect();
    line.say(Kind::ToGuest, &ToGuest::Query);
    said("the host's first frame was not a Hello");
    drop(line);

    let mut line = connect();
    line.say(Kind::Hello, &stranger());
    let theirs: Hello = line.hear().expect("a Hello before the end").open(Kind::Hello).unwrap();
    assert_eq!(theirs.versions, VERSIONS);
    said("no common protocol version: this side speaks 1, lsm-hook 9.0 speaks 9, 8");
    drop(line);

    // None of it has done anything.
    let mut line = connect();
    line.greet();
    line.query();
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
