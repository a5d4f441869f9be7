//! What a move would do to each connection, told before it happens.
//!
//! Whether a peer takes up an announced address cannot be seen on an idle connection (a peer with default limits echoes
//! the announcement and does nothing), so it is learned: who joined in past moves and who did not, by the peer's address.
//! Where nothing is known, the forecast says so.

mod shown;
mod survival;

use alloc::{
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize};

pub use self::{shown::Shown, survival::Survival};
use crate::Millis;

/// Peers remembered of either kind; beyond that the one seen longest ago is forgotten. About 200 KiB of state each.
const PEERS: usize = 4_096;
/// Connections in one message: 52 bytes each at most, and a frame holds 64 KiB.
pub const PAGE: usize = 1_000;
/// UDP sockets in one message.
const DATAGRAMS: usize = 200;

/// What would become of a connection. Appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// It has a subflow on the prepared address.
    Joined,
    /// Its peer joined an announced address that many milliseconds ago; 0: on this very connection.
    Able { ago: Millis },
    /// The VM opened it, and so joins from the new address by itself.
    OpenedHere,
    /// MPTCP, but nothing is known of its peer, or its peer sometimes joined and sometimes did not.
    Unproven,
    /// It keeps the old address, and the tunnel.
    Waits(Obstacle),
    /// It does not use a managed vNIC.
    Local,
}

/// What keeps a connection on the old address. Appended to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Obstacle {
    /// Neither side, or one side only, asked for MPTCP.
    Plain,
    /// The VM asked for MPTCP, and nothing of it came back.
    Unanswered,
    /// It was MPTCP once.
    FellBack,
    /// Announced to, the peer did not join; that many milliseconds ago, or 0: the announcement stands.
    NotJoined { ago: Millis },
    /// It has as many subflows as the kernel's limit allows.
    Full,
}

impl Fate {
    /// The class, as people and programs read it.
    pub fn class(self) -> &'static str {
        match self {
            Fate::Joined | Fate::Able { .. } => "moves",
            Fate::OpenedHere => "moves, opened by the VM",
            Fate::Unproven => "may move",
            Fate::Waits(_) => "waits on the tunnel",
            Fate::Local => "local",
        }
    }

    /// The worst first: a list that is cut short shows what matters.
    fn rank(self) -> u8 {
        match self {
            Fate::Waits(_) => 0,
            Fate::Unproven => 1,
            Fate::OpenedHere => 2,
            Fate::Able { .. } => 3,
            Fate::Joined => 4,
            Fate::Local => 5,
        }
    }
}

/// The reason or the evidence.
impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Joined => f.write_str("joined the new address"),
            Fate::Able { ago: 0 } => f.write_str("its peer has joined an announced address"),
            Fate::Able { ago } => write!(f, "its peer joined an announced address {} ago", Ago(*ago)),
            Fate::OpenedHere => f.write_str("needs nothing of its peer"),
            Fate::Unproven => f.write_str("it is not known whether its peer joins announced addresses"),
            Fate::Waits(Obstacle::Plain) => f.write_str("plain TCP: the program or its peer does not ask for MPTCP"),
            Fate::Waits(Obstacle::Unanswered) => f.write_str("plain TCP: the request for MPTCP was not answered"),
            Fate::Waits(Obstacle::FellBack) => f.write_str("fell back from MPTCP to TCP"),
            Fate::Waits(Obstacle::NotJoined { ago: 0 }) => f.write_str("its peer was announced to and has not joined"),
            Fate::Waits(Obstacle::NotJoined { ago }) => {
                write!(f, "its peer was announced to {} ago and did not join", Ago(*ago))
            }
            Fate::Waits(Obstacle::Full) => f.write_str("it has no subflow left to join with"),
            Fate::Local => f.write_str("does not use a managed vNIC"),
        }
    }
}

struct Ago(Millis);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 / 1_000 {
            s @ ..120 => write!(f, "{s} s"),
            s @ ..7_200 => write!(f, "{} min", s / 60),
            s => write!(f, "{} h", s / 3_600),
        }
    }
}

/// What one look at a connection tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// It uses an address of a managed vNIC.
    pub managed: bool,
    pub kind: Kind,
}

/// The connection's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Legacy(Obstacle),
    Mptcp {
        /// It has a subflow on the address of the migration under way.
        joined: bool,
        /// The VM sent the first SYN.
        opened_here: bool,
        /// The peer has joined an announced address on this connection.
        accepted: bool,
        /// No further subflow is allowed.
        full: bool,
    },
}

