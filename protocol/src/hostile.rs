//! Bytes that another party wrote, given to what decodes them: any bytes at all, and neither a panic nor a message that
//! becomes another when it is sent on. For the fuzzer, and for the test that replays what it has found.

use core::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Bye, FromGuest, Hello, Peer, Proof, ToGuest,
    frame::{Decoder, Frame, Kind, Wire},
};

/// The first byte chooses the wire; the rest comes in two parts.
pub fn frames(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let wire = if first & 1 == 0 { Wire::Stream } else { Wire::Serial };
    let mut decoder = Decoder::new(wire);
    for part in [&rest[..rest.len() / 2], &rest[rest.len() / 2..]] {
        decoder.push(part);
        // Each call takes at least a byte, or ends it.
        for _ in 0..=rest.len() {
            match decoder.next_frame() {
                Ok(Some(frame)) => same_on(wire, &frame),
                Ok(None) => break,
                Err(_) if wire == Wire::Serial => {}
                Err(_) => return,
            }
        }
    }
}

fn same_on(wire: Wire, frame: &Frame) {
    let mut decoder = Decoder::new(wire);
    decoder.push(&wire.encode(frame));
    assert_eq!(decoder.next_frame().as_ref(), Ok(&Some(frame.clone())));
}

/// The first byte chooses what the rest is to be.
pub fn messages(bytes: &[u8]) {
    let Some((first, body)) = bytes.split_first() else { return };
    match first % 6 {
        0 => message::<Hello>(Kind::Hello, body),
        1 => message::<ToGuest>(Kind::ToGuest, body),
        2 => message::<FromGuest>(Kind::FromGuest, body),
        3 => message::<Peer>(Kind::Peer, body),
        4 => message::<Bye>(Kind::Bye, body),
        _ => message::<Proof>(Kind::Proof, body),
    }
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(kind: Kind, body: &[u8]) {
    let frame = Frame { kind: kind as u16, sequence: 0, body: body.into(), sealed: false };
    let Ok(message) = frame.open::<T>(kind) else { return };
    let Ok(again) = Frame::new(kind, 0, &message) else { return };
    assert_eq!(again.open(kind), Ok(message));
}
