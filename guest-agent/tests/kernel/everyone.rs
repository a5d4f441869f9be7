//! Every connection: foreseen, joined behind a listener that is bound to one address, invited when it came late, and
//! noticed when it ends.

use std::{collections::BTreeSet, iter, net::IpAddr, path::PathBuf, rc::Rc, time::Duration};

use lsm_guest::{
    changes,
    closures::Closures,
    connections::{Diag, Subflow},
    endpoints, foresight, invitation,
    kernel::Kernel,
    mptcp::{Events, Notice},
    record::{Paths, Plugged, Record},
    routing::Exit,
};
use lsm_protocol::{
    Mac, Side,
    forecast::{Fate, Forecast, Obstacle, Outcome},
    guest::Event,
};
use socket2::Protocol;
use tokio::{sync::mpsc, task::LocalSet, time::timeout};

use crate::{
    place::{alone, runtime, until},
    switch::{Scene, has},
    traffic::{Talker, connect, listen},
};

/// An agent's hands, without the agent: what it knows is in a directory that goes with it.
struct Hands {
    runtime: tokio::runtime::Runtime,
    kernel: Kernel,
    record: Record,
    directory: PathBuf,
}

impl Hands {
    fn new(scene: &Scene) -> Hands {
        Hands::over(&[scene])
    }

    /// For one scene of each family at most.
    fn over(scenes: &[&Scene]) -> Hands {
        let directory = std::env::temp_dir().join(format!("lsm-everyone-{}", std::process::id()));
        let mut record = Record::open(&directory).unwrap();
        let plugged = |card: &str, address: fn(&Scene) -> IpAddr| {
            let ifindex = nix::net::if_::if_nametoindex(card).unwrap();
            let mut plugged = Plugged::bare(Mac([2, 0, 0, 0, 0, ifindex as u8]));
            for source in scenes.iter().map(|scene| address(scene)) {
                let gateway = format!("{}2", source.to_string().trim_end_matches('1')).parse().unwrap();
                plugged.put(Exit { ifindex, source, prefix: if source.is_ipv4() { 24 } else { 64 }, gateway });
            }
            plugged
        };
        let (old, new) = (plugged("a", |scene| scene.old), plugged("b", |scene| scene.new));
        record.set_paths(Some(Paths { old, new, old_covered: false }));
        let runtime = runtime();
        let kernel = runtime.block_on(async { Kernel::open().unwrap() });
        Hands { runtime, kernel, record, directory }
    }

    fn announce(&mut self) {
        endpoints::announce(&mut self.kernel, &mut self.record).unwrap();
    }

    fn prefer(&mut self, side: Side) {
        endpoints::prefer(&mut self.kernel, &mut self.record, side).unwrap();
    }

    fn withdraw(&mut self, side: Side) {
        endpoints::withdraw(&mut self.kernel, &mut self.record, side).unwrap();
    }

