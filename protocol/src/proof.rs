//! Proof of the key that a VM and its hosts share, where they have one: HMAC-SHA256 over both sides' nonces, each side
//! with a label of its own, so that neither can be sent back to its maker.
//!
//! ```text
//! host   Hello, Challenge(nonce) ------------>   guest
//!        <------------ Hello, Answer(nonce, tag)          the guest has the key
//!                      or Declined(why)
//!        Proven(tag) ------------------------>            so has the host
//!        <---------- sealed frames ---------->
//! ```
//!
//! From then on every frame is sealed ([`Frame::seal`]): a virtio-serial port can pass from one program to another on
//! the host without a sign, and the one that proved the key is not the one that speaks next.
//!
//! What the guest says to a challenge repeats it: on such a port it may be heard by another than who asked, and taken for
//! the answer to the next one it would leave that one's answer for whoever asks then, and so on for ever.
//!
//! The key itself is never sent, and keys of the session are derived from it and the nonces: what was said in one
//! conversation is worth nothing in another.

use alloc::vec::Vec;
use core::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use crate::frame::{Frame, Unsealed};

/// 32 random bytes, new for each conversation.
pub type Nonce = [u8; 32];
/// HMAC-SHA256, whole.
pub type Tag = [u8; 32];

/// Fewer bytes could be guessed.
const LEAST: usize = 16;
/// More is a file that is no key.
const MOST: usize = 1024;

/// What is said to prove the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// The host has a key, and wants to see that the guest has it.
    Challenge(Nonce),
    /// The guest's proof, and its own challenge (`nonce`).
    Answer { challenge: Nonce, nonce: Nonce, tag: Tag },
    /// The host's proof.
    Proven(Tag),
    /// No further. Nothing else comes.
    Refused(Unproved),
    /// The same instead of an answer.
    Declined { challenge: Nonce, why: Unproved },
}

/// Why a conversation ends before it begins. Appended to, never parsed from text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Unproved {
    #[error("the guest demands proof of its key, and the host gave none; put the VM's key into /etc/lsm/keys there")]
    ByHost,
    #[error(
        "the host demands proof of its key for this VM, and the guest has none; put it into the VM's /etc/lsm/guest.key"
    )]
    ByGuest,
    #[error("the host's key for this VM and the guest's are not the same")]
    WrongKey,
    #[error("a frame of the proof came where it does not belong")]
    OutOfTurn,
    #[error("a frame is not sealed by whoever proved the key, or was sent before")]
    Seal,
}

/// A secret of at least 16 bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Vec<u8>);

/// Bytes that cannot be a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key has from {LEAST} to {MOST} bytes, not {0}")]
pub struct NotAKey(usize);

impl Key {
    /// The content of a key file; line ends behind it are not of the key.
    pub fn read(mut content: &[u8]) -> Result<Key, NotAKey> {
        while let Some((b'\n' | b'\r', rest)) = content.split_last() {
            content = rest;
        }
        if (LEAST..=MOST).contains(&content.len()) { Ok(Key(content.into())) } else { Err(NotAKey(content.len())) }
    }

    fn over(&self, label: &[u8], nonces: &Nonces) -> Hmac<Sha256> {
        let mut hmac = keyed(&self.0);
        hmac.update(label);
        hmac.update(&nonces.host);
        hmac.update(&nonces.guest);
        hmac
    }

    fn tag(&self, label: &[u8], nonces: &Nonces) -> Tag {
        self.over(label, nonces).finalize().into_bytes().into()
    }

    /// In a time that does not tell how much of the tag is right.
    fn check(&self, label: &[u8], nonces: &Nonces, tag: &Tag) -> Result<(), Unproved> {
        self.over(label, nonces).verify_slice(tag).map_err(|_| Unproved::WrongKey)
    }

    fn session(&self, nonces: &Nonces, ours: &[u8], theirs: &[u8]) -> Session {
        Session { ours: Seal(self.tag(ours, nonces)), theirs: Seal(self.tag(theirs, nonces)), heard: 0 }
    }
}

/// Keys are in no log.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

// All of one length: no label and nonce together are another label and nonce.
const GUEST_PROVES: &[u8] = b"lsm 1: the guest";
const HOST_PROVES: &[u8] = b"lsm 1: the host ";
const TO_GUEST: &[u8] = b"lsm 1: to guest ";
const TO_HOST: &[u8] = b"lsm 1: to host  ";

