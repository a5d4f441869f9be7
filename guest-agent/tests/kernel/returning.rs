//! The way back to an address that is still held, by the machine's own orders: a legacy connection keeps the old address,
//! the VM goes back there, or sets out and is called off.

use std::{collections::VecDeque, net::IpAddr, path::PathBuf};

use lsm_guest::{endpoints, invitation, kernel::Kernel, path, record::Record};
use lsm_protocol::{
    Counts, Drain, Given, Mac, MigrationId, Millis, Prepare, Refusal, Side, ToGuest,
    guest::{Event, Guest, Order, Step},
};
use socket2::Protocol;

use crate::{
    place::{alone, run, runtime, until},
    switch::{Scene, has},
    traffic::{Talker, connect, listen},
};

/// The agent without its waiting: the machine, and hands that do what it orders at once.
struct Agent {
    runtime: tokio::runtime::Runtime,
    kernel: Kernel,
    record: Record,
    directory: PathBuf,
    now: Millis,
}

fn mac(card: &str) -> Mac {
    let link = run(&format!("ip -o link show dev {card}"));
    link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).unwrap().parse().unwrap()
}

impl Agent {
    fn new(name: &str) -> Agent {
        let directory = std::env::temp_dir().join(format!("lsm-returning-{name}-{}", std::process::id()));
        let record = Record::open(&directory).unwrap();
        let runtime = runtime();
        let kernel = runtime.block_on(async { Kernel::open().unwrap() });
        Agent { runtime, kernel, record, directory, now: 1_000_000 }
    }

    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (guest, orders) = std::mem::take(&mut self.record.guest).handle(self.now, event);
            self.record.guest = guest;
            for order in orders {
                if let Order::Do(step) = order {
                    events.push_back(match self.perform(step) {
                        Ok(()) => Event::Done(step),
                        Err(why) => Event::Failed(step, why),
                    });
                }
            }
        }
    }

    fn perform(&mut self, step: Step) -> Result<(), Refusal> {
        let (kernel, record) = (&mut self.kernel, &mut self.record);
        match step {
            Step::RaisePath => {
                let plan = record.guest.plan().cloned().unwrap();
                self.runtime.block_on(path::raise(kernel, record, &plan))
            }
            Step::Obtain | Step::ProbeGateway => Ok(()),
            Step::Announce => endpoints::announce(kernel, record),
            Step::Reannounce => {
                endpoints::withdraw(kernel, record, Side::New)?;
                endpoints::announce(kernel, record)?;
                invitation::invite(kernel, record)
            }
            Step::Invite => invitation::invite(kernel, record),
            Step::Prefer(side) => endpoints::prefer(kernel, record, side),
            Step::TakeOver => self.runtime.block_on(path::take_over(kernel, record)),
            Step::Withdraw(side) => endpoints::withdraw(kernel, record, side),
            Step::LowerPath => self.runtime.block_on(path::lower(kernel, record)),
            Step::ReleaseOld => self.runtime.block_on(path::release_old(kernel, record)),
        }
    }

    fn tell(&mut self, told: ToGuest) {
        self.feed(Event::Told(told));
    }

    fn prepare(&mut self, migration: MigrationId, old: &str, new: &str, address: IpAddr) {
        let gateway = format!("{}2", address.to_string().trim_end_matches('1')).parse().unwrap();
        self.tell(ToGuest::Prepare(Prepare {
            migration,
            old: mac(old),
            new: mac(new),
            lan: "there".to_owned(),
            addressing: [Given { address, prefix_len: 24, gateway }].into_iter().collect(),
            mtu: 1500,
            arrived: false,
            drain: Drain::UntilIdle,
            lease: 60_000,
        }));
    }

    /// A count, as the test has seen it.
    fn count(&mut self, counts: Counts) {
        self.feed(Event::Counted(counts));
    }

    fn deadline(&mut self) {
        self.now = self.now.max(self.record.guest.deadline().unwrap().at);
        self.feed(Event::Deadline);
    }

    /// Until every connection has a subflow with this address, and none with that.
    fn joined(&mut self, address: IpAddr, none: Option<IpAddr>) {
        until("every connection to have joined", || {
            let snapshot = self.kernel.diag.snapshot().unwrap();
            let all = snapshot.connections.iter().all(|c| has(c, address) && none.is_none_or(|none| !has(c, none)));
            (all && !snapshot.connections.is_empty()).then_some(())
        });
    }

    /// The held address is joined again. What the VM opened may need it announced to its peer, with a port.
    fn joins(&mut self, address: IpAddr) {
        let all = |agent: &mut Agent| {
            agent.kernel.diag.snapshot().unwrap().connections.iter().all(|c| has(c, address)).then_some(())
        };
        let begun = std::time::Instant::now();
        while all(self).is_none() && begun.elapsed() < std::time::Duration::from_secs(1) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        if all(self).is_none() {
            self.count(Counts { joined: 1, waiting: 1, ..ALL });
            self.deadline();
        }
        self.joined(address, None);
    }

    fn state(&mut self) -> String {
        let words = |text: String| text.lines().map(|line| line.trim().to_owned() + "\n").collect::<String>();
        let endpoints = self.kernel.path_manager.endpoints().unwrap();
        let endpoints: Vec<String> =
            endpoints.iter().map(|e| format!("{} {} {:?}\n", e.address, e.port, e.flags)).collect();
        let paths = run("ip -4 address") + &run("ip rule") + &run("ip -4 route show table all");
        words(paths) + &endpoints.concat() + &format!("{:?}", self.record.changes)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

const HERE: MigrationId = MigrationId([1; 16]);
const BACK: MigrationId = MigrationId([2; 16]);
const ALL: Counts = Counts { joined: 2, waiting: 0, moved: 2, legacy: 1, early: 2 };

fn get_on(talkers: &[&(Talker, Talker)]) {
    let data = || talkers.iter().map(|(ours, theirs)| ours.received().min(theirs.received())).min().unwrap();
    let start = data();
    until("data both ways on every connection", || (data() > start + 4_000).then_some(()));
}

/// The VM has moved from card `a` to card `b`, which has got its address only then, and `counts` keeps it there.
fn moved(scene: &Scene, agent: &mut Agent, counts: Counts) {
    run(&format!("ip address del {}/24 dev b", scene.new));
    agent.prepare(HERE, "a", "b", scene.new);
    agent.joined(scene.new, None);
    agent.count(Counts { waiting: 0, ..counts });
    agent.tell(ToGuest::Arrived { migration: HERE });
    agent.deadline(); // the take-over
    agent.count(counts);
}

#[test]
fn a_held_address_is_direct_again_and_an_abort_leaves_it_held() {
    alone(|| {
        let scene = Scene::v4();
        let client = scene.opened_by_client(7001, Protocol::MPTCP);
        let ours = scene.opened_by_vm(7002);
        let plain = scene.opened_by_client(7003, Protocol::TCP);
        let all = [&client, &ours, &plain];
        let mut agent = Agent::new("holding");
        moved(&scene, &mut agent, ALL);
        agent.deadline(); // drained
        agent.count(ALL);
        agent.joined(scene.new, Some(scene.old));
        assert_eq!(agent.record.guest.deadline().unwrap().awaited, "the last legacy connection to close");
        get_on(&all);
        let held = agent.state();
        let shortened = |card: &str| {
            let table = run("ip route show table all");
            let ours = |line: &&str| line.contains(&format!("dev {card} table 195"));
            table.lines().filter(ours).filter(|line| line.contains("mtu 1430")).count()
        };
        assert_eq!((shortened("a"), shortened("b")), (2, 0), "a tunnel leads to it");

        for flipped in [false, true] {
            agent.prepare(BACK, "b", "a", "10.99.0.1".parse().unwrap());
            assert!(agent.record.guest.is_on_way_back(), "{:?}", agent.record.guest);
            let paths = agent.record.paths().unwrap();
            assert_eq!((paths.old.carries(scene.new), paths.new.carries(scene.old)), (true, true), "no new address");
            agent.joins(scene.old);
            agent.count(ALL);
            assert_eq!(agent.record.guest.name(), "prepared");
            if flipped {
                agent.tell(ToGuest::Switch { migration: BACK, to: Side::New });
                // A guess, and with it the new default route.
                agent.feed(Event::TransportReset);
                agent.deadline();
                assert!(run("ip route show default").contains("dev a"));
                get_on(&all);
            }
            agent.tell(ToGuest::Abort { migration: BACK });
            if flipped {
                agent.deadline(); // what is in flight
            }
            assert_eq!((agent.record.guest.migration(), agent.record.guest.name()), (Some(HERE), "settling"));
            agent.joined(scene.new, Some(scene.old));
            get_on(&all);
            assert_eq!(agent.state(), held, "flipped: {flipped}");
        }

        agent.prepare(BACK, "b", "a", "10.99.0.1".parse().unwrap());
        agent.joins(scene.old);
        agent.count(ALL);
        agent.tell(ToGuest::Arrived { migration: BACK });
        agent.deadline();
        assert_eq!((shortened("a"), shortened("b")), (0, 2), "it is direct again, and the other is not");
        let moved = Counts { legacy: 0, ..ALL };
        agent.count(moved);
        agent.deadline();
        agent.count(moved);
        agent.joined(scene.old, Some(scene.new));
        agent.count(moved);
        assert!(matches!(agent.record.guest, Guest::Idle { .. }), "{:?}", agent.record.guest);
        get_on(&all);
        let cards = run("ip -4 -o address show scope global");
        assert!(cards.contains(&scene.old.to_string()) && !cards.contains(&scene.new.to_string()), "{cards}");
        assert!(!run("ip rule").contains("19500"), "{}", run("ip rule"));
        assert_eq!((agent.record.paths(), agent.record.changes.len()), (None, 0));
    });
}

#[test]
fn a_straggler_keeps_the_subflow_that_it_hangs_on() {
    alone(|| {
        let scene = Scene::v4();
        let client = scene.opened_by_client(7001, Protocol::MPTCP);
        let ours = scene.opened_by_vm(7002);
        let mut agent = Agent::new("straggler");
        let all = Counts { legacy: 0, ..ALL };
        moved(&scene, &mut agent, Counts { waiting: 1, ..all });
        assert_eq!(agent.record.guest.name(), "switched");
        // Opened since, to the new address: it has no other.
        let (at, to) = ((IpAddr::from([0; 4]), 7004).into(), (scene.new, 7004).into());
        let listener = listen(at, Protocol::MPTCP);
        let from = (scene.remote, 0).into();
        let theirs = scene.client.call(move || connect(from, to, Protocol::MPTCP));
        let since = (Talker::start(listener.accept().unwrap().0), Talker::start(theirs));
        let of_old = |agent: &mut Agent| {
            let snapshot = agent.kernel.diag.snapshot().unwrap();
            snapshot.connections.iter().filter(|c| has(c, scene.old)).count()
        };
        assert_eq!(of_old(&mut agent), 2);
        let held = agent.state();
        for end in ["called off", "there"] {
            agent.prepare(BACK, "b", "a", "10.99.0.1".parse().unwrap());
            agent.joins(scene.old);
            agent.count(all);
            assert_eq!(agent.record.guest.name(), "prepared", "{end}");
            if end == "called off" {
                agent.tell(ToGuest::Abort { migration: BACK });
                assert_eq!((agent.record.guest.migration(), agent.record.guest.name()), (Some(HERE), "switched"));
                get_on(&[&client, &ours, &since]);
                agent.joined(scene.new, None);
                until("the port to be given up", || (of_old(&mut agent) == 2).then_some(()));
                assert_eq!(agent.state(), held);
            }
        }
        agent.tell(ToGuest::Arrived { migration: BACK });
        agent.deadline();
        agent.count(all);
        agent.deadline();
        agent.count(all);
        agent.joined(scene.old, Some(scene.new));
        get_on(&[&client, &ours, &since]);
    });
}
