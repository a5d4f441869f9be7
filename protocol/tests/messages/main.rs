//! The bytes of every message are frozen, and no bytes at all can do harm.

mod samples;
#[path = "../world/world.rs"]
mod world;

use std::{collections::BTreeSet, fmt::Debug};

use lsm_protocol::{
    Bye, FromGuest, Hello, Peer, Proof, ToGuest,
    frame::{Decoder, Frame, Kind, Wire},
    proof::{Challenger, Key, Prover},
};
use serde::{Serialize, de::DeserializeOwned};

/// A message's name and the frame it travels in.
struct Sample {
    name: String,
    kind: Kind,
    frame: Frame,
}

fn samples_of<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    kind: Kind,
    of: Vec<(impl std::fmt::Display, T)>,
) -> Vec<Sample> {
    let sample = |(name, message)| {
        let frame = Frame::new(kind, 7, &message).expect("a sample fits a frame");
        assert_eq!(frame.open::<T>(kind), Ok(message), "{name}");
        Sample { name: format!("{kind:?} {name}"), kind, frame }
    };
    of.into_iter().map(sample).collect()
}

fn all() -> Vec<Sample> {
    let mut all = samples_of(Kind::Hello, samples::hello());
    all.extend(samples_of(Kind::ToGuest, samples::to_guest()));
    all.extend(samples_of(Kind::FromGuest, samples::from_guest()));
    all.extend(samples_of(Kind::Peer, samples::peer()));
    all.extend(samples_of(Kind::Bye, vec![("", Bye)]));
    all.extend(samples_of(Kind::Proof, samples::proof()));
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_bytes_are_frozen() {
    let mut text = String::new();
    for sample in all() {
        text.push_str(&format!("{}\n  {}\n", sample.name, hex(&sample.frame.encode())));
    }
    let first = samples_of(Kind::ToGuest, samples::to_guest()).remove(0);
    text.push_str(&format!("{} on a serial port\n  {}\n", first.name, hex(&first.frame.encode_serial())));
    world::golden("messages.txt", &text);
}

/// A whole proof, as two versions of the programs must agree on it.
#[test]
fn a_proof_is_frozen() {
    let key = Key::read(b"a key of the lab\n").unwrap();
    let (host, challenge) = Challenger::new(key.clone(), [1; 32]);
    let (guest, answer) = Prover::answer(key, [1; 32], [2; 32]);
    let (proven, at_host) = host.hear(answer.clone()).unwrap();
    let Proof::Proven(tag) = &proven else { panic!("{proven:?}") };
    let at_guest = guest.hear(tag).unwrap();
    let to_guest = at_host.seal(Frame::new(Kind::ToGuest, 3, &ToGuest::Query).unwrap());
    let to_host = at_guest.seal(Frame::new(Kind::Bye, 4, &Bye).unwrap());
    let said = [(1, &challenge), (2, &answer), (2, &proven)];
    let said = said.map(|(sequence, proof)| Frame::new(Kind::Proof, sequence, proof).unwrap());
    let lines: Vec<String> = said.iter().chain([&to_guest, &to_host]).map(|frame| hex(&frame.encode())).collect();
    world::golden("proof.txt", &(lines.join("\n") + "\n"));
}

#[test]
fn the_frozen_bytes_are_still_understood() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/golden/messages.txt");
    let frozen = std::fs::read_to_string(path).unwrap();
    let mut understood = 0;
    for (name, bytes) in frozen.lines().zip(frozen.lines().skip(1)).step_by(2) {
        let bytes: Vec<u8> = bytes
            .trim()
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        let wire = if name.ends_with("serial port") { Wire::Serial } else { Wire::Stream };
        let mut decoder = Decoder::new(wire);
        decoder.push(&bytes);
        let frame = decoder.next_frame().unwrap().unwrap();
        let again = match frame.kind {
            0 => frame.open::<Hello>(Kind::Hello).map(|m| Frame::new(Kind::Hello, 7, &m)),
            1 => frame.open::<ToGuest>(Kind::ToGuest).map(|m| Frame::new(Kind::ToGuest, 7, &m)),
            2 => frame.open::<FromGuest>(Kind::FromGuest).map(|m| Frame::new(Kind::FromGuest, 7, &m)),
            4 => frame.open::<Bye>(Kind::Bye).map(|m| Frame::new(Kind::Bye, 7, &m)),
            5 => frame.open::<Proof>(Kind::Proof).map(|m| Frame::new(Kind::Proof, 7, &m)),
            _ => frame.open::<Peer>(Kind::Peer).map(|m| Frame::new(Kind::Peer, 7, &m)),
        };
        assert_eq!(again, Ok(Ok(frame)), "{name}");
        understood += 1;
    }
    assert_eq!(understood, all().len() + 1);
}

