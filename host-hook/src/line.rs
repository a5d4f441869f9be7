//! Frames on a connection, for guests and peers alike.

use std::io;

use lsm_protocol::{
    Bye, Hello, NoCommonVersion,
    frame::{Decoder, Frame, FrameError, Kind, Wire},
    proof::{Challenger, Key, Proof, Session, Unproved},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{keys::KeyError, random::random};

/// Why a line is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the other side closed the connection")]
    Closed,
    /// Under TLS: it ended otherwise than by the other side's word.
    #[error("the connection was cut off")]
    Cut,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("the other side does not speak this protocol")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
    #[error(transparent)]
    Unproved(#[from] Unproved),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// A stream of either kind.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A connection that speaks frames.
pub struct Line {
    stream: Box<dyn Stream>,
    wire: Wire,
    decoder: Decoder,
    sequence: u32,
    /// Of a serial port, whether bytes were skipped: said once, however much a guest sends.
    skipped: bool,
    /// Where the other side has proved a key.
    session: Option<Session>,
}

impl Line {
    /// The side that called says Hello first. With a key, nothing more is said to whoever does not prove it.
    pub async fn call(stream: Box<dyn Stream>, wire: Wire, key: Option<Key>) -> Result<Line, LineError> {
        let mut line = Line::new(stream, wire);
        if wire == Wire::Serial {
            line.stream.write_all(&[0]).await?; // ends whatever a predecessor left unfinished
        }
        line.send(Kind::Hello, &ours()).await?;
        // What the guest had to say to a predecessor may still be in the port.
        let theirs: Hello = loop {
            match line.next().await? {
                frame if frame.kind == Kind::Hello as u16 => break frame.open(Kind::Hello)?,
                _ if wire == Wire::Serial => {}
                frame => return Err(FrameError::Kind { wanted: Kind::Hello as u16, got: frame.kind }.into()),
            }
        };
        ours().agree(&theirs)?;
        if let Some(key) = key {
            line.challenge(key).await?;
        }
        Ok(line)
    }

    async fn challenge(&mut self, key: Key) -> Result<(), LineError> {
        let (challenger, challenge) = Challenger::new(key, random()?);
        self.send(Kind::Proof, &challenge).await?;
        let answer = loop {
            match self.next().await? {
                frame if frame.kind == Kind::Proof as u16 => {
                    let said = frame.open(Kind::Proof)?;
                    // What the guest said to a predecessor, which went in the middle of this, may still be in the port.
                    if self.wire == Wire::Stream || challenger.asked_for(&said) {
                        break said;
                    }
                }
                _ if self.wire == Wire::Serial => {} // as with Hello
                frame => return Err(FrameError::Kind { wanted: Kind::Proof as u16, got: frame.kind }.into()),
            }
        };
        match challenger.hear(answer) {
            Ok((proven, session)) => {
                self.send(Kind::Proof, &proven).await?;
                self.session = Some(session);
                Ok(())
            }
            Err(why) => {
                // So that both sides' logs have it.
                let _ = self.send(Kind::Proof, &Proof::Refused(why)).await;
                Err(why.into())
            }
        }
    }

    /// The side that was called answers.
    pub async fn answer(stream: Box<dyn Stream>) -> Result<Line, LineError> {
        let mut line = Line::new(stream, Wire::Stream);
        let theirs: Hello = line.next().await?.open(Kind::Hello)?;
        line.send(Kind::Hello, &ours()).await?;
        ours().agree(&theirs)?;
        Ok(line)
    }

    fn new(stream: Box<dyn Stream>, wire: Wire) -> Line {
        Line { stream, wire, decoder: Decoder::new(wire), sequence: 0, skipped: false, session: None }
    }

    pub async fn send<T: Serialize>(&mut self, kind: Kind, message: &T) -> Result<(), LineError> {
        self.sequence = self.sequence.wrapping_add(1);
        let frame = Frame::new(kind, self.sequence, message)?;
        let frame = match &self.session {
            Some(session) => session.seal(frame),
            None => frame,
        };
        self.stream.write_all(&self.wire.encode(&frame)).await?;
        Ok(self.stream.flush().await?)
    }

    /// The next message. May be dropped while it waits: nothing is lost.
    pub async fn receive<T: DeserializeOwned>(&mut self, kind: Kind) -> Result<T, LineError> {
        let frame = self.next().await?;
        if frame.kind == Kind::Proof as u16
            && let Proof::Refused(why) = frame.open(Kind::Proof)?
        {
            return Err(why.into());
        }
        match &mut self.session {
            // An agent that has started anew says so, and cannot seal it.
            Some(session) if frame.kind != Kind::Hello as u16 => Ok(session.unseal(&frame)?.open(kind)?),
            _ => Ok(frame.open(kind)?),
        }
    }

    /// Says goodbye, so that the other side can tell the end from a cut.
    pub async fn close(mut self) {
        if self.wire == Wire::Serial {
            let _ = self.send(Kind::Bye, &Bye).await;
        }
        let _ = self.stream.shutdown().await;
    }

    async fn next(&mut self) -> Result<Frame, LineError> {
        let mut buffer = [0; 4096];
        loop {
            match self.decoder.next_frame() {
                Ok(Some(frame)) => return Ok(frame),
                Ok(None) => {}
                Err(error) if self.wire == Wire::Serial => {
                    if !self.skipped {
                        tracing::warn!(%error, "bytes from the guest's serial port skipped; more will be without a word");
                    }
                    self.skipped = true;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) => return Err(LineError::Closed),
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(LineError::Cut),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn ours() -> Hello {
    Hello::ours(concat!("lsm-hook ", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use lsm_protocol::{FromGuest, MigrationId, ToGuest, proof::Prover};
    use tokio::io::ReadBuf;

    use super::*;

    /// As TLS reads where TCP ends without its word.
    struct Torn;

    impl AsyncRead for Torn {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "https://example.org/why")))
        }
    }

    impl AsyncWrite for Torn {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn a_cut_is_told_in_our_own_words() {
        let cut = Line::call(Box::new(Torn), Wire::Stream, None).await.err().unwrap();
        assert_eq!(crate::story(&cut), "the connection was cut off");
    }

    const SETTLED: FromGuest = FromGuest::Settled { migration: MigrationId([7; 16]) };

    fn key(text: &str) -> Key {
        Key::read(text.as_bytes()).unwrap()
    }

    /// An agent that answers the Hello, and with a key the challenge, then says one thing and whatever it hears next.
    async fn guest(mut line: Line, key: Option<&str>, seals: bool) -> Result<ToGuest, LineError> {
        line.next().await?;
        line.send(Kind::Hello, &ours()).await?;
        let Proof::Challenge(challenge) = line.next().await?.open(Kind::Proof)? else { panic!() };
        let Some(key) = key else {
            line.send(Kind::Proof, &Proof::Declined { challenge, why: Unproved::ByGuest }).await?;
            return line.receive(Kind::ToGuest).await;
        };
        let (prover, answer) = Prover::answer(Key::read(key.as_bytes()).unwrap(), challenge, [2; 32]);
        line.send(Kind::Proof, &answer).await?;
        match line.next().await?.open(Kind::Proof)? {
            Proof::Proven(tag) => line.session = Some(prover.hear(&tag)?).filter(|_| seals),
            Proof::Refused(why) => return Err(why.into()),
            other => panic!("{other:?}"),
        }
        line.send(Kind::FromGuest, &SETTLED).await?;
        line.receive(Kind::ToGuest).await
    }

    async fn host(stream: tokio::io::DuplexStream, wire: Wire) -> Result<FromGuest, LineError> {
        let mut line = Line::call(Box::new(stream), wire, Some(key("a key of the lab"))).await?;
        line.send(Kind::ToGuest, &ToGuest::Query).await?;
        line.receive(Kind::FromGuest).await
    }

    /// What the guest hears, and what the host does.
    async fn meet(
        wire: Wire,
        of_guest: Option<&str>,
        seals: bool,
    ) -> (Result<ToGuest, LineError>, Result<FromGuest, LineError>) {
        let (ours, theirs) = tokio::io::duplex(4096);
        tokio::join!(guest(Line::new(Box::new(theirs), wire), of_guest, seals), host(ours, wire))
    }

    #[tokio::test]
    async fn both_sides_prove_the_key_and_seal_what_they_say() {
        for wire in [Wire::Stream, Wire::Serial] {
            let (heard, said) = meet(wire, Some("a key of the lab"), true).await;
            assert_eq!(heard.unwrap(), ToGuest::Query);
            assert_eq!(said.unwrap(), SETTLED);
        }
    }

    #[tokio::test]
    async fn what_was_answered_to_a_predecessor_in_the_port_is_passed_over() {
        let (ours_end, theirs) = tokio::io::duplex(4096);
        let mut line = Line::new(Box::new(theirs), Wire::Serial);
        let (_, stale) = Prover::answer(key("a key of the lab"), [9; 32], [8; 32]);
        line.send(Kind::Hello, &ours()).await.unwrap();
        line.send(Kind::Proof, &stale).await.unwrap();
        line.send(Kind::Proof, &Proof::Declined { challenge: [7; 32], why: Unproved::OutOfTurn }).await.unwrap();
        line.send(Kind::Proof, &Proof::Refused(Unproved::ByHost)).await.unwrap();
        let (heard, said) = tokio::join!(guest(line, Some("a key of the lab"), true), host(ours_end, Wire::Serial));
        assert_eq!(heard.unwrap(), ToGuest::Query);
        assert_eq!(said.unwrap(), SETTLED);
    }

    #[tokio::test]
    async fn nothing_is_said_to_a_guest_that_proves_nothing() {
        for wire in [Wire::Stream, Wire::Serial] {
            let (heard, said) = meet(wire, Some("a key of another"), true).await;
            assert!(matches!(heard, Err(LineError::Unproved(Unproved::WrongKey))), "{heard:?}");
            assert!(matches!(said, Err(LineError::Unproved(Unproved::WrongKey))), "{said:?}");
            let (heard, said) = meet(wire, None, true).await;
            assert!(matches!(heard, Err(LineError::Unproved(Unproved::ByGuest))), "{heard:?}");
            assert!(matches!(said, Err(LineError::Unproved(Unproved::ByGuest))), "{said:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_without_a_seal_is_not_the_guest_s() {
        let (_, said) = meet(Wire::Stream, Some("a key of the lab"), false).await;
        assert!(matches!(said, Err(LineError::Unproved(Unproved::Seal))), "{said:?}");
    }
}
