//! The sequence that moves connections: join in backup, flip, drain, delete; judged by both kernels' counters and by bytes.

use std::{net::IpAddr, rc::Rc, time::Duration};

use lsm_guest::{
    connections::{Connection, Diag, Snapshot, State},
    mptcp::{Endpoint, EventKind, Events, Flags, Limits, Notice, PathManager, Which},
    routing::{Exit, Routing, Rule},
};
use nix::errno::Errno;
use socket2::Protocol;

use crate::{
    agent::OLD,
    obtaining::MAC,
    place::{Place, alone, counter, run, runtime, until},
    traffic::{Talker, connect, listen},
};

const LIMITS: Limits = Limits { subflows: 8, add_addr_accepted: 8 };

/// A VM with two vNICs, and a client with one address behind two gateways (which are in its own place).
pub(crate) struct Scene {
    pub(crate) client: Rc<Place>,
    pub(crate) old: IpAddr,
    pub(crate) new: IpAddr,
    pub(crate) remote: IpAddr,
}

impl Scene {
    pub(crate) fn v4() -> Self {
        Scene::v4_with(Scene::client())
    }

    /// With cards that an agent knows by their MACs, the spare without an address yet.
    pub(crate) fn for_an_agent() -> Self {
        let scene = Scene::v4();
        run(&format!("ip address del {}/24 dev b", scene.new));
        for (card, mac) in [("a", OLD.to_owned()), ("b", MAC.to_string())] {
            run(&format!("ip link set dev {card} address {mac}"));
        }
        scene
    }

    fn v6() -> Self {
        Scene::v6_with(Scene::client())
    }

    /// The same machines in IPv4 and in IPv6.
    pub(crate) fn both() -> [Self; 2] {
        let client = Scene::client();
        [Scene::v4_with(client.clone()), Scene::v6_with(client)]
    }

    fn v4_with(client: Rc<Place>) -> Self {
        Scene::set(client, "192.0.2.", "198.51.100.", "203.0.113.1", 24)
    }

    fn v6_with(client: Rc<Place>) -> Self {
        Scene::set(client, "2001:db8:a::", "2001:db8:b::", "2001:db8:c::1", 64)
    }

    fn client() -> Rc<Place> {
        let client = Place::new();
        client.plug("a", "ga");
        client.plug("b", "gb");
        Rc::new(client)
    }

    fn set(client: Rc<Place>, lan_a: &str, lan_b: &str, remote: &str, prefix: u8) -> Self {
        let mut routing = Routing::open().unwrap();
        let nodad = if prefix == 64 { " nodad" } else { "" };
        client.run(&format!("ip address add {remote} dev lo{nodad}"));
        for (ours, theirs, lan, table) in [("a", "ga", lan_a, 101), ("b", "gb", lan_b, 102)] {
            run(&format!("ip address add {lan}1/{prefix} dev {ours}{nodad}"));
            client.run(&format!("ip address add {lan}2/{prefix} dev {theirs}{nodad}"));
            // With one address only, whichever way it goes.
            let network = lan.trim_end_matches("::").to_owned() + if prefix == 64 { "::" } else { "0" };
            client.run(&format!("ip route replace {network}/{prefix} dev {theirs} src {remote} metric 10"));
            client.run(&format!("ip route flush proto kernel root {network}/{prefix} dev {theirs}"));
            let ifindex = nix::net::if_::if_nametoindex(ours).unwrap();
            let source: IpAddr = format!("{lan}1").parse().unwrap();
            let exit = Exit { ifindex, source, prefix, gateway: format!("{lan}2").parse().unwrap() };
            routing.fill_table(table, &exit, None).unwrap();
            routing.add_rule(&Rule { source, table, priority: table }).unwrap();
            if ours == "a" {
                routing.replace_default(&exit, 50).unwrap();
            }
            let way = routing.route_get(remote.parse().unwrap(), Some(source)).unwrap();
            assert_eq!((way.ifindex, way.source), (ifindex, Some(source)));
        }
        PathManager::open().unwrap().set_limits(LIMITS).unwrap();
        client.call(|| PathManager::open().unwrap().set_limits(LIMITS).unwrap());
        let address = |text: &str| text.parse().unwrap();
        Scene {
            client,
            old: address(&format!("{lan_a}1")),
            new: address(&format!("{lan_b}1")),
            remote: address(remote),
        }
    }

    /// A connection that the client opens; the VM's end first.
    pub(crate) fn opened_by_client(&self, port: u16, protocol: Protocol) -> (Talker, Talker) {
        // On all addresses: joins come to the new one.
        let any = if self.old.is_ipv4() { "0.0.0.0" } else { "::" };
        self.opened_by_client_to(any.parse().unwrap(), port, protocol)
    }