#[derive(Clone)]
struct Nonces {
    host: Nonce,
    guest: Nonce,
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(hmac) => hmac,
        Err(_) => unreachable!("HMAC takes keys of any length (RFC 2104)"),
    }
}

/// The host's side, between its challenge and the guest's answer.
pub struct Challenger {
    key: Key,
    nonce: Nonce,
}

impl Challenger {
    /// Begins, with what to say.
    pub fn new(key: Key, nonce: Nonce) -> (Challenger, Proof) {
        (Challenger { key, nonce }, Proof::Challenge(nonce))
    }

    /// Whether this is said to our challenge, and not to a predecessor's.
    pub fn asked_for(&self, said: &Proof) -> bool {
        matches!(said, Proof::Answer { challenge, .. } | Proof::Declined { challenge, .. } if *challenge == self.nonce)
    }

    /// Takes the guest's answer; gives what to say last.
    ///
    /// # Errors
    /// The guest has not proved the key.
    pub fn hear(self, said: Proof) -> Result<(Proof, Session), Unproved> {
        match said {
            Proof::Answer { nonce, tag, .. } => {
                let nonces = Nonces { host: self.nonce, guest: nonce };
                self.key.check(GUEST_PROVES, &nonces, &tag)?;
                let proven = Proof::Proven(self.key.tag(HOST_PROVES, &nonces));
                Ok((proven, self.key.session(&nonces, TO_GUEST, TO_HOST)))
            }
            Proof::Refused(why) | Proof::Declined { why, .. } => Err(why),
            Proof::Challenge(_) | Proof::Proven(_) => Err(Unproved::OutOfTurn),
        }
    }
}

/// The guest's side, between its answer and the host's proof.
pub struct Prover {
    key: Key,
    nonces: Nonces,
}

impl Prover {
    /// Answers the host's challenge.
    pub fn answer(key: Key, challenge: Nonce, nonce: Nonce) -> (Prover, Proof) {
        let nonces = Nonces { host: challenge, guest: nonce };
        let tag = key.tag(GUEST_PROVES, &nonces);
        (Prover { key, nonces }, Proof::Answer { challenge, nonce, tag })
    }

    /// Takes the host's proof.
    ///
    /// # Errors
    /// The host has not the key.
    pub fn hear(self, tag: &Tag) -> Result<Session, Unproved> {
        self.key.check(HOST_PROVES, &self.nonces, tag)?;
        Ok(self.key.session(&self.nonces, TO_HOST, TO_GUEST))
    }
}

/// A conversation in which both sides have proved the key.
pub struct Session {
    ours: Seal,
    theirs: Seal,
    /// The highest sequence number that was heard.
    heard: u32,
}

impl Session {
    /// Seals a frame that goes out.
    pub fn seal(&self, frame: Frame) -> Frame {
        frame.seal(|covered| self.ours.over(covered).finalize().into_bytes().into())
    }

    /// Takes the seal off a frame that came in.
    ///
    /// # Errors
    /// There is none, it is not theirs, or the frame is a repetition.
    pub fn unseal(&mut self, frame: &Frame) -> Result<Frame, Unproved> {
        let Unsealed { frame, covered, tag } = frame.unseal().ok_or(Unproved::Seal)?;
        self.theirs.over(&covered).verify_truncated_left(&tag).map_err(|_| Unproved::Seal)?;
        if frame.sequence <= self.heard {
            return Err(Unproved::Seal);
        }
        self.heard = frame.sequence;
        Ok(frame)
    }
}

/// The key of one direction of one conversation.
struct Seal(Tag);

