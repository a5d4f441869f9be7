//! Netlink by hand: messages built and read byte by byte, and a socket that asks the kernel and waits for its answer.
//!
//! The path manager and inet_diag need no more than this, and routes and rules profit from it: the kernel answers within
//! the system call, so that a request is a plain blocking call, and its own words (extended acks) come back with a refusal.

mod codec;

use std::{io, os::fd::AsFd, time::Duration};

use netlink_sys::{Socket, SocketAddr};
use nix::{
    errno::Errno,
    libc,
    sys::{
        socket::{setsockopt, sockopt},
        time::TimeVal,
    },
};

pub use codec::{HEADER, Message, Received, attribute, attributes, bytes_at, messages, u16_at, u32_at, u64_at};

/// Receive buffer of a request. The kernel fills at most 32 KiB per message of a dump (netlink_dump, 6.18).
const BUFFER: usize = 64 * 1024;
/// How often a dump that was disturbed by a change is asked again.
const DUMP_ATTEMPTS: u32 = 8;
/// The kernel answers within the call; only a lost answer can make us wait.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// Whether a request changed anything: "already so" and "already gone" are success, told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    Yes,
    No,
}

/// What was asked of the kernel and could not be done; the cause is the source.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub struct Error {
    what: String,
    source: Cause,
}

impl Error {
    /// `what` completes "cannot ...".
    pub fn new(what: impl Into<String>, source: impl Into<Cause>) -> Self {
        Error { what: what.into(), source: source.into() }
    }

    /// The kernel's errno, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        self.source.errno()
    }
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// `text` is the kernel's extended ack, empty where it gave none.
    #[error("the kernel refuses with {errno}{}{text}", if text.is_empty() { "" } else { ": " })]
    Refused { errno: Errno, text: String },
    #[error("the kernel lacks {0}")]
    Lacking(&'static str),
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    #[error("the kernel's answer is malformed")]
    Malformed,
    #[error("what was listed changed during each of {DUMP_ATTEMPTS} attempts")]
    Unsettled,
}

impl Cause {
    /// The kernel's errno, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Cause::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Cause::Socket(errno.into())
    }
}

