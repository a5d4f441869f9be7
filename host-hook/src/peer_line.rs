//! The way to another host's service, either direction.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use lsm_protocol::{
    Peer,
    frame::{Kind, Wire},
};
use tokio::{net::TcpStream, sync::mpsc};

use crate::{
    dial,
    host::Host,
    line::{Line, LineError},
    peer::{self, Channel},
    story,
};

const AGAIN: Duration = Duration::from_millis(200);
const AGAIN_MAX: Duration = Duration::from_secs(2);

/// Says things to a peer. What cannot be said now is dropped with the line: the machines repeat what matters.
#[derive(Clone, Debug)]
pub struct PeerHandle(mpsc::UnboundedSender<Peer>);

impl PeerHandle {
    pub fn tell(&self, message: Peer) {
        let _ = self.0.send(message);
    }
}

/// What a line that we called has to say.
#[derive(Debug)]
pub enum PeerNews {
    Said(Peer),
    /// The round trip of the question and its answer.
    RoundTrip(Duration),
    /// Not reached, or lost; being called again.
    Failed(String),
}

/// Calls a peer, again and again, until both ends of the channels are dropped.
pub fn call(host: Rc<Host>, name: String) -> (PeerHandle, mpsc::UnboundedReceiver<PeerNews>) {
    let (handle, outbox) = mpsc::unbounded_channel();
    let (news_in, news) = mpsc::unbounded_channel();
    tokio::task::spawn_local(keep(host, name, outbox, news_in));
    (PeerHandle(handle), news)
}

async fn keep(
    host: Rc<Host>,
    name: String,
    mut outbox: mpsc::UnboundedReceiver<Peer>,
    news: mpsc::UnboundedSender<PeerNews>,
) {
    let mut wait = AGAIN;
    let mut unsent = None;
    loop {
        let Some(configured) = host.config.peers.get(&name) else { return };
        let address = &configured.address;
        let tcp = dial::connect(&host.directory, &name, address);
        let failure = match peer::connect_by(&host.identity, &name, address, tcp).await {
            Ok(channel) => match greet(channel).await {
                Ok(line) => {
                    wait = AGAIN;
                    match speak(line, &mut unsent, &mut outbox, &news).await {
                        Some(error) => story(&error),
                        None => return,
                    }
                }
                Err(error) => story(&error),
            },
            Err(error) => story(&error),
        };
        tracing::info!(peer = name, error = failure, "no line to the peer");
        let _ = news.send(PeerNews::Failed(failure));
        tokio::select! {
            () = news.closed() => return, // and the peer is not bothered once more
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(AGAIN_MAX);
    }
}

/// Until the line fails, or nobody is left who wants it.
async fn speak(
    mut line: Line,
    unsent: &mut Option<Peer>,
    outbox: &mut mpsc::UnboundedReceiver<Peer>,
    news: &mpsc::UnboundedSender<PeerNews>,
) -> Option<LineError> {
    let mut asked = None;
    loop {
        if let Some(message) = unsent.as_ref() {
            asked = matches!(message, Peer::Locate { .. }).then(Instant::now);
            if let Err(error) = line.send(Kind::Peer, message).await {
                return Some(error);
            }
            *unsent = None;
        }
        tokio::select! {
            said = line.receive(Kind::Peer) => match said {
                Ok(message) => {
                    if let Some(asked) = asked.take() {
                        let _ = news.send(PeerNews::RoundTrip(asked.elapsed()));
                    }
                    if news.send(PeerNews::Said(message)).is_err() {
                        line.close().await;
                        return None;
                    }
                }
                Err(error) => return Some(error),
            },
            message = outbox.recv() => match message {
                Some(message) => *unsent = Some(message),
                None => {
                    line.close().await;
                    return None;
                }
            },
        }
    }
}

/// Says Hello to a peer that was called.
///
/// # Errors
/// It speaks no version that this host does, or says nothing in time.
pub async fn greet(channel: Channel) -> Result<Line, LineError> {
    in_time(Line::call(Box::new(channel), Wire::Stream, None)).await
}

/// A line whose other end says Hello within [`HELLO`], whichever called.
async fn in_time(greeted: impl Future<Output = Result<Line, LineError>>) -> Result<Line, LineError> {
    let hello = tokio::time::timeout(HELLO, greeted).await;
    hello.unwrap_or(Err(LineError::Broken(std::io::ErrorKind::TimedOut.into())))
}

/// A peer whose certificate is good says Hello within this.
const HELLO: Duration = Duration::from_secs(5);
/// Messages of one peer in a second. A move has a hundred in all; what is more waits in the peer's own queue.
const MOST_MESSAGES: u32 = 200;

/// Counts what a peer says.
struct Pace {
    second: Instant,
    messages: u32,
}

impl Pace {
    fn new() -> Pace {
        Pace { second: Instant::now(), messages: 0 }
    }

    /// One more message. How long to wait before the next is read.
    fn count(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.second);
        if passed >= Duration::from_secs(1) {
            (self.second, self.messages) = (now, 0);
        }
        self.messages += 1;
        (self.messages == MOST_MESSAGES).then(|| Duration::from_secs(1).saturating_sub(passed))
    }
}

/// Answers a caller: checks who it is, and passes on what it says with a handle to answer.
pub async fn answer(host: Rc<Host>, tcp: TcpStream, heard: mpsc::UnboundedSender<(String, PeerHandle, Peer)>) {
    let (name, channel) = match peer::accept(&host.identity, tcp, &host.config.peer_names()).await {
        Ok(accepted) => accepted,
        Err(error) => {
            tracing::warn!(error = story(&error), "a caller was turned away");
            return;
        }
    };
    let mut line = match in_time(Line::answer(Box::new(channel))).await {
        Ok(line) => line,
        Err(error) => {
            tracing::warn!(peer = name, error = story(&error), "no conversation with the peer");
            return;
        }
    };
    let (handle, mut outbox) = mpsc::unbounded_channel();
    let handle = PeerHandle(handle);
    let mut pace = Pace::new();
    loop {
        tokio::select! {
            said = line.receive(Kind::Peer) => match said {
                Ok(message) => {
                    if let Some(wait) = pace.count(Instant::now()) {
                        tracing::warn!(peer = name, MOST_MESSAGES, "a peer says too much in a second; it is heard more slowly");
                        tokio::time::sleep(wait).await;
                    }
                    if heard.send((name.clone(), handle.clone(), message)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::info!(peer = name, reason = story(&error), "line from the peer ended");
                    return;
                }
            },
            Some(message) = outbox.recv() => if let Err(error) = line.send(Kind::Peer, &message).await {
                tracing::info!(peer = name, error = story(&error), "line from the peer broke");
                return;
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_floods_is_heard_at_its_pace_and_others_at_once() {
        let begun = Instant::now();
        let mut pace = Pace { second: begun, messages: 0 };
        let at = |ms: u64| begun + Duration::from_millis(ms);
        assert!((1..MOST_MESSAGES).all(|_| pace.count(at(300)).is_none()));
        assert_eq!(pace.count(at(300)), Some(Duration::from_millis(700)));
        assert_eq!(pace.count(at(1_000)), None);
    }
}
