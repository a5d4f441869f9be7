//! Frames on a connection, for guests and peers alike.

use std::io;

use lsm_protocol::{
    Bye, Hello, NoCommonVersion,
    frame::{Decoder, Frame, FrameError, Kind, Wire},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why a line is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the other side closed the connection")]
    Closed,
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("the other side does not speak this protocol")]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Version(#[from] NoCommonVersion),
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
}

impl Line {
    /// The side that called says Hello first.
    pub async fn call(stream: Box<dyn Stream>, wire: Wire) -> Result<Line, LineError> {
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
        Ok(line)
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
        Line { stream, wire, decoder: Decoder::new(wire), sequence: 0, skipped: false }
    }

    pub async fn send<T: Serialize>(&mut self, kind: Kind, message: &T) -> Result<(), LineError> {
        self.sequence = self.sequence.wrapping_add(1);
        let frame = Frame::new(kind, self.sequence, message)?;
        self.stream.write_all(&self.wire.encode(&frame)).await?;
        Ok(self.stream.flush().await?)
    }

    /// The next message. May be dropped while it waits: nothing is lost.
    pub async fn receive<T: DeserializeOwned>(&mut self, kind: Kind) -> Result<T, LineError> {
        Ok(self.next().await?.open(kind)?)
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
            match self.stream.read(&mut buffer).await? {
                0 => return Err(LineError::Closed),
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }
}

fn ours() -> Hello {
    Hello::ours(concat!("lsm-hook ", env!("CARGO_PKG_VERSION")))
}