/// A socket to one part of the kernel, opened once and kept.
pub struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    /// Opens a socket of a netlink protocol, such as `libc::NETLINK_GENERIC`.
    pub fn open(protocol: i32) -> Result<Self, Cause> {
        let socket = socket(protocol)?;
        let deadline = TimeVal::new(ANSWER_DEADLINE.as_secs() as _, 0);
        setsockopt(&socket, sockopt::ReceiveTimeout, &deadline)?;
        Ok(Channel { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Sends a request and waits until the kernel has done it.
    pub fn change(&mut self, request: Message) -> Result<(), Cause> {
        self.change_all([request])?.pop().unwrap_or(Err(Cause::Malformed))
    }

    /// Sends all requests in **one** write, so that nothing else runs between them, then reads every answer, in order.
    pub fn change_all(&mut self, requests: impl IntoIterator<Item = Message>) -> Result<Vec<Result<(), Cause>>, Cause> {
        let first = self.sequence.wrapping_add(1);
        let mut batch = Vec::new();
        for mut request in requests {
            request.add_flags(libc::NLM_F_ACK);
            self.sequence = self.sequence.wrapping_add(1);
            batch.extend(request.seal(self.sequence));
        }
        let mut answers: Vec<_> =
            (0..self.sequence.wrapping_add(1).wrapping_sub(first)).map(|_| Err(Cause::Malformed)).collect();
        self.send(&batch)?;
        let mut missing = answers.len();
        while missing > 0 {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                let Some(answer) = answers.get_mut(message.sequence.wrapping_sub(first) as usize) else { continue };
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    *answer = acknowledged(message);
                    missing = missing.saturating_sub(1);
                }
            }
        }
        Ok(answers)
    }

    /// Sends all requests in one write, between two messages by which the kernel knows that they belong together: it does
    /// all of them or none.
    pub fn change_as_one(
        &mut self,
        begin: Message,
        requests: impl IntoIterator<Item = Message>,
        end: Message,
    ) -> Result<(), Cause> {
        let mut next = || {
            self.sequence = self.sequence.wrapping_add(1);
            self.sequence
        };
        // Whether those two are answered depends on the kernel's age; in trouble the first always is.
        let mut batch = begin.seal(next());
        let mut missing = 0;
        for mut request in requests {
            request.add_flags(libc::NLM_F_ACK);
            batch.extend(request.seal(next()));
            missing += 1;
        }
        batch.extend(end.seal(next()));
        self.send(&batch)?;
        while missing > 0 {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    acknowledged(message)?;
                    missing -= 1;
                }
            }
        }
        Ok(())
    }

    /// Sends a request that is answered by one message, and hands its payload to `read`.
    pub fn get<T>(&mut self, request: Message, read: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, Cause> {
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&request.seal(self.sequence))?;
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    return read(message.payload).ok_or(Cause::Malformed);
                }
                acknowledged(message)?;
            }
        }
    }

    /// Lists: collects what `read` makes of each payload. Asked again when the kernel says that it changed meanwhile.
    pub fn dump<T>(&mut self, request: Message, mut read: impl FnMut(&[u8]) -> Option<T>) -> Result<Vec<T>, Cause> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            let whole = self.dump_once(request.clone(), |payload| found.extend(read(payload)))?;
            if whole {
                return Ok(found);
            }
        }
        Err(Cause::Unsettled)
    }

    fn dump_once(&mut self, mut request: Message, mut each: impl FnMut(&[u8])) -> Result<bool, Cause> {
        request.add_flags(libc::NLM_F_DUMP);
        self.sequence = self.sequence.wrapping_add(1);
        self.send(&request.seal(self.sequence))?;
        let mut whole = true;
        loop {
            self.receive()?;
            for message in messages(&self.buffer) {
                let message = message?;
                if message.sequence != self.sequence {
                    continue;
                }
                whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => return acknowledged(message).map(|()| whole),
                    _ => each(message.payload),
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Cause> {
        self.socket.send(bytes, 0)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), Cause> {
        receive(&self.socket, &mut self.buffer)?;
        Ok(())
    }
}

/// A socket that talks to the kernel only, with extended acks.
pub(crate) fn socket(protocol: i32) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol as isize)?;
    socket.bind_auto()?;
    // Connected: other processes cannot put messages into it.
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_ext_ack(true)?;
    Ok(socket)
}

/// Gives a socket a receive buffer of `bytes`, beyond `net.core.rmem_max` where that is allowed.
pub(crate) fn set_receive_buffer(socket: &impl AsFd, bytes: usize) -> io::Result<()> {
    // In a user namespace of its own root may not force; what rmem_max allows is better than nothing.
    setsockopt(socket, sockopt::RcvBufForce, &bytes).or_else(|_| setsockopt(socket, sockopt::RcvBuf, &bytes))?;
    Ok(())
}