    /// The same with a program that listens on one address.
    pub(crate) fn opened_by_client_to(&self, listening: IpAddr, port: u16, protocol: Protocol) -> (Talker, Talker) {
        let listener = listen((listening, port).into(), Protocol::MPTCP);
        let (from, to) = ((self.remote, 0).into(), (self.old, port).into());
        let theirs = self.client.call(move || connect(from, to, protocol));
        let (ours, _) = listener.accept().unwrap();
        // The listener stays: a join is a new SYN to its port.
        std::mem::forget(listener);
        (Talker::start(ours), Talker::start(theirs))
    }

    /// A connection that the VM opens; its end first.
    pub(crate) fn opened_by_vm(&self, port: u16) -> (Talker, Talker) {
        let at = (self.remote, port).into();
        let listener = self.client.call(move || listen(at, Protocol::MPTCP));
        let ours = connect((self.old, 0).into(), at, Protocol::MPTCP);
        let (theirs, _) = listener.accept().unwrap();
        std::mem::forget(listener);
        (Talker::start(ours), Talker::start(theirs))
    }
}

fn snapshot(diag: &mut Diag) -> Snapshot {
    diag.snapshot().unwrap()
}

pub(crate) fn has(connection: &Connection, address: IpAddr) -> bool {
    connection.subflows.iter().any(|subflow| subflow.local.ip() == address && subflow.established)
}

/// Payload in both directions on the subflows of an address, over all connections.
fn carried(snapshot: &Snapshot, address: IpAddr) -> u64 {
    let subflows = snapshot.connections.iter().flat_map(|connection| &connection.subflows);
    subflows.filter(|subflow| subflow.local.ip() == address).map(|s| s.bytes_acked + s.bytes_received).sum()
}

fn flags(words: &str) -> Flags {
    Flags {
        signal: words.contains("signal"),
        subflow: words.contains("subflow"),
        backup: words.contains("backup"),
        ..Flags::default()
    }
}

