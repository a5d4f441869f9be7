//! What a host may say before it is heard.

use lsm_protocol::proof::Challenger;

use super::*;

/// What the daemon hears when a host says these and goes.
async fn heard(wire: Wire, said: &[Frame]) -> Vec<News> {
    let (news_in, mut news) = mpsc::unbounded_channel();
    let (mut host, guest) = tokio::io::duplex(4096);
    for frame in said {
        host.write_all(&wire.encode(frame)).await.unwrap();
    }
    host.shutdown().await.unwrap();
    converse(guest, std::future::pending(), wire, "a test", None, &news_in).await;
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

/// An agent with this key, and a host that says what a test wants.
struct Host {
    stream: tokio::io::DuplexStream,
    decoder: Decoder,
    sequence: u32,
    news: mpsc::UnboundedReceiver<News>,
}

impl Host {
    fn before(key: Option<&str>, wire: Wire) -> Host {
        let (stream, guest) = tokio::io::duplex(4096);
        let (news_in, news) = mpsc::unbounded_channel();
        let key = key.map(|key| Key::read(key.as_bytes()).unwrap());
        tokio::spawn(async move {
            converse(guest, std::future::pending(), wire, "a test", key, &news_in).await;
        });
        Host { stream, decoder: Decoder::new(wire), sequence: 0, news }
    }

    async fn say(&mut self, frame: Frame) {
        self.stream.write_all(&Wire::Stream.encode(&frame)).await.unwrap();
    }

    fn framed<T: serde::Serialize>(&mut self, kind: Kind, message: &T) -> Frame {
        self.sequence += 1;
        Frame::new(kind, self.sequence, message).unwrap()
    }

    /// `None` at the end.
    async fn hear(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut buffer = [0; 512];
            match self.stream.read(&mut buffer).await.unwrap() {
                0 => return None,
                n => self.decoder.push(&buffer[..n]),
            }
        }
    }

    async fn greet(&mut self) {
        let hello = self.framed(Kind::Hello, &Hello::ours("a test"));
        self.say(hello).await;
        assert_eq!(self.hear().await.unwrap().kind, Kind::Hello as u16);
    }

    /// As far as the guest's answer.
    async fn challenge(&mut self, key: &str) -> (Challenger, Proof) {
        self.greet().await;
        let (challenger, challenge) = Challenger::new(Key::read(key.as_bytes()).unwrap(), [1; 32]);
        let frame = self.framed(Kind::Proof, &challenge);
        self.say(frame).await;
        (challenger, self.hear().await.unwrap().open(Kind::Proof).unwrap())
    }

    async fn prove(&mut self, key: &str) -> Session {
        let (challenger, answer) = self.challenge(key).await;
        let (proven, session) = challenger.hear(answer).unwrap();
        let frame = self.framed(Kind::Proof, &proven);
        self.say(frame).await;
        session
    }

    /// Refused for this, the conversation over, and the daemon has heard of nothing but its end.
    async fn refused_for(mut self, why: Unproved) {
        assert_eq!(self.hear().await.unwrap().open(Kind::Proof), Ok(Proof::Refused(why)));
        assert_eq!(self.hear().await, None);
        while let Some(news) = self.news.recv().await {
            assert!(matches!(news, News::Closed { .. }), "{news:?}");
        }
    }
}

const KEY: &str = "a key of the lab";

#[tokio::test]
async fn a_host_with_the_key_is_heard_and_answered_under_seal() {
    let mut host = Host::before(Some(KEY), Wire::Stream);
    let mut session = host.prove(KEY).await;
    let Some(News::Opened { outbox, .. }) = host.news.recv().await else { panic!() };
    let query = host.framed(Kind::ToGuest, &ToGuest::Query);
    host.say(session.seal(query)).await;
    assert!(matches!(host.news.recv().await, Some(News::Said { told: ToGuest::Query, .. })));
    let migration = lsm_protocol::MigrationId([7; 16]);
    outbox.send(FromGuest::Settled { migration }).unwrap();
    let answer = session.unseal(&host.hear().await.unwrap()).unwrap();
    assert_eq!(answer.open(Kind::FromGuest), Ok(FromGuest::Settled { migration }));
    // Whoever takes the connection over has not the key of the session.
    let forged = host.framed(Kind::ToGuest, &ToGuest::Query);
    host.say(forged).await;
    host.refused_for(Unproved::Seal).await;
}

#[tokio::test]
async fn a_host_without_the_key_or_with_another_is_told_why_and_heard_in_nothing() {
    let mut host = Host::before(Some(KEY), Wire::Stream);
    host.greet().await;
    let query = host.framed(Kind::ToGuest, &ToGuest::Query);
    host.say(query).await;
    host.refused_for(Unproved::ByHost).await;

    let mut host = Host::before(Some(KEY), Wire::Stream);
    let (challenger, answer) = host.challenge("a key of another").await;
    assert_eq!(challenger.hear(answer).err(), Some(Unproved::WrongKey), "the host sees it first");
    let proven = host.framed(Kind::Proof, &Proof::Proven([0; 32]));
    host.say(proven).await;
    host.refused_for(Unproved::WrongKey).await;

    let mut host = Host::before(Some(KEY), Wire::Stream);
    host.greet().await;
    let proven = host.framed(Kind::Proof, &Proof::Proven([0; 32]));
    host.say(proven).await;
    host.refused_for(Unproved::OutOfTurn).await;
}

#[tokio::test]
async fn a_guest_without_a_key_says_so_to_a_host_that_has_one() {
    let mut host = Host::before(None, Wire::Stream);
    let (challenger, answer) = host.challenge(KEY).await;
    assert_eq!(challenger.hear(answer).err(), Some(Unproved::ByGuest));
    assert_eq!(host.hear().await, None);
}
