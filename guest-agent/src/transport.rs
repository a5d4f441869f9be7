//! The two ways a host reaches the guest, vsock and virtio-serial, with the same frames on both: the host says Hello
//! first, the guest answers it, then messages flow both ways until either side goes. Where this VM has a key, the host
//! proves it in between (see `protocol`'s `proof.rs`).

mod hotplug;
pub mod serial;
pub mod vsock;

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use lsm_protocol::{
    Bye, FromGuest, Hello, ToGuest,
    frame::{Decoder, Frame, FrameError, Kind, Wire},
    proof::{Key, Nonce, Proof, Prover, Session, Unproved},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};

/// What a conversation tells the daemon.
#[derive(Debug)]
pub enum News {
    /// Versions are agreed; answers go into `outbox`.
    Opened {
        session: u64,
        outbox: mpsc::UnboundedSender<FromGuest>,
    },
    Said {
        session: u64,
        told: ToGuest,
    },
    /// Another host speaks on the same port: the one before was left behind.
    Succeeded,
    /// `reset`: not closed by the host's service in good order, as far as this transport can tell.
    Closed {
        session: u64,
        reset: bool,
    },
}

/// Why a conversation ended, for the log.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the host closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("the host sent something else than frames")]
    Frame(#[source] FrameError),
    #[error("the host's first frame was not a Hello")]
    NoHello,
    #[error(transparent)]
    Version(lsm_protocol::NoCommonVersion),
    #[error(transparent)]
    Unproved(Unproved),
    #[error("no random numbers to answer the host's challenge with")]
    NoNonce(#[source] io::Error),
}

static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// One conversation, from Hello to the end. `transport` names it in the log; `reset` comes when the transport breaks in a
/// way that no reader is woken for.
pub async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    reset: impl Future<Output = io::Error>,
    wire: Wire,
    transport: &str,
    key: Option<Key>,
    news: &mpsc::UnboundedSender<News>,
) -> Ended {
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let (outbox, mut answers) = mpsc::unbounded_channel();
    let mut talk = Talk {
        session,
        decoder: Decoder::new(wire),
        wire,
        sequence: 0,
        key,
        door: Door::Shut,
        outbox: Some(outbox),
        bye: false,
        news,
    };
    let mut buffer = vec![0; 4096];
    let mut reset = std::pin::pin!(reset);
    let ended = loop {
        let bytes = tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) => break Ended::Closed,
                Ok(n) => match talk.take(&buffer[..n]) {
                    Ok(answer) => answer,
                    Err((last, why)) => {
                        let _ = stream.write_all(&last).await;
                        break why;
                    }
                },
                Err(error) => break Ended::Broken(error),
            },
            error = &mut reset => break Ended::Broken(error),
            Some(answer) = answers.recv() => talk.reply(&answer),
        };
        if !bytes.is_empty()
            && let Err(error) = stream.write_all(&bytes).await
        {
            break Ended::Broken(error);
        }
    };
    let _ = stream.shutdown().await;
    if talk.outbox.is_none() {
        // A virtio-serial port ends in the same way when the host's service went and when its host was left behind, unless
        // it said so.
        let reset = !talk.bye && (wire == Wire::Serial || matches!(ended, Ended::Broken(_)));
        let _ = news.send(News::Closed { session, reset });
    }
    let reason = crate::path::chain(&ended);
    if let Ended::Unproved(_) = ended {
        tracing::warn!(transport, session, %reason, "refused to speak with the host");
    } else {
        tracing::info!(transport, session, %reason, "conversation with the host ended");
    }
    ended
}

/// How far the other side has come.
enum Door {
    Shut,
    /// It said Hello; the key is to be proved.
    Greeted,
    /// We have proved it.
    Answered(Prover),
    /// Messages are understood; where there is a key, sealed ones.
    Open(Option<Session>),
}

/// Bytes to send; perhaps the last ones, and why.
type Answer = Result<Vec<u8>, (Vec<u8>, Ended)>;

struct Talk<'a> {
    session: u64,
    decoder: Decoder,
    wire: Wire,
    sequence: u32,
    key: Option<Key>,
    door: Door,
    /// Handed to the daemon with the first Hello.
    outbox: Option<mpsc::UnboundedSender<FromGuest>>,
    /// The host's service said goodbye.
    bye: bool,
    news: &'a mpsc::UnboundedSender<News>,
}