fn switch(scene: Scene) {
    let Scene { old, new, .. } = scene;
    let runtime = runtime();
    let mut events = runtime.block_on(async { Events::open().unwrap() });
    let mut manager = PathManager::open().unwrap();
    let mut diag = Diag::open().unwrap();
    assert_eq!(manager.limits().unwrap(), LIMITS);

    let mut pairs = vec![
        scene.opened_by_client(7001, Protocol::MPTCP),
        scene.opened_by_client(7002, Protocol::MPTCP),
        scene.opened_by_vm(7003),
    ];
    let plain = scene.opened_by_client(7004, Protocol::TCP);
    let before = until("three connections and a legacy one", || {
        let now = snapshot(&mut diag);
        (now.connections.len() == 3 && now.legacy.len() == 1).then_some(now)
    });
    assert_eq!(before.connections.iter().filter(|connection| connection.opened_by_us == Some(true)).count(), 1);
    assert_eq!(before.connections.iter().filter(|connection| connection.opened_by_us == Some(false)).count(), 2);
    assert_eq!((before.legacy[0].local, before.legacy[0].state), (plain.0.local(), State::Established));
    assert!(before.listeners.iter().any(|listener| listener.port() == 7001), "{before:?}");

    // Joined, in backup, and nothing but the handshake on it.
    let endpoint = Endpoint { id: 2, address: new, port: 0, flags: flags("signal subflow backup"), ifindex: 0 };
    manager.add(&endpoint).unwrap();
    manager.add(&endpoint).unwrap();
    assert!(manager.add(&Endpoint { id: 3, ..endpoint }).unwrap_err().errno().is_some());
    let joined = until("a subflow of each connection on the new address", || {
        let now = snapshot(&mut diag);
        now.connections.iter().all(|connection| has(connection, new)).then_some(now)
    });
    for subflow in joined.connections.iter().flat_map(|connection| &connection.subflows) {
        assert_eq!(subflow.backup, subflow.local.ip() == new, "{subflow:?}");
        assert_eq!(subflow.initial, subflow.local.ip() == old, "{subflow:?}");
    }
    assert_eq!(carried(&joined, new), 0);
    let told = runtime.block_on(async {
        let mut told = Vec::new();
        while told.len() < 3 {
            let event = tokio::time::timeout(Duration::from_secs(10), events.next()).await.expect("SUB_ESTABLISHED");
            if let Notice::Event(event) = event.unwrap()
                && event.kind == EventKind::SubflowEstablished
            {
                assert_eq!((event.local.unwrap().ip(), event.remote.unwrap().ip()), (new, scene.remote));
                told.push(event.token);
            }
        }
        told.sort_unstable();
        told
    });
    let mut tokens: Vec<_> = joined.connections.iter().map(|connection| connection.token).collect();
    tokens.sort_unstable();
    assert_eq!(told, tokens, "events and dumps name connections alike");

    // The flip. The old address needs an endpoint of its own to be demoted.
    let covers = Endpoint { id: 1, address: old, port: 0, flags: Flags::default(), ifindex: 0 };
    manager.add(&covers).unwrap();
    let listed = manager.endpoints().unwrap();
    assert!(listed.contains(&endpoint) && listed.contains(&covers), "{listed:?}");
    let (ours, theirs) = (counter("MPPrioTx"), scene.client.call(|| counter("MPPrioRx")));
    manager.set_backup(&[(Which::Id(2), false), (Which::Address(old), true)]).unwrap();
    until("MP_PRIO of both subflows of each connection, at both ends", || {
        let sent = counter("MPPrioTx") - ours;
        let received = scene.client.call(|| counter("MPPrioRx")) - theirs;
        (sent == 6 && received == 6).then_some(())
    });
    let flipped = snapshot(&mut diag);
    for subflow in flipped.connections.iter().flat_map(|connection| &connection.subflows) {
        assert_eq!(subflow.backup, subflow.local.ip() == old, "{subflow:?}");
    }
    let seen = scene.client.call(move || Diag::open().unwrap().snapshot().unwrap());
    for subflow in seen.connections.iter().flat_map(|connection| &connection.subflows) {
        assert_eq!(subflow.backup_by_peer, subflow.remote.ip() == old, "{subflow:?}");
    }
    let data =
        |talkers: &[(Talker, Talker)]| talkers.iter().map(|(a, b)| a.received().min(b.received())).min().unwrap();
    let start = data(&pairs);
    until("data on the new subflows, both directions, the old drained", || {
        let now = snapshot(&mut diag);
        let of_old = |c: &Connection| c.subflows.iter().filter(|s| s.local.ip() == old).map(|s| s.unacked).sum::<u32>();
        let of_new = |c: &Connection| {
            c.subflows.iter().any(|s| s.local.ip() == new && s.bytes_acked > 0 && s.bytes_received > 0)
        };
        now.connections.iter().all(|connection| of_new(connection) && of_old(connection) == 0).then_some(())
    });
    until("10 kB to each end since the flip", || (data(&pairs) > start + 10_000).then_some(()));

    // The old address goes; the legacy connection stays where it is.
    manager.delete(1, old).unwrap();
    let after = until("no subflow on the old address", || {
        let now = snapshot(&mut diag);
        now.connections.iter().all(|c| has(c, new) && !c.subflows.iter().any(|s| s.local.ip() == old)).then_some(now)
    });
    assert_eq!((after.connections.len(), after.legacy.len()), (3, 1));
    assert!(scene.client.call(|| counter("RmAddr")) >= 1);
    let start = data(&pairs);
    until("10 kB to each end without the old address", || (data(&pairs) > start + 10_000).then_some(()));

    pairs.push(plain);
    pairs.iter().for_each(|(ours, theirs)| {
        ours.stop();
        theirs.stop();
    });
    for (ours, theirs) in pairs {
        let ((a_sent, a_got), (b_sent, b_got)) = (ours.finish(), theirs.finish());
        assert_eq!((a_sent, b_sent), (b_got, a_got));
    }
    manager.delete(2, new).unwrap();
    manager.delete(2, new).unwrap();
    assert_eq!(manager.endpoints().unwrap(), []);
}

#[test]
fn connections_of_both_ends_move_over_ipv4() {
    alone(|| switch(Scene::v4()));
}

#[test]
fn connections_of_both_ends_move_over_ipv6() {
    alone(|| switch(Scene::v6()));
}

#[test]
fn an_endpoint_of_fullmesh_keeps_it_when_its_priority_changes() {
    alone(|| {
        let mut manager = PathManager::open().unwrap();
        let flags = Flags { subflow: true, fullmesh: true, ..Flags::default() };
        let address = "127.0.0.9".parse().unwrap();
        manager.add(&Endpoint { id: 9, address, port: 0, flags, ifindex: 1 }).unwrap();
        manager.set_backup(&[(Which::Id(9), true)]).unwrap();
        let listed = manager.endpoints().unwrap();
        assert_eq!(listed[0].flags, Flags { backup: true, ..flags });
        assert_eq!((listed[0].id, listed[0].ifindex), (9, 1));
        let error = manager.set_backup(&[(Which::Id(9), false), (Which::Id(8), true)]).unwrap_err();
        assert!(error.to_string().contains("id 8 to backup"), "{error}");
        assert!(!manager.endpoints().unwrap()[0].flags.backup, "the first of the pair was done");
    });
}

#[test]
fn a_limit_above_the_kernels_is_refused_in_its_words() {
    alone(|| {
        let mut manager = PathManager::open().unwrap();
        let error = manager.set_limits(Limits { subflows: 9, add_addr_accepted: 0 }).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EINVAL));
        let words = std::error::Error::source(&error).unwrap().to_string();
        assert!(words.contains("limit"), "{words}");
    });
}
