//! Collects a [`Report`]: follows the guest's machine and looks at each count of the connections. It decides what became
//! of each; the shell only tells what it saw.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Became, Connection, Gap, LISTED, NAMED, Outcome, Readdressed, Report, STEPS, Script, Step, Sums};
use crate::{
    FromGuest, MigrationId, Millis, Side,
    forecast::Obstacle,
    guest::{self, Guest, Notice, Order},
};

/// Data within this time before the switch makes a connection busy: a longer wait for more is not the move's.
const BUSY: Millis = 1_000;

/// Names a connection from one count to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// By its token.
    Mptcp(u32),
    /// By its ends.
    Tcp { local: SocketAddr, remote: SocketAddr },
}

/// What one count tells of a connection that uses either address of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub key: Key,
    pub peer: SocketAddr,
    /// It has a path on the old address.
    pub on_old: bool,
    /// One of its halves is closed. Subflows that the kernel is closing look like plain TCP then.
    pub closing: bool,
    /// Why it has none on the new one.
    pub obstacle: Option<Obstacle>,
    /// Round-trip times in microseconds, 0 before the first sample.
    pub rtt_old: u32,
    pub rtt_new: u32,
    /// Payload received so far, in bytes, on all its paths.
    pub received: u64,
    /// Since the last of it, in milliseconds.
    pub silent: Millis,
}

/// The report of the migration under way, as far as it is known. What is kept of single connections goes with the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    migration: MigrationId,
    lan: String,
    began_unix: u64,
    began: Millis,
    addresses: Vec<Readdressed>,
    steps: Vec<Step>,
    sums: Sums,
    listed: Vec<Connection>,
    gap: Option<Gap>,
    rtt_before: Option<u32>,
    /// At the last count that found any connection there.
    rtt_after: Option<u32>,
    datagrams: Option<Vec<SocketAddr>>,
    /// The new path is preferred.
    switched: bool,
    restarted: bool,
    /// Of the migration that is set aside.
    #[serde(default)]
    aside: Option<Box<Account>>,
    #[serde(skip)]
    known: BTreeMap<Key, Known>,
    /// The number of the last count.
    #[serde(skip)]
    count: u32,
    /// Errors that subflows ended with since then, by token: a connection that is still there did not end of it.
    #[serde(skip)]
    errors: BTreeMap<u32, u8>,
}

/// A connection at the last count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    count: u32,
    peer: SocketAddr,
    obstacle: Option<Obstacle>,
    joined_late: bool,
    /// The old path was left while it needed it.
    cut: bool,
    rtt: u32,
    busy: bool,
    received: u64,
    /// When its last data came.
    last_data: Millis,
    /// The longest that a count saw it wait since.
    waited: Millis,
}