/// Who joined and who did not, by the peer's address. A peer that is joined is not one that joins: connections that the
/// VM opened are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    opened_there: BTreeMap<IpAddr, Seen>,
    opened_here: BTreeMap<IpAddr, Seen>,
}

/// What became of an announcement for one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub peer: SocketAddr,
    /// The VM opened the connection.
    pub opened_here: bool,
    pub joined: bool,
}

/// When a peer's connections were last seen to join, and not to join, in milliseconds since the shell's origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    joined: Option<Millis>,
    missed: Option<Millis>,
}

impl Evidence {
    /// Takes down what became of an announcement.
    pub fn learn(&mut self, now: Millis, outcomes: impl IntoIterator<Item = Outcome>) {
        for Outcome { peer, opened_here, joined } in outcomes {
            let peers = if opened_here { &mut self.opened_here } else { &mut self.opened_there };
            let seen = peers.entry(peer.ip()).or_default();
            *(if joined { &mut seen.joined } else { &mut seen.missed }) = Some(now);
            if peers.len() > PEERS {
                let oldest = peers.iter().min_by_key(|(_, seen)| seen.joined.max(seen.missed)).map(|(p, _)| *p);
                oldest.map(|peer| peers.remove(&peer));
            }
        }
    }

    /// What would become of the connection; `announced`: the new address is, and there was time to join it.
    pub fn fate(&self, now: Millis, look: &Look, announced: bool) -> Fate {
        let (joined, opened_here, accepted, full) = match look.kind {
            _ if !look.managed => return Fate::Local,
            Kind::Legacy(obstacle) => return Fate::Waits(obstacle),
            Kind::Mptcp { joined, opened_here, accepted, full } => (joined, opened_here, accepted, full),
        };
        let peers = if opened_here { &self.opened_here } else { &self.opened_there };
        let seen = peers.get(&look.remote.ip()).copied().unwrap_or_default();
        let ago = |then: Millis| now.saturating_sub(then).max(1);
        match (seen.joined, seen.missed) {
            _ if joined => Fate::Joined,
            _ if announced => Fate::Waits(Obstacle::NotJoined { ago: 0 }),
            _ if full => Fate::Waits(Obstacle::Full),
            _ if accepted => Fate::Able { ago: 0 },
            (joined, Some(missed)) if joined.is_none_or(|joined| joined < missed) => {
                Fate::Waits(Obstacle::NotJoined { ago: ago(missed) })
            }
            _ if opened_here => Fate::OpenedHere,
            // Several machines behind one address: at the same move one did and one did not.
            (Some(joined), Some(missed)) if joined == missed => Fate::Unproven,
            (Some(joined), _) => Fate::Able { ago: ago(joined) },
            (None, _) => Fate::Unproven,
        }
    }
}

/// One connection in a forecast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreseen {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub fate: Fate,
}

/// Connections by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub moves: u32,
    pub opened_here: u32,
    pub unproven: u32,
    pub waits: u32,
    pub local: u32,
}

/// All connections, the worst first; over the wire a page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Of all connections, on whichever page.
    pub sums: Sums,
    /// Connections on the pages before this one.
    pub skipped: u32,
    pub connections: Vec<Foreseen>,
    /// UDP sockets bound to an address of a managed vNIC, on the first page; `None` where the kernel cannot list them.
    pub datagrams: Option<Vec<SocketAddr>>,
}

impl Forecast {
    /// Judges every connection.
    pub fn of(
        now: Millis,
        evidence: &Evidence,
        looks: impl IntoIterator<Item = Look>,
        announced: bool,
        datagrams: Option<Vec<SocketAddr>>,
    ) -> Forecast {
        let judge = |look: Look| {
            let fate = evidence.fate(now, &look, announced);
            Foreseen { local: look.local, remote: look.remote, fate }
        };
        let mut connections: Vec<Foreseen> = looks.into_iter().map(judge).collect();
        connections.sort_by_key(|c| (c.fate.rank(), c.remote, c.local));
        let mut sums = Sums::default();
        for connection in &connections {
            *match connection.fate {
                Fate::Joined | Fate::Able { .. } => &mut sums.moves,
                Fate::OpenedHere => &mut sums.opened_here,
                Fate::Unproven => &mut sums.unproven,
                Fate::Waits(_) => &mut sums.waits,
                Fate::Local => &mut sums.local,
            } += 1;
        }
        Forecast { sums, skipped: 0, connections, datagrams }
    }