/// Replaces what is in `buffer` by one datagram. A datagram that does not fit is an error.
pub(crate) fn receive(socket: &Socket, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    buffer.reserve(BUFFER);
    let length = loop {
        match socket.recv(buffer, libc::MSG_TRUNC) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if length > buffer.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    Ok(())
}

/// The verdict in an NLMSG_ERROR or NLMSG_DONE: an errno, then in an error the request (unless capped), then attributes.
pub(crate) fn acknowledged(message: Received<'_>) -> Result<(), Cause> {
    /// linux/netlink.h
    const NLMSGERR_ATTR_MSG: u16 = 1;

    let Some(errno) = u32_at(message.payload, 0).map(|raw| raw as i32) else {
        // Old dumps end without a code.
        return if i32::from(message.kind) == libc::NLMSG_DONE { Ok(()) } else { Err(Cause::Malformed) };
    };
    if errno == 0 {
        return Ok(());
    }
    let extended = i32::from(message.flags) & libc::NLM_F_ACK_TLVS != 0;
    let request = if i32::from(message.kind) == libc::NLMSG_DONE {
        0
    } else if i32::from(message.flags) & libc::NLM_F_CAPPED != 0 {
        HEADER
    } else {
        u32_at(message.payload, 4).map_or(HEADER, |length| length as usize).next_multiple_of(4)
    };
    let text = extended
        .then(|| message.payload.get(request.saturating_add(4)..))
        .flatten()
        .and_then(|bytes| attribute(bytes, NLMSGERR_ATTR_MSG))
        .map(|text| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
        .unwrap_or_default();
    Err(Cause::Refused { errno: Errno::from_raw(errno.wrapping_neg()), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_carries_errno_and_the_kernels_words() {
        for capped in [false, true] {
            let request = Message::new(0x1c, 0).attribute(7, b"abc").seal(42);
            let mut payload = (-libc::EEXIST).to_ne_bytes().to_vec();
            payload.extend_from_slice(if capped { &request[..HEADER] } else { &request });
            payload.extend_from_slice(&Message::new(0, 0).attribute(1, b"address exists\0").seal(0)[HEADER..]);
            let flags = libc::NLM_F_ACK_TLVS | if capped { libc::NLM_F_CAPPED } else { 0 };
            let kind = libc::NLMSG_ERROR as u16;
            let whole = Received { kind, flags: flags as u16, sequence: 1, payload: &payload };
            let error = acknowledged(whole).unwrap_err();
            assert_eq!(error.errno(), Some(Errno::EEXIST));
            assert!(error.to_string().ends_with(": address exists"), "{error}");
            for length in 0..payload.len() {
                assert!(acknowledged(Received { payload: &payload[..length], ..whole }).is_err());
            }
        }
    }

    #[test]
    fn an_errno_at_the_edge_of_its_range_is_no_panic() {
        let payload = i32::MIN.to_ne_bytes();
        let kind = libc::NLMSG_ERROR as u16;
        assert!(acknowledged(Received { kind, flags: u16::MAX, sequence: 0, payload: &payload }).is_err());
        let mut lies = payload.to_vec();
        lies.extend_from_slice(&[0xff; 40]);
        assert!(acknowledged(Received { kind, flags: 0x200, sequence: 0, payload: &lies }).is_err());
    }

    /// A channel to somebody who is not the kernel, and answers each request with the next of these datagrams.
    fn answered(answers: Vec<Vec<u8>>) -> (Channel, std::thread::JoinHandle<()>) {
        let mut theirs = Socket::new(libc::NETLINK_USERSOCK as isize).unwrap();
        let there = theirs.bind_auto().unwrap();
        let mut ours = Socket::new(libc::NETLINK_USERSOCK as isize).unwrap();
        let here = ours.bind_auto().unwrap();
        ours.connect(&there).unwrap();
        let answering = std::thread::spawn(move || {
            for answer in answers {
                let mut request = Vec::new();
                receive(&theirs, &mut request).unwrap();
                theirs.send_to(&answer, &here, 0).unwrap();
            }
        });
        (Channel { socket: ours, sequence: 0, buffer: Vec::new() }, answering)
    }

    /// What a dump number `sequence` gives: one row each for `rows`, flagged, then the end.
    fn dumped(sequence: u32, rows: &[u8], flags: i32) -> Vec<u8> {
        let row = |kind: u16, flags: i32, payload: &[u8]| Message::new(kind, flags).raw(payload).seal(sequence);
        let rows = rows.iter().flat_map(|value| row(77, libc::NLM_F_MULTI | flags, &[*value; 4]));
        rows.chain(row(libc::NLMSG_DONE as u16, libc::NLM_F_MULTI, &[0; 4])).collect()
    }

    #[test]
    fn a_dump_that_was_disturbed_is_asked_again_and_nothing_of_it_is_kept() {
        let disturbed = dumped(1, &[1, 2], libc::NLM_F_DUMP_INTR);
        let (mut channel, answering) = answered(vec![disturbed, dumped(2, &[2, 3], 0)]);
        let found = channel.dump(Message::new(77, 0), |payload| payload.first().copied()).unwrap();
        assert_eq!(found, [2, 3]);
        answering.join().unwrap();
    }

    #[test]
    fn a_dump_that_is_always_disturbed_is_an_error() {
        let answers = (1..=DUMP_ATTEMPTS).map(|sequence| dumped(sequence, &[1], libc::NLM_F_DUMP_INTR)).collect();
        let (mut channel, answering) = answered(answers);
        let error = channel.dump(Message::new(77, 0), |payload| payload.first().copied()).unwrap_err();
        assert!(matches!(error, Cause::Unsettled), "{error}");
        answering.join().unwrap();
    }
}