impl Talk<'_> {
    /// Understands what was read. Gives the bytes to answer at once; on failure, with the last bytes to send.
    fn take(&mut self, bytes: &[u8]) -> Result<Vec<u8>, (Vec<u8>, Ended)> {
        self.decoder.push(bytes);
        let mut answer = Vec::new();
        loop {
            match self.decoder.next_frame().and_then(|frame| frame.map(|f| self.understand(&f)).transpose()) {
                Ok(Some(Ok(bytes))) => answer.extend(bytes),
                Ok(Some(Err((bytes, why)))) => {
                    answer.extend(bytes);
                    return Err((answer, why));
                }
                Ok(None) => return Ok(answer),
                Err(error) if self.wire == Wire::Serial => {
                    tracing::warn!(session = self.session, %error, "bytes on the serial port skipped");
                }
                Err(error) => return Err((answer, Ended::Frame(error))),
            }
        }
    }

    fn understand(&mut self, frame: &Frame) -> Result<Answer, FrameError> {
        if frame.kind == Kind::Hello as u16 {
            return self.greeted(&frame.open(Kind::Hello)?);
        }
        if frame.kind == Kind::Proof as u16 {
            return Ok(self.proved(frame.open(Kind::Proof)?));
        }
        let unsealed;
        let frame = match &mut self.door {
            Door::Open(Some(session)) => match session.unseal(frame) {
                Ok(frame) => {
                    unsealed = frame;
                    &unsealed
                }
                Err(why) => return Ok(self.refuse(why)),
            },
            Door::Shut | Door::Open(None) => frame,
            Door::Greeted | Door::Answered(_) => return Ok(self.refuse(Unproved::ByHost)),
        };
        if frame.kind == Kind::Bye as u16 {
            frame.open::<Bye>(Kind::Bye)?;
            self.bye = true;
            return Ok(Err((Vec::new(), Ended::Closed)));
        }
        if let Door::Shut = self.door {
            // On a virtio-serial port the host does not see that the agent it spoke to has died, and goes on as before:
            // a Hello that it did not ask for makes it begin anew.
            let bytes = if self.wire == Wire::Serial { self.frame(Kind::Hello, &ours()) } else { Vec::new() };
            return Ok(Err((bytes, Ended::NoHello)));
        }
        let told = frame.open(Kind::ToGuest)?;
        let _ = self.news.send(News::Said { session: self.session, told });
        Ok(Ok(Vec::new()))
    }

    fn greeted(&mut self, theirs: &Hello) -> Result<Answer, FrameError> {
        let bytes = self.frame(Kind::Hello, &ours());
        if let Err(error) = ours().agree(theirs) {
            return Ok(Err((bytes, Ended::Version(error))));
        }
        tracing::info!(session = self.session, host = theirs.software, "a host is here");
        if self.key.is_some() {
            self.door = Door::Greeted;
        } else {
            self.open(None);
        }
        Ok(Ok(bytes))
    }

    fn proved(&mut self, proof: Proof) -> Answer {
        let door = std::mem::replace(&mut self.door, Door::Shut);
        match (proof, door, &self.key) {
            (Proof::Challenge(challenge), Door::Greeted, Some(key)) => {
                let nonce = match crate::key::nonce() {
                    Ok(nonce) => nonce,
                    Err(error) => return Err((Vec::new(), Ended::NoNonce(error))),
                };
                let (prover, answer) = Prover::answer(key.clone(), challenge, nonce);
                self.door = Door::Answered(prover);
                Ok(self.frame(Kind::Proof, &answer))
            }
            (Proof::Challenge(challenge), _, None) => self.decline(challenge, Unproved::ByGuest),
            (Proof::Challenge(challenge), ..) => self.decline(challenge, Unproved::OutOfTurn),
            (Proof::Proven(tag), Door::Answered(prover), _) => match prover.hear(&tag) {
                Ok(session) => {
                    self.open(Some(session));
                    Ok(Vec::new())
                }
                Err(why) => self.refuse(why),
            },
            (Proof::Refused(why), ..) => Err((Vec::new(), Ended::Unproved(why))),
            _ => self.refuse(Unproved::OutOfTurn),
        }
    }

    fn open(&mut self, session: Option<Session>) {
        self.door = Door::Open(session);
        let news = match self.outbox.take() {
            Some(outbox) => News::Opened { session: self.session, outbox },
            // A host at the destination may dial so soon that the port never looks unplugged.
            None => News::Succeeded,
        };
        let _ = self.news.send(news);
    }

    fn decline(&mut self, challenge: Nonce, why: Unproved) -> Answer {
        Err((self.frame(Kind::Proof, &Proof::Declined { challenge, why }), Ended::Unproved(why)))
    }

    fn refuse(&mut self, why: Unproved) -> Answer {
        self.door = Door::Shut;
        Err((self.frame(Kind::Proof, &Proof::Refused(why)), Ended::Unproved(why)))
    }

    /// The bytes of an answer to a host that may have it.
    fn reply(&mut self, answer: &FromGuest) -> Vec<u8> {
        match self.door {
            Door::Open(_) => self.frame(Kind::FromGuest, answer),
            // It has said Hello again, and asks again.
            Door::Shut | Door::Greeted | Door::Answered(_) => Vec::new(),
        }
    }

    /// In its frame, and sealed where it is a message to a host that has proved the key.
    fn frame<T: serde::Serialize>(&mut self, kind: Kind, message: &T) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        match Frame::new(kind, self.sequence, message) {
            Ok(frame) => self.wire.encode(&match &self.door {
                Door::Open(Some(session)) if kind == Kind::FromGuest => session.seal(frame),
                _ => frame,
            }),
            Err(error) => {
                tracing::error!(%error, "an answer does not fit a frame");
                Vec::new()
            }
        }
    }
}

fn ours() -> Hello {
    Hello::ours(concat!("lsm-guest ", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests;