impl Account {
    /// Takes down what the machine has come to and orders. A preparation opens an account; its end closes it and gives
    /// the report, and so does the return of the VM while the old address is held. `unix`: milliseconds since 1970.
    pub fn follow(
        open: &mut Option<Account>,
        now: Millis,
        unix: u64,
        guest: &Guest,
        orders: &[Order],
    ) -> Option<Report> {
        if orders.contains(&Order::Notify(Notice::Preparing))
            && let Some(plan) = guest.plan()
        {
            let aside = open.take().filter(|_| guest.is_on_way_back()).map(Box::new);
            *open = Some(Account { aside, ..Account::begin(now, unix, plan.migration, &plan.lan) });
        }
        let account = open.as_mut()?;
        let goes_on = guest.migration() == Some(account.migration);
        if goes_on || guest.migration().is_none() {
            account.mark(now, guest.name());
        }
        for order in orders {
            match order {
                Order::Do(step) => account.ordered(now, *step, guest),
                Order::Reply(reply) => {
                    let (about, outcome) = match reply {
                        FromGuest::Settled { migration } => (*migration, Outcome::Settled),
                        FromGuest::Aborted { migration } => (*migration, Outcome::Aborted),
                        FromGuest::Refused { migration, why } => (*migration, Outcome::Refused(why.clone())),
                        _ => continue,
                    };
                    if !goes_on && about == account.migration {
                        let mut account = open.take()?;
                        *open = account.aside.take().map(|aside| *aside);
                        return Some(account.close(outcome));
                    }
                }
                Order::Notify(Notice::Switched { sure: true, .. }) => {
                    if let Some(aside) = account.aside.take() {
                        return Some(aside.close(Outcome::Returned));
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The account of this migration: this one, or the one that is set aside.
    pub fn of(self, migration: MigrationId) -> Option<Account> {
        if self.migration == migration { Some(self) } else { self.aside?.of(migration) }
    }

    fn begin(now: Millis, unix: u64, migration: MigrationId, lan: &str) -> Account {
        Account {
            migration,
            lan: lan.into(),
            began_unix: unix,
            began: now,
            addresses: Vec::new(),
            steps: Vec::new(),
            sums: Sums::default(),
            listed: Vec::new(),
            gap: None,
            rtt_before: None,
            rtt_after: None,
            datagrams: None,
            switched: false,
            restarted: false,
            aside: None,
            known: BTreeMap::new(),
            count: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Of which it is.
    pub fn migration(&self) -> MigrationId {
        self.migration
    }

    /// The agent was started anew and found this.
    pub fn resume(&mut self) {
        self.restarted = true;
    }

    /// A step, or a state; each once, until another.
    fn mark(&mut self, now: Millis, step: &str) {
        let again = |last: &Step| last.step == step || (self.steps.len() >= STEPS);
        if !self.steps.last().is_some_and(again) {
            self.steps.push(Step { step: step.to_string(), at: now.saturating_sub(self.began) });
        }
    }

    fn ordered(&mut self, now: Millis, step: guest::Step, guest: &Guest) {
        use guest::Step::{
            Announce, Invite, LowerPath, Obtain, Prefer, ProbeGateway, RaisePath, Reannounce, ReleaseOld, TakeOver,
            Withdraw,
        };
        // Of a move that has happened the old path is a part.
        let has_fallen_back = matches!(guest, Guest::Switched(_));
        self.mark(
            now,
            match step {
                Obtain => "getting addresses",
                RaisePath => "raising the new path",
                ProbeGateway => "asking the new gateway",
                Announce => "announcing the new address",
                Reannounce => "announcing it again",
                Invite => "inviting stragglers",
                Prefer(Side::New) => "switching",
                Prefer(Side::Old) if has_fallen_back => "falling back",
                Prefer(Side::Old) => "switching back",
                TakeOver => "telling the new LAN",
                Withdraw(Side::Old) => "withdrawing the old address",
                Withdraw(Side::New) => "withdrawing the new address",
                LowerPath => "taking the new path down",
                ReleaseOld => "releasing the old address",
            },
        );
        match step {
            Prefer(Side::New) if !self.switched => {
                self.rtt_before = median(self.known.values().map(|known| known.rtt));
                self.switched = true;
            }
            Prefer(Side::Old) if !has_fallen_back => self.switched = false,
            Withdraw(Side::Old) if matches!(guest, Guest::Settling(_)) => {
                self.cut(|why| matches!(why, Obstacle::NotJoined { .. } | Obstacle::Full));
            }
            ReleaseOld => self.cut(|_| true),
            _ => {}
        }
    }

    fn cut(&mut self, whom: impl Fn(Obstacle) -> bool) {
        for known in self.known.values_mut() {
            known.cut |= known.obstacle.is_some_and(&whom);
        }
    }

    /// A subflow of this connection ended with an error.
    pub fn failed(&mut self, token: u32, errno: u8) {
        if self.known.contains_key(&Key::Mptcp(token)) {
            self.errors.insert(token, errno);
        }
    }

    /// Which addresses it is about, and who is bound to the old one.
    pub fn about(&mut self, addresses: Vec<Readdressed>, datagrams: Option<Vec<SocketAddr>>) {
        self.addresses = addresses;
        self.datagrams = datagrams;
        if let Some(sockets) = &mut self.datagrams {
            sockets.truncate(NAMED);
        }
    }

    /// It has been told.
    pub fn knows_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// All connections, as a count sees them.
    pub fn looked(&mut self, now: Millis, looks: impl IntoIterator<Item = Look>) {
        let first = self.known.is_empty();
        self.count = self.count.wrapping_add(1);
        for look in looks {
            if let Some(known) = self.known.get_mut(&look.key) {
                if known.obstacle.is_some() && look.obstacle.is_none() {
                    known.joined_late = self.switched;
                }
                let gap = known.look(now, &look, self.count, self.switched);
                self.gap = longest(self.gap, gap);
            } else if look.on_old && !look.closing {
                // After a restart it is not known who was late.
                let joined_late = self.switched && look.obstacle.is_none() && !(first && self.restarted);
                self.known.insert(look.key, Known::new(now, &look, self.count, joined_late));
            }
        }
        if self.switched {
            let there = self.known.values().filter(|known| known.count == self.count && known.obstacle.is_none());
            self.rtt_after = median(there.map(|known| known.rtt)).or(self.rtt_after);
        }
        let errors = core::mem::take(&mut self.errors);
        let (count, switched) = (self.count, self.switched);
        let mut over = Vec::new();
        self.known.retain(|key, known| {
            if known.count == count {
                return true;
            }
            let error = match key {
                Key::Mptcp(token) => errors.get(token).copied(),
                Key::Tcp { .. } => None,
            };
            over.push(Connection { peer: known.peer, became: known.ended(error, switched) });
            false
        });
        over.into_iter().for_each(|one| self.list(one));
    }

    fn list(&mut self, one: Connection) {
        self.sums.count(one.became);
        self.listed.push(one);
        if self.listed.len() > 2 * LISTED {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.listed.sort_by_key(|one| one.became.rank());
        self.listed.truncate(LISTED);
    }

    fn close(mut self, outcome: Outcome) -> Report {
        let moved = matches!(outcome, Outcome::Settled | Outcome::Returned);
        for known in core::mem::take(&mut self.known).into_values() {
            let became = if moved { known.ended(None, true) } else { Became::Kept };
            self.list(Connection { peer: known.peer, became });
        }
        self.mark(self.began.saturating_add(self.steps.last().map_or(0, |s| s.at)), outcome.name());
        self.shorten();
        Report {
            migration: self.migration,
            lan: self.lan,
            began: self.began_unix,
            outcome,
            addresses: self.addresses,
            steps: self.steps,
            sums: self.sums,
            connections: self.listed,
            gap: self.gap.filter(|_| moved),
            rtt_before: self.rtt_before,
            rtt_after: self.rtt_after.filter(|_| moved),
            datagrams: self.datagrams,
            scripts: None,
            restarted: self.restarted,
        }
    }
}

impl Report {
    /// With what became of the scripts.
    pub fn with_scripts(mut self, scripts: impl IntoIterator<Item = Script>) -> Report {
        self.scripts = Some(scripts.into_iter().take(NAMED).collect());
        self
    }
}

impl Known {
    fn new(now: Millis, look: &Look, count: u32, joined_late: bool) -> Known {
        Known {
            count,
            peer: look.peer,
            obstacle: look.obstacle,
            joined_late,
            cut: false,
            rtt: look.rtt_old,
            busy: look.silent <= BUSY,
            received: look.received,
            last_data: now.saturating_sub(look.silent),
            waited: look.silent,
        }
    }

    /// What a count sees; gives the gap that it shows, if that was the switch's.
    fn look(&mut self, now: Millis, look: &Look, count: u32, switched: bool) -> Option<Gap> {
        self.count = count;
        self.obstacle = look.obstacle.filter(|_| self.obstacle.is_some());
        self.rtt = if switched { look.rtt_new } else { look.rtt_old };
        if !switched {
            self.busy = look.silent <= BUSY;
        }
        let last_data = now.saturating_sub(look.silent);
        if look.received == self.received {
            self.waited = self.waited.max(look.silent);
            return None;
        }
        let gap = Gap { at_least: self.waited, at_most: last_data.saturating_sub(self.last_data).max(self.waited) };
        (self.received, self.last_data, self.waited) = (look.received, last_data, look.silent);
        (switched && self.busy).then_some(gap)
    }

    /// What became of it, when it is not there any more. `error`: of the path manager.
    fn ended(&self, error: Option<u8>, switched: bool) -> Became {
        match (self.obstacle, error) {
            (Some(why), _) if self.cut => Became::Cut(why),
            (_, Some(errno)) => Became::Lost(errno),
            _ if !switched => Became::Ended,
            (Some(why), None) => Became::Stayed(why),
            (None, None) if self.joined_late => Became::MovedLate,
            (None, None) => Became::Moved,
        }
    }
}

fn longest(a: Option<Gap>, b: Option<Gap>) -> Option<Gap> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Gap { at_least: a.at_least.max(b.at_least), at_most: a.at_most.max(b.at_most) }),
        (a, b) => a.or(b),
    }
}

/// Of those that are known.
fn median(samples: impl Iterator<Item = u32>) -> Option<u32> {
    let mut samples: Vec<u32> = samples.filter(|sample| *sample > 0).collect();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{Addressing, Drain, Mac, Prepare, ToGuest, V4, V6, guest::Event};

    const MIGRATION: MigrationId = MigrationId([7; 16]);

    fn plan() -> Prepare {
        Prepare {
            migration: MIGRATION,
            old: Mac([2; 6]),
            new: Mac([3; 6]),
            lan: "dallas".into(),
            addressing: Addressing { v4: V4::None, v6: V6::None },
            mtu: 1500,
            arrived: false,
            drain: Drain::UntilIdle,
            lease: 60_000,
        }
    }

    fn peer(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 9], port))
    }

    fn mptcp(token: u32, joined: bool) -> Look {
        Look {
            key: Key::Mptcp(token),
            peer: peer(token as u16),
            on_old: true,
            closing: false,
            obstacle: (!joined).then_some(Obstacle::NotJoined { ago: 0 }),
            rtt_old: 70_000,
            rtt_new: 2_000,
            received: 10,
            silent: 5,
        }
    }

    fn plain(port: u16) -> Look {
        let key = Key::Tcp { local: SocketAddr::from(([10, 0, 0, 1], 80)), remote: peer(port) };
        Look { key, peer: peer(port), obstacle: Some(Obstacle::Plain), ..mptcp(0, false) }
    }

    /// The guest's machine, its shell that does everything at once, and the account that follows both.
    struct Bench {
        guest: Guest,
        open: Option<Account>,
        now: Millis,
        report: Option<Report>,
    }

    impl Bench {
        fn prepared(looks: &[Look]) -> Bench {
            let mut bench = Bench { guest: Guest::default(), open: None, now: 1_000, report: None };
            bench.feed(Event::Told(ToGuest::Prepare(plan())));
            bench.feed(Event::Done(guest::Step::RaisePath));
            bench.feed(Event::Done(guest::Step::ProbeGateway));
            bench.feed(Event::Done(guest::Step::Announce));
            bench.count(looks);
            bench
        }

        fn feed(&mut self, event: Event) {
            self.now += 10;
            let (guest, orders) = core::mem::take(&mut self.guest).handle(self.now, event);
            self.guest = guest;
            let closed = Account::follow(&mut self.open, self.now, 5, &self.guest, &orders);
            self.report = closed.or(self.report.take());
            for order in orders {
                if let Order::Do(step) = order
                    && !matches!(step, guest::Step::RaisePath | guest::Step::ProbeGateway | guest::Step::Announce)
                {
                    self.feed(Event::Done(step));
                }
            }
        }

        fn count(&mut self, looks: &[Look]) {
            if let Some(account) = &mut self.open {
                account.looked(self.now, looks.iter().copied());
            }
            let joined = looks.iter().filter(|l| l.obstacle.is_none()).count() as u32;
            let legacy = looks.iter().filter(|l| matches!(l.key, Key::Tcp { .. }) && l.on_old).count() as u32;
            let waiting = looks.len() as u32 - joined - legacy;
            let counts = crate::Counts { joined, waiting, moved: joined, legacy, early: 0 };
            self.feed(Event::Counted(counts));
        }

        fn tell(&mut self, told: ToGuest) {
            self.feed(Event::Told(told));
        }

        /// Lets the time pass, with everything as it is, until the old path is left.
        fn settle(&mut self, looks: &[Look]) -> Report {
            for _ in 0..20 {
                let Some(deadline) = self.guest.deadline() else { break };
                self.now = self.now.max(deadline.at);
                self.feed(Event::Deadline);
                self.count(looks);
            }
            self.report.clone().expect("a report")
        }
    }

    fn arrived() -> ToGuest {
        ToGuest::Arrived { migration: MIGRATION }
    }

    #[test]
    fn each_connection_is_in_one_sum() {
        let ready = mptcp(1, true);
        let late = mptcp(2, false);
        let gone = mptcp(3, true);
        let closes_before = mptcp(4, true);
        let straggler = mptcp(6, false);
        let all = [ready, late, gone, closes_before, straggler, plain(5), plain(7)];
        let mut bench = Bench::prepared(&all);
        bench.tell(ToGuest::KeepAlive { migration: MIGRATION });
        // Not all have joined: the announcement's time has to pass.
        while !matches!(bench.guest, Guest::Prepared(_)) {
            bench.now += 2_000;
            bench.feed(Event::Deadline);
            bench.feed(Event::Done(guest::Step::Reannounce));
            bench.count(&[ready, late, gone, straggler, plain(5), plain(7)]);
        }
        bench.tell(arrived());
        bench.open.as_mut().expect("open").failed(3, 110);
        bench.open.as_mut().expect("open").failed(1, 111); // of a subflow of one that lives on
        bench.count(&[ready, mptcp(2, true), straggler, plain(5), plain(7)]);
        // One of the legacy connections ends by itself, and someone new comes to the new address: none of ours.
        let new = Look { on_old: false, ..mptcp(8, true) };
        let closing = Look { closing: true, ..plain(9) }; // a subflow's end, which looks like that
        bench.count(&[ready, mptcp(2, true), straggler, plain(5), new, closing]);
        bench.tell(ToGuest::Release { migration: MIGRATION });
        let report = bench.settle(&[ready, mptcp(2, true), straggler, plain(5), new]);
        let sums = Sums { moved: 1, moved_late: 1, ended: 1, stayed: 0, legacy: 1, cut: 2, lost: 1, kept: 0 };
        assert_eq!(report.sums, sums, "{report}");
        assert_eq!((report.outcome.name(), report.sums.all()), ("settled", 7));
        let of = |port: u16| report.connections.iter().find(|c| c.peer == peer(port)).map(|c| c.became);
        assert_eq!(of(3), Some(Became::Lost(110)));
        assert_eq!(of(2), Some(Became::MovedLate));
        assert_eq!(of(4), Some(Became::Ended));
        assert_eq!(of(5), Some(Became::Cut(Obstacle::Plain)));
        assert_eq!(of(7), Some(Became::Stayed(Obstacle::Plain)));
        assert_eq!(of(8), None);
        assert_eq!(report.connections[0].became, Became::Lost(110), "the worst first");
        assert_eq!((report.rtt_before, report.rtt_after), (Some(70_000), Some(2_000)));
        assert!(report.steps.len() < STEPS, "{:?}", report.steps);
        assert!(report.steps.windows(2).all(|two| two[0].at <= two[1].at), "{:?}", report.steps);
    }

    #[test]
    fn a_move_that_is_called_off_leaves_all_where_they_were() {
        let mut bench = Bench::prepared(&[mptcp(1, true), mptcp(2, true)]);
        bench.tell(ToGuest::Abort { migration: MIGRATION });
        let report = bench.report.expect("a report");
        assert_eq!((report.outcome, report.sums.kept, report.sums.all()), (Outcome::Aborted, 2, 2));
        assert_eq!(report.gap, None);

        let mut silent = Bench { guest: Guest::default(), open: None, now: 1_000, report: None };
        silent.tell(ToGuest::Prepare(plan()));
        let why = crate::Refusal::NoSuchVnic(Mac([3; 6]));
        silent.feed(Event::Failed(guest::Step::RaisePath, why.clone()));
        assert_eq!(silent.report.expect("a report").outcome, Outcome::Refused(why));
        assert_eq!(silent.open, None);
    }

    #[test]
    fn a_return_has_an_account_of_its_own_and_gives_the_other_back_if_it_is_called_off() {
        let back = MigrationId([8; 16]);
        let held = |looks: &[Look]| {
            let mut bench = Bench::prepared(looks);
            bench.tell(arrived());
            for _ in 0..4 {
                bench.now = bench.now.max(bench.guest.deadline().map_or(0, |deadline| deadline.at));
                bench.feed(Event::Deadline);
                bench.count(looks);
            }
            let way_back = Prepare { migration: back, old: plan().new, new: plan().old, ..plan() };
            bench.tell(ToGuest::Prepare(way_back));
            assert!(bench.guest.aside().is_some(), "{:?}", bench.guest);
            for step in [guest::Step::RaisePath, guest::Step::ProbeGateway, guest::Step::Announce] {
                bench.feed(Event::Done(step));
            }
            bench
        };
        let looks = [mptcp(1, true), plain(5)];
        let mut off = held(&looks);
        off.tell(ToGuest::Abort { migration: back });
        assert_eq!(off.report.as_ref().map(|r| (r.migration, r.outcome.clone())), Some((back, Outcome::Aborted)));
        assert_eq!(off.open.as_ref().map(Account::migration), Some(MIGRATION));
        let report = off.settle(&[mptcp(1, true)]);
        assert_eq!((report.migration, report.outcome, report.sums.legacy), (MIGRATION, Outcome::Settled, 1));

        let mut there = held(&looks);
        let found = there.open.clone().and_then(|open| open.of(MIGRATION));
        assert_eq!(found.map(|account| account.migration), Some(MIGRATION));
        there.count(&[mptcp(1, true)]);
        there.tell(ToGuest::Arrived { migration: back });
        there.now = there.guest.deadline().expect("the take-over").at;
        there.feed(Event::Deadline);
        let report = there.report.take().expect("a report of the first");
        assert_eq!((report.migration, report.outcome, report.sums.legacy), (MIGRATION, Outcome::Returned, 1));
        let report = there.settle(&[mptcp(1, true)]);
        assert_eq!((report.migration, report.outcome), (back, Outcome::Settled));
        assert_eq!(there.open, None);
    }

    #[test]
    fn a_gap_is_between_what_counts_saw_and_what_they_could_not_see() {
        let at = |received: u64, silent: Millis| Look { received, silent, ..mptcp(1, true) };
        let idle = Look { silent: 9_000, ..mptcp(2, true) };
        let mut bench = Bench::prepared(&[at(10, 4), idle]);
        bench.now += 100;
        bench.count(&[at(20, 10), idle]);
        let last_data = bench.now - 20; // counting took 10
        bench.tell(arrived());
        bench.now += 90;
        let waited = bench.now - last_data;
        bench.count(&[at(20, waited), idle]);
        bench.now += 100;
        let then = bench.now - 30;
        // The idle one hears of its peer after the switch for the first time in 10 s: not our doing.
        let woken = Look { received: 11, silent: 1, ..idle };
        bench.count(&[at(30, 30), woken]);
        let report = bench.settle(&[at(30, 60), woken]);
        assert_eq!(report.gap, Some(Gap { at_least: waited, at_most: then - last_data }));
    }

    #[test]
    fn a_restarted_agent_goes_on_with_what_it_wrote_down() {
        let mut bench = Bench::prepared(&[mptcp(1, true), mptcp(2, true)]);
        bench.tell(arrived());
        let mut found = bench.open.clone().expect("open");
        (found.known, found.count) = (BTreeMap::new(), 0); // what is not written down
        found.resume();
        bench.open = Some(found);
        bench.feed(Event::Restarted);
        let report = bench.settle(&[mptcp(1, true)]);
        assert_eq!((report.sums.moved, report.sums.all(), report.restarted), (1, 1, true));
    }

    #[test]
    fn who_ended_before_the_old_path_was_left_has_moved_and_its_round_trip_is_known() {
        let mut bench = Bench::prepared(&[mptcp(1, true)]);
        bench.tell(arrived());
        bench.count(&[mptcp(1, true)]);
        let report = bench.settle(&[]);
        assert_eq!((report.sums.moved, report.rtt_after), (1, Some(2_000)));
    }

    #[test]
    fn a_list_is_cut_and_its_sums_are_not() {
        let mut looks: Vec<Look> = (0..40_000).map(|token| mptcp(token, true)).collect();
        looks.push(plain(9));
        let mut bench = Bench::prepared(&looks);
        bench.tell(arrived());
        bench.count(&[mptcp(0, true)]);
        let report = bench.settle(&[mptcp(0, true)]);
        assert_eq!((report.sums.moved, report.sums.legacy), (40_000, 1));
        assert_eq!((report.connections.len(), report.connections[0].became), (LISTED, Became::Stayed(Obstacle::Plain)));
        let message = FromGuest::Report(report.into());
        assert!(crate::frame::Frame::new(crate::frame::Kind::FromGuest, 1, &message).is_ok(), "it fits a frame");
    }
}