    /// The page that begins after `skip` connections.
    pub fn page(&self, skip: u32) -> Forecast {
        let connections = self.connections.iter().skip(skip as usize).take(PAGE).copied().collect();
        let datagrams = self.datagrams.as_ref().map(|sockets| {
            let most = if skip == 0 { DATAGRAMS } else { 0 };
            sockets.iter().take(most).copied().collect()
        });
        Forecast { sums: self.sums, skipped: skip, connections, datagrams }
    }

    /// Adds the next page. Gives where the one after it begins, if there is one.
    pub fn add(&mut self, page: Forecast) -> Option<u32> {
        if page.skipped == 0 {
            *self = page;
        } else if page.skipped as usize == self.connections.len() && !page.connections.is_empty() {
            self.connections.extend(page.connections);
        } else {
            return None; // repeated, or of another list
        }
        let (have, all) = (self.connections.len(), self.sums.all());
        (!self.connections.is_empty() && (have as u64) < all).then_some(have as u32)
    }

    /// Those that keep the old address for sure, and then those of which nothing is known, at most `most` of them.
    pub fn in_doubt(&self, most: usize) -> String {
        let doubtful = || self.connections.iter().filter(|c| matches!(c.fate, Fate::Waits(_) | Fate::Unproven));
        let mut named = String::new();
        for connection in doubtful().take(most) {
            if !named.is_empty() {
                named.push_str("; ");
            }
            named.push_str(&connection.to_string());
        }
        let all = u64::from(self.sums.waits) + u64::from(self.sums.unproven);
        let left_out = all.saturating_sub(doubtful().take(most).count() as u64);
        if left_out > 0 {
            named.push_str("; and ");
            named.push_str(&left_out.to_string());
            named.push_str(" more");
        }
        named
    }
}

impl Sums {
    /// All connections.
    pub fn all(&self) -> u64 {
        [self.moves, self.opened_here, self.unproven, self.waits, self.local].map(u64::from).iter().sum()
    }

    /// Those that use a managed vNIC.
    pub fn managed(&self) -> u64 {
        self.all() - u64::from(self.local)
    }

    /// Those of which nothing says that they cannot move.
    pub fn at_best(&self) -> u64 {
        self.managed() - u64::from(self.waits)
    }
}