impl Seal {
    fn over(&self, covered: &[u8]) -> Hmac<Sha256> {
        let mut hmac = keyed(&self.0);
        hmac.update(covered);
        hmac
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use super::*;
    use crate::{ToGuest, frame::Kind};

    fn key(text: &str) -> Key {
        Key::read(text.as_bytes()).unwrap()
    }

    fn sessions() -> (Session, Session) {
        let (host, challenge) = Challenger::new(key("0123456789abcdef"), [1; 32]);
        let Proof::Challenge(nonce) = challenge else { panic!("{challenge:?}") };
        let (guest, answer) = Prover::answer(key("0123456789abcdef\n"), nonce, [2; 32]);
        let (proven, at_host) = host.hear(answer).unwrap();
        let Proof::Proven(tag) = proven else { panic!("{proven:?}") };
        (at_host, guest.hear(&tag).unwrap())
    }

    fn query(sequence: u32) -> Frame {
        Frame::new(Kind::ToGuest, sequence, &ToGuest::Query).unwrap()
    }

    #[test]
    fn who_has_the_key_is_understood() {
        let (mut host, mut guest) = sessions();
        let sent = query(5);
        assert_eq!(guest.unseal(&host.seal(sent.clone())), Ok(sent.clone()));
        assert_eq!(host.unseal(&guest.seal(sent.clone())), Ok(sent));
    }

    #[test]
    fn who_has_another_key_proves_nothing() {
        let (host, _) = Challenger::new(key("0123456789abcdef"), [1; 32]);
        let (guest, answer) = Prover::answer(key("0123456789abcdeF"), [1; 32], [2; 32]);
        assert_eq!(host.hear(answer).err(), Some(Unproved::WrongKey));
        let nonces = Nonces { host: [1; 32], guest: [2; 32] };
        let tag = key("0123456789abcdef").tag(HOST_PROVES, &nonces);
        assert_eq!(guest.hear(&tag).err(), Some(Unproved::WrongKey));
    }

    #[test]
    fn a_proof_sent_back_or_from_another_conversation_proves_nothing() {
        let (guest, answer) = Prover::answer(key("0123456789abcdef"), [1; 32], [2; 32]);
        let Proof::Answer { tag, .. } = answer.clone() else { panic!("{answer:?}") };
        assert_eq!(guest.hear(&tag).err(), Some(Unproved::WrongKey), "its own proof");
        let (host, _) = Challenger::new(key("0123456789abcdef"), [3; 32]);
        assert_eq!(host.hear(answer).err(), Some(Unproved::WrongKey), "a recorded one");
        let (host, challenge) = Challenger::new(key("0123456789abcdef"), [3; 32]);
        assert_eq!(host.hear(challenge).err(), Some(Unproved::OutOfTurn));
    }

    #[test]
    fn what_is_said_to_another_challenge_is_known() {
        let (host, _) = Challenger::new(key("0123456789abcdef"), [1; 32]);
        for (challenge, ours) in [([1; 32], true), ([3; 32], false)] {
            let (_, answer) = Prover::answer(key("0123456789abcdef"), challenge, [2; 32]);
            assert_eq!(host.asked_for(&answer), ours);
            assert_eq!(host.asked_for(&Proof::Declined { challenge, why: Unproved::ByGuest }), ours);
        }
        assert!(!host.asked_for(&Proof::Refused(Unproved::WrongKey)), "that follows our proof, or a predecessor's");
    }

    #[test]
    fn a_frame_changed_repeated_turned_round_or_without_a_seal_is_refused() {
        let (host, mut guest) = sessions();
        let sealed = host.seal(query(5));
        for at in 0..sealed.body.len() {
            let mut changed = sealed.clone();
            changed.body[at] ^= 1;
            assert_eq!(guest.unseal(&changed), Err(Unproved::Seal), "byte {at}");
        }
        let renumbered = Frame { sequence: 6, ..sealed.clone() };
        assert_eq!(guest.unseal(&renumbered), Err(Unproved::Seal));
        let renamed = Frame { kind: Kind::Bye as u16, ..sealed.clone() };
        assert_eq!(guest.unseal(&renamed), Err(Unproved::Seal));
        let short = Frame { body: vec![0; 3], ..sealed.clone() };
        assert_eq!(guest.unseal(&short), Err(Unproved::Seal));
        assert_eq!(guest.unseal(&query(7)), Err(Unproved::Seal), "no seal");
        let (mut host_again, _) = sessions();
        assert_eq!(host_again.unseal(&sealed), Err(Unproved::Seal), "turned round");
        assert_eq!(guest.unseal(&sealed), Ok(query(5)));
        assert_eq!(guest.unseal(&sealed), Err(Unproved::Seal), "repeated");
    }

    #[test]
    fn a_key_is_long_enough_and_in_no_log() {
        assert_eq!(Key::read(b"0123456789abcde\r\n\n"), Err(NotAKey(15)));
        assert_eq!(Key::read(&[7; 2000]), Err(NotAKey(2000)));
        assert_eq!(format!("{:?}", key("a very secret key")), "Key(..)");
    }
}
