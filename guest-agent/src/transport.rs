//! The two ways a host reaches the guest, vsock and virtio-serial, with the same frames on both: the host says Hello
//! first, the guest answers it, then messages flow both ways until either side goes.

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
}

static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// One conversation, from Hello to the end. `transport` names it in the log; `reset` comes when the transport breaks in a
/// way that no reader is woken for.
pub async fn converse(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    reset: impl Future<Output = io::Error>,
    wire: Wire,
    transport: &str,
    news: &mpsc::UnboundedSender<News>,
) -> Ended {
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let (outbox, mut answers) = mpsc::unbounded_channel();
    let mut talk =
        Talk { session, decoder: Decoder::new(wire), wire, sequence: 0, outbox: Some(outbox), bye: false, news };
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
            Some(answer) = answers.recv() => talk.frame(Kind::FromGuest, &answer),
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
    tracing::info!(transport, session, reason = %crate::path::chain(&ended), "conversation with the host ended");
    ended
}

struct Talk<'a> {
    session: u64,
    decoder: Decoder,
    wire: Wire,
    sequence: u32,
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

    #[expect(clippy::type_complexity, reason = "bytes to send, then perhaps the end")]
    fn understand(&mut self, frame: &Frame) -> Result<Result<Vec<u8>, (Vec<u8>, Ended)>, FrameError> {
        if frame.kind == Kind::Hello as u16 {
            let theirs: Hello = frame.open(Kind::Hello)?;
            let ours = Hello::ours(concat!("lsm-guest ", env!("CARGO_PKG_VERSION")));
            let bytes = self.frame(Kind::Hello, &ours);
            if let Err(error) = ours.agree(&theirs) {
                return Ok(Err((bytes, Ended::Version(error))));
            }
            let news = match self.outbox.take() {
                Some(outbox) => News::Opened { session: self.session, outbox },
                // A host at the destination may dial so soon that the port never looks unplugged.
                None => News::Succeeded,
            };
            let _ = self.news.send(news);
            tracing::info!(session = self.session, host = theirs.software, "a host is here");
            return Ok(Ok(bytes));
        }
        if frame.kind == Kind::Bye as u16 {
            frame.open::<Bye>(Kind::Bye)?;
            self.bye = true;
            return Ok(Err((Vec::new(), Ended::Closed)));
        }
        if self.outbox.is_some() {
            // On a virtio-serial port the host does not see that the agent it spoke to has died, and goes on as before:
            // a Hello that it did not ask for makes it begin anew.
            let ours = Hello::ours(concat!("lsm-guest ", env!("CARGO_PKG_VERSION")));
            let bytes = if self.wire == Wire::Serial { self.frame(Kind::Hello, &ours) } else { Vec::new() };
            return Ok(Err((bytes, Ended::NoHello)));
        }
        let told = frame.open(Kind::ToGuest)?;
        let _ = self.news.send(News::Said { session: self.session, told });
        Ok(Ok(Vec::new()))
    }

    fn frame<T: serde::Serialize>(&mut self, kind: Kind, message: &T) -> Vec<u8> {
        self.sequence = self.sequence.wrapping_add(1);
        match Frame::new(kind, self.sequence, message) {
            Ok(frame) => self.wire.encode(&frame),
            Err(error) => {
                tracing::error!(%error, "an answer does not fit a frame");
                Vec::new()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the daemon hears when a host says these and goes.
    async fn heard(wire: Wire, said: &[Frame]) -> Vec<News> {
        let (news_in, mut news) = mpsc::unbounded_channel();
        let (mut host, guest) = tokio::io::duplex(4096);
        for frame in said {
            host.write_all(&wire.encode(frame)).await.unwrap();
        }
        host.shutdown().await.unwrap();
        converse(guest, std::future::pending(), wire, "a test", &news_in).await;
        drop(news_in);
        let mut heard = Vec::new();
        while let Some(news) = news.recv().await {
            heard.push(news);
        }
        heard
    }

    #[tokio::test]
    async fn a_serial_port_that_ends_without_a_goodbye_is_an_arrival() {
        let hello = Frame::new(Kind::Hello, 1, &Hello::ours("a test")).unwrap();
        let bye = Frame::new(Kind::Bye, 2, &Bye).unwrap();
        for (said, expected) in [(vec![hello.clone()], true), (vec![hello, bye], false)] {
            let news = heard(Wire::Serial, &said).await;
            let [News::Opened { .. }, News::Closed { reset, .. }] = &news[..] else { panic!("{news:?}") };
            assert_eq!(*reset, expected);
        }
    }
}