impl fmt::Display for Foreseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {} ({})", self.remote, self.local, self.fate)
    }
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { moves, opened_here, unproven, waits, local } = self;
        write!(
            f,
            "{moves} move, {opened_here} opened by the VM move, {unproven} may move, {waits} wait on the tunnel, {local} local"
        )
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    const NOW: Millis = 600_000;

    fn look(kind: Kind) -> Look {
        let at = |text: &str| text.parse().unwrap();
        Look { local: at("192.0.2.1:80"), remote: at("203.0.113.9:4000"), managed: true, kind }
    }

    const IDLE: Kind = Kind::Mptcp { joined: false, opened_here: false, accepted: false, full: false };

    fn after(outcomes: &[(Millis, bool)]) -> Evidence {
        let mut evidence = Evidence::default();
        for (at, joined) in outcomes {
            evidence.learn(*at, [Outcome { peer: look(IDLE).remote, opened_here: false, joined: *joined }]);
        }
        evidence
    }

    #[test]
    fn what_is_not_known_is_not_promised() {
        let fate = |evidence: &Evidence| evidence.fate(NOW, &look(IDLE), false);
        assert_eq!(fate(&after(&[])), Fate::Unproven);
        assert_eq!(fate(&after(&[(1_000, true)])), Fate::Able { ago: NOW - 1_000 });
        assert_eq!(fate(&after(&[(1_000, false)])), Fate::Waits(Obstacle::NotJoined { ago: NOW - 1_000 }));
        assert_eq!(fate(&after(&[(1_000, false), (2_000, true)])), Fate::Able { ago: NOW - 2_000 });
        assert_eq!(
            fate(&after(&[(1_000, true), (2_000, false)])),
            Fate::Waits(Obstacle::NotJoined { ago: NOW - 2_000 })
        );
        assert_eq!(fate(&after(&[(1_000, true), (1_000, false)])), Fate::Unproven, "two machines behind one address");
    }

    #[test]
    fn a_connections_own_evidence_comes_before_its_peers() {
        let none = after(&[(1_000, false)]);
        let of = |kind| none.fate(NOW, &look(kind), false);
        let Kind::Mptcp { joined, opened_here, accepted, full } = IDLE else { unreachable!() };
        assert_eq!(of(Kind::Mptcp { joined: true, opened_here, accepted, full: true }), Fate::Joined);
        assert_eq!(of(Kind::Mptcp { joined, opened_here, accepted: true, full }), Fate::Able { ago: 0 });
        assert_eq!(of(Kind::Mptcp { joined, opened_here, accepted: true, full: true }), Fate::Waits(Obstacle::Full));
        let opened = look(Kind::Mptcp { joined, opened_here: true, accepted, full });
        assert_eq!(after(&[]).fate(NOW, &opened, false), Fate::OpenedHere);
        assert_eq!(none.fate(NOW, &opened, false), Fate::OpenedHere, "what its peer does of its own is another matter");
        let mut not_even = Evidence::default();
        not_even.learn(1_000, [Outcome { peer: opened.remote, opened_here: true, joined: false }]);
        assert_eq!(not_even.fate(NOW, &opened, false), Fate::Waits(Obstacle::NotJoined { ago: NOW - 1_000 }));
        assert_eq!(not_even.fate(NOW, &look(IDLE), false), Fate::Unproven);
        let announced = Evidence::default().fate(NOW, &opened, true);
        assert_eq!(announced, Fate::Waits(Obstacle::NotJoined { ago: 0 }), "it had its time to join");
        assert_eq!(of(Kind::Legacy(Obstacle::Plain)), Fate::Waits(Obstacle::Plain));
        assert_eq!(none.fate(NOW, &Look { managed: false, ..opened }, true), Fate::Local);
    }

    #[test]
    fn the_oldest_evidence_makes_room() {
        let mut evidence = Evidence::default();
        for peer in 0..PEERS as u32 + 10 {
            let address = SocketAddr::new(peer.to_be_bytes().into(), 80);
            evidence.learn(peer.into(), [Outcome { peer: address, opened_here: false, joined: true }]);
        }
        assert_eq!(evidence.opened_there.len(), PEERS);
        assert!(!evidence.opened_there.contains_key(&IpAddr::from(9u32.to_be_bytes())));
        assert!(evidence.opened_there.contains_key(&IpAddr::from(10u32.to_be_bytes())));
    }

    #[test]
    fn pages_make_the_whole_and_any_other_order_an_end() {
        let with_port = |port: u16| {
            let kind = if port.is_multiple_of(2) { IDLE } else { Kind::Legacy(Obstacle::Plain) };
            Look { remote: SocketAddr::new(look(IDLE).remote.ip(), port), ..look(kind) }
        };
        let socket = look(IDLE).local;
        let sockets = Some(vec![socket; DATAGRAMS + 1]);
        let whole = Forecast::of(NOW, &Evidence::default(), (0..2_500).map(with_port), false, sockets);
        assert_eq!((whole.sums.unproven, whole.sums.waits, whole.sums.at_best()), (1_250, 1_250, 1_250));
        assert!(whole.connections.is_sorted_by_key(|c| c.fate.rank()));
        let mut got = Forecast::default();
        assert_eq!(got.add(whole.page(0)), Some(1_000));
        assert_eq!(got.add(whole.page(2_000)), None, "a page is missing");
        assert_eq!(got.add(whole.page(1_000)), Some(2_000));
        assert_eq!(got.add(whole.page(2_000)), None);
        assert_eq!(got.connections, whole.connections);
        assert_eq!(got.datagrams.map(|d| d.len()), Some(DATAGRAMS));
        assert_eq!(
            Forecast::default().add(Forecast { sums: whole.sums, ..Forecast::default() }),
            None,
            "no endless asking"
        );
        let named = whole.in_doubt(2);
        assert!(named.starts_with("203.0.113.9:1 to 192.0.2.1:80 (plain TCP"), "{named}");
        assert!(named.ends_with("; and 2498 more"), "{named}");
    }

    #[test]
    fn a_page_fits_its_frame() {
        let far: SocketAddr = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let fate = Fate::Waits(Obstacle::NotJoined { ago: Millis::MAX });
        let connections = vec![Foreseen { local: far, remote: far, fate }; PAGE + 1];
        let sums =
            Sums { moves: u32::MAX, opened_here: u32::MAX, unproven: u32::MAX, waits: u32::MAX, local: u32::MAX };
        let all = Forecast { sums, skipped: 0, connections, datagrams: Some(vec![far; DATAGRAMS]) };
        let frame =
            crate::frame::Frame::new(crate::frame::Kind::FromGuest, 1, &crate::FromGuest::Forecast(all.page(0)));
        assert!(frame.is_ok(), "{frame:?}");
        assert_eq!(sums.all(), u64::from(u32::MAX) * 5, "sums do not overflow");
    }
}
