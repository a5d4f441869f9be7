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