    /// The established subflows of one address, once `enough` of them are there.
    fn subflows(&mut self, what: &str, address: IpAddr, enough: usize) -> Vec<Subflow> {
        until(what, || {
            let connections = self.kernel.diag.snapshot().unwrap().connections;
            let all = connections.into_iter().flat_map(|c| c.subflows);
            let found: Vec<_> = all.filter(|s| s.local.ip() == address && s.established).collect();
            (found.len() >= enough).then_some(found)
        })
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Both directions get on since now.
pub(crate) fn gets_on(what: &str, talkers: &[&(Talker, Talker)]) {
    let data = || talkers.iter().map(|(ours, theirs)| ours.received().min(theirs.received())).min().unwrap();
    let start = data();
    until(what, || (data() > start + 10_000).then_some(()));
}

pub(crate) fn end(talkers: Vec<(Talker, Talker)>) {
    talkers.iter().for_each(|(ours, theirs)| {
        ours.stop();
        theirs.stop();
    });
    for (ours, theirs) in talkers {
        let ((a_sent, a_got), (b_sent, b_got)) = (ours.finish(), theirs.finish());
        assert_eq!((a_sent, b_sent), (b_got, a_got));
    }
}

#[test]
fn who_listens_on_the_old_address_alone_is_joined_by_a_port_of_the_kernels() {
    alone(|| {
        let scene = Scene::v4();
        let bound = scene.opened_by_client_to(scene.old, 7001, Protocol::MPTCP);
        let mut hands = Hands::new(&scene);
        hands.announce();
        hands.announce(); // repeated, it changes nothing
        let endpoints = hands.kernel.path_manager.endpoints().unwrap();
        let [bare, with_port] = &endpoints[..] else { panic!("{endpoints:?}") };
        assert!(!bare.flags.signal && bare.flags.subflow && bare.port == 0, "{bare:?}");
        assert!(with_port.flags.signal && with_port.flags.backup && with_port.port == 19_540, "{with_port:?}");
        let joined = hands.subflows("a join by the port", scene.new, 1);
        assert_eq!((joined[0].local.port(), joined[0].backup), (19_540, true));

        // The program that listens on all addresses has its join without a port, and needs no other.
        let open = scene.opened_by_client(7002, Protocol::MPTCP);
        hands.withdraw(Side::New);
        hands.announce();
        let joined = hands.subflows("joins of both", scene.new, 3);
        assert!(joined.iter().any(|s| s.local.port() == 7002), "{joined:?}");

        hands.prefer(Side::New);
        for subflow in hands.subflows("subflows on the new address", scene.new, 2) {
            assert!(!subflow.backup, "{subflow:?}");
        }
        gets_on("data after the flip", &[&bound, &open]);
        hands.withdraw(Side::Old);
        until("no subflow on the old address", || {
            let now = hands.kernel.diag.snapshot().unwrap();
            now.connections.iter().all(|c| has(c, scene.new) && !has(c, scene.old)).then_some(())
        });
        gets_on("data without the old address", &[&bound, &open]);
        end(vec![bound, open]);
    });
}

#[test]
fn each_connection_joins_in_the_family_it_has() {
    alone(|| {
        let [four, six] = Scene::both();
        let talkers = vec![
            four.opened_by_client(7001, Protocol::MPTCP),
            six.opened_by_client(7002, Protocol::MPTCP),
            four.opened_by_vm(7003),
            six.opened_by_vm(7004),
        ];
        let mut hands = Hands::over(&[&four, &six]);
        hands.announce();
        hands.announce(); // repeated, it changes nothing
        let endpoints = hands.kernel.path_manager.endpoints().unwrap();
        assert_eq!(endpoints.len(), 2, "{endpoints:?}");
        assert!(endpoints.iter().all(|e| e.flags.signal && e.flags.subflow && e.flags.backup), "{endpoints:?}");
        for new in [four.new, six.new] {
            let joined = hands.subflows("two joins of each family", new, 2);
            assert!(joined.iter().all(|s| s.backup && s.remote.is_ipv4() == new.is_ipv4()), "{joined:?}");
        }

        hands.prefer(Side::New);
        let endpoints = hands.kernel.path_manager.endpoints().unwrap();
        for (address, backup) in [(four.new, false), (six.new, false), (four.old, true), (six.old, true)] {
            let found = endpoints.iter().find(|e| e.address == address).map(|e| e.flags.backup);
            assert_eq!(found, Some(backup), "{address}: {endpoints:?}");
        }
        let all: Vec<_> = talkers.iter().collect();
        gets_on("data after the flip", &all);
        hands.prefer(Side::Old);
        gets_on("data after the flip back", &all);
        hands.prefer(Side::New);
        gets_on("data after another flip", &all);
        hands.withdraw(Side::Old);
        until("no subflow on the old addresses", || {
            let now = hands.kernel.diag.snapshot().unwrap();
            let left = |c| [four.old, six.old].iter().any(|old| has(c, *old));
            now.connections.iter().all(|c| !left(c)).then_some(())
        });
        gets_on("data without the old addresses", &all);
        end(talkers);
    });
}

#[test]
fn who_came_late_is_invited_and_nobody_else_loses_a_subflow() {
    alone(|| {
        let scene = Scene::v4();
        let first = scene.opened_by_client(7001, Protocol::MPTCP);
        let mut hands = Hands::new(&scene);
        hands.announce();
        let joined = hands.subflows("the first one's join", scene.new, 1)[0];
        // The client's machine cannot reach the new address when the second connection learns of it, and does not try again.
        scene.client.run(&format!("ip route add unreachable {}/32", scene.new));
        let second = scene.opened_by_client(7002, Protocol::MPTCP);
        gets_on("data on the second connection", &[&second]);
        scene.client.run(&format!("ip route del unreachable {}/32", scene.new));
        hands.prefer(Side::New);
        let waiting = |hands: &mut Hands| {
            let now = hands.kernel.diag.snapshot().unwrap().connections;
            now.iter().filter(|c| !has(c, scene.new)).count()
        };
        assert_eq!(waiting(&mut hands), 1);

        invitation::invite(&mut hands.kernel, &mut hands.record).unwrap();
        until("the second one's join", || (waiting(&mut hands) == 0).then_some(()));
        let now = hands.subflows("subflows", scene.new, 2);
        assert!(now.iter().any(|s| (s.local, s.remote) == (joined.local, joined.remote)), "{now:?}");
        assert!(now.iter().any(|s| s.local.port() == 19_540 && !s.backup), "it is invited to use it: {now:?}");

        // What somebody's only way came by is left alone by the next one.
        invitation::invite(&mut hands.kernel, &mut hands.record).unwrap();
        let endpoints = hands.kernel.path_manager.endpoints().unwrap();
        let mut ports: Vec<u16> = endpoints.iter().filter(|e| e.address == scene.new).map(|e| e.port).collect();
        ports.sort_unstable();
        assert_eq!(ports, [0, 19_540, 19_541]);
        hands.withdraw(Side::Old);
        until("no subflow on the old address", || {
            let now = hands.kernel.diag.snapshot().unwrap();
            now.connections.iter().all(|c| has(c, scene.new) && !has(c, scene.old)).then_some(())
        });
        gets_on("data without the old address", &[&first, &second]);
        end(vec![first, second]);
    });
}

#[test]
fn every_connection_is_foreseen() {
    alone(|| {
        let scene = Scene::v4();
        let mut talkers = vec![
            scene.opened_by_client(7001, Protocol::MPTCP),
            scene.opened_by_vm(7002),
            scene.opened_by_client(7003, Protocol::TCP),
        ];
        // The VM asks for MPTCP, and its peer does not know it.
        let at = (scene.remote, 7004).into();
        let plain = scene.client.call(move || listen(at, Protocol::TCP));
        let ours = connect((scene.old, 0).into(), at, Protocol::MPTCP);
        talkers.push((Talker::start(ours), Talker::start(plain.accept().unwrap().0)));
        // Through no managed vNIC.
        let local = listen("127.0.0.1:7005".parse().unwrap(), Protocol::MPTCP);
        let ours = connect("127.0.0.1:0".parse().unwrap(), "127.0.0.1:7005".parse().unwrap(), Protocol::MPTCP);
        talkers.push((Talker::start(ours), Talker::start(local.accept().unwrap().0)));
        let datagrams = std::net::UdpSocket::bind((scene.old, 7006)).unwrap();
        let _elsewhere = std::net::UdpSocket::bind("0.0.0.0:7007").unwrap();

        let mut hands = Hands::new(&scene);
        let paths = hands.record.paths();
        hands.record.set_paths(None); // no migration is under way
        let look = |hands: &mut Hands| {
            hands.runtime.block_on(foresight::look(&mut hands.kernel, &hands.record, 10_000)).unwrap()
        };
        let fate = |forecast: &Forecast, port: u16| {
            let of_port = |c: &&lsm_protocol::forecast::Foreseen| c.local.port() == port || c.remote.port() == port;
            forecast.connections.iter().find(of_port).map(|c| c.fate)
        };
        let before = look(&mut hands);
        assert_eq!(fate(&before, 7001), Some(Fate::Unproven), "{before:?}");
        assert_eq!(fate(&before, 7002), Some(Fate::OpenedHere));
        assert_eq!(fate(&before, 7003), Some(Fate::Waits(Obstacle::Plain)));
        assert_eq!(fate(&before, 7004), Some(Fate::Waits(Obstacle::Unanswered)));
        assert_eq!(fate(&before, 7005), Some(Fate::Local));
        assert_eq!(before.datagrams, Some(vec![datagrams.local_addr().unwrap()]));
        assert_eq!((before.sums.managed(), before.sums.local), (4, 2), "both ends of one are here: {before:?}");

        // Once it has joined, that is known.
        hands.record.set_paths(paths);
        hands.announce();
        hands.subflows("joins", scene.new, 2);
        assert_eq!(fate(&look(&mut hands), 7001), Some(Fate::Able { ago: 0 }));
        hands
            .record
            .evidence
            .learn(4_000, [Outcome { peer: (scene.remote, 7001).into(), opened_here: false, joined: true }]);
        hands.withdraw(Side::New);
        until("the joins' end", || (fate(&look(&mut hands), 7001) == Some(Fate::Able { ago: 6_000 })).then_some(()));
        // The evidence is there after a restart.
        hands.record.save_evidence().unwrap();
        assert_eq!(Record::open(&hands.directory).unwrap().evidence, hands.record.evidence);
        end(talkers);
    });
}

#[test]
fn the_end_of_a_legacy_connection_is_told() {
    alone(|| {
        let scene = Scene::v4();
        let ours = scene.opened_by_client(7001, Protocol::TCP);
        let other = scene.opened_by_client(7002, Protocol::TCP);
        let runtime = runtime();
        let mut closures = runtime.block_on(async { Closures::open().unwrap() });
        let mut wait = |address: IpAddr, limit: u64| {
            runtime.block_on(async { timeout(Duration::from_millis(limit), closures.of(&[address])).await.is_ok() })
        };
        assert!(!wait(scene.old, 100), "nothing has ended");
        end(vec![ours]);
        assert!(wait(scene.old, 10_000), "a connection of the old address has ended");
        assert!(!wait(scene.old, 200), "it is told once");
        end(vec![other]);
        assert!(!wait(scene.new, 300), "another address's");
        let left = Diag::open().unwrap().snapshot().unwrap().legacy;
        assert!(left.is_empty(), "{left:?}");
    });
}

#[test]
fn events_lost_for_want_of_room_are_made_up_for_by_a_count() {
    alone(|| {
        let scene = Scene::v4();
        let runtime = runtime();
        // The least room that the kernel gives: a few events fill it.
        let tiny = || runtime.block_on(async { Events::with_room(1).unwrap() });
        let (mut read_here, watched) = (tiny(), tiny());
        let mut talkers: Vec<_> = (7001..7021).map(|port| scene.opened_by_client(port, Protocol::MPTCP)).collect();

        let mut next = || {
            let next = async { timeout(Duration::from_millis(200), read_here.next()).await };
            runtime.block_on(next).ok().map(Result::unwrap)
        };
        let notices: Vec<Notice> = iter::from_fn(&mut next).collect();
        assert_eq!(notices.first(), Some(&Notice::Overrun), "{notices:?}");
        let token = |notice: &Notice| match notice {
            Notice::Event(event) => Some(event.token),
            Notice::Overrun => None,
        };
        let told: BTreeSet<u32> = notices.iter().filter_map(token).collect();
        assert!(!told.is_empty() && told.len() < talkers.len(), "{notices:?}");

        let (facts_in, mut facts) = mpsc::unbounded_channel();
        let agent = LocalSet::new();
        agent.spawn_local(changes::watch_subflows(watched, facts_in, mpsc::unbounded_channel().0, Rc::default()));
        let mut fact =
            |limit| agent.block_on(&runtime, async { timeout(Duration::from_millis(limit), facts.recv()).await });
        let mut diag = Diag::open().unwrap();
        let mut count = || diag.snapshot().unwrap().connections.iter().filter(|c| has(c, scene.old)).count();
        assert_eq!(fact(10_000), Ok(Some(Event::SubflowsChanged)), "nobody asks for a count");
        assert_eq!(count(), talkers.len());

        // And what happens later is heard again.
        while fact(100).is_ok() {}
        talkers.push(scene.opened_by_client(7021, Protocol::MPTCP));
        assert_eq!(fact(10_000), Ok(Some(Event::SubflowsChanged)), "nothing is heard any more");
        assert_eq!(count(), talkers.len());
        end(talkers);
    });
}