/// The first byte of a body is the variant. The one after the last must not exist, or it has no sample.
#[test]
fn every_variant_has_a_sample() {
    fn complete<T: DeserializeOwned>(kind: Kind, ours: &[Sample]) {
        let variants: BTreeSet<u8> = ours.iter().filter(|s| s.kind == kind).map(|s| s.frame.body[0]).collect();
        let count = u8::try_from(variants.len()).unwrap();
        assert!(variants.iter().copied().eq(0..count), "{kind:?}: samples for the variants {variants:?} only");
        for fill in [0, 1, 16] {
            // As much as a decoder may want, of bytes that most things can be decoded from.
            for length in 0..400 {
                let mut body = vec![fill; length];
                body.insert(0, count);
                let opened = Frame { kind: kind as u16, sequence: 0, body, sealed: false }.open::<T>(kind);
                assert!(opened.is_err(), "{kind:?}: variant {count} has no sample");
            }
        }
    }
    let ours = all();
    complete::<ToGuest>(Kind::ToGuest, &ours);
    complete::<FromGuest>(Kind::FromGuest, &ours);
    complete::<Peer>(Kind::Peer, &ours);
    complete::<Proof>(Kind::Proof, &ours);
}

/// Whatever it is: an answer, and no panic.
fn take(bytes: &[u8], wire: Wire) {
    let mut decoder = Decoder::new(wire);
    decoder.push(bytes);
    for _ in 0..3 {
        let Ok(Some(frame)) = decoder.next_frame() else { continue };
        let _ = frame.open::<Hello>(Kind::Hello);
        let _ = frame.open::<ToGuest>(Kind::ToGuest);
        let _ = frame.open::<FromGuest>(Kind::FromGuest);
        let _ = frame.open::<Peer>(Kind::Peer);
        let _ = frame.open::<Bye>(Kind::Bye);
        let _ = frame.open::<Proof>(Kind::Proof);
    }
}

#[test]
fn every_prefix_is_incomplete() {
    for sample in all() {
        let bytes = sample.frame.encode();
        for length in 0..bytes.len() {
            let mut decoder = Decoder::new(Wire::Stream);
            decoder.push(&bytes[..length]);
            assert_eq!(decoder.next_frame(), Ok(None), "{} cut at {length}", sample.name);
        }
        let body = &sample.frame.body;
        for length in 0..body.len() {
            let cut = Frame { body: body[..length].to_vec(), ..sample.frame.clone() };
            take(&cut.encode(), Wire::Stream);
            let serial = cut.encode_serial();
            take(&serial[..length.min(serial.len())], Wire::Serial);
        }
    }
}

#[test]
fn any_byte_changed_does_no_harm() {
    for sample in all() {
        for (wire, mut bytes) in [(Wire::Stream, sample.frame.encode()), (Wire::Serial, sample.frame.encode_serial())] {
            for at in 0..bytes.len() {
                let was = bytes[at];
                for other in 0..=u8::MAX {
                    bytes[at] = other;
                    take(&bytes, wire);
                }
                bytes[at] = was;
            }
        }
    }
}

/// On a serial port, a frame with one byte changed is never taken for another message: the check sum tells.
#[test]
fn a_changed_byte_on_a_serial_port_is_noticed() {
    for sample in all() {
        let good = sample.frame.encode_serial();
        for at in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                let mut decoder = Decoder::new(Wire::Serial);
                decoder.push(&bytes);
                assert!(!matches!(decoder.next_frame(), Ok(Some(_))), "{} at {at}", sample.name);
            }
        }
    }
}
