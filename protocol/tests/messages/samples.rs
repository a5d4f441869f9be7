//! One message of every kind, and of every kind of thing in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use lsm_protocol::{
    Addresses, Addressing, Counts, Decline, Drain, FromGuest, Given, GuestFailure, GuestStatus, Hello, Join, Mac,
    Offer, Peer, Prepare, Refusal, Running, Side, Subnet, ToGuest, Uuid, V4, V6, VnicPlace, WireguardEnd,
    forecast::{Fate, Forecast, Foreseen, Obstacle, Sums},
    proof::{Proof, Unproved},
    report::{self, Became, Gap, Outcome, Readdressed, Report, Script, Step},
};

use crate::world::{FOREIGN, OURS, offer};

const COUNTS: Counts = Counts { joined: 300, waiting: 2, moved: 299, legacy: 1, early: 70_000 };
const OLD: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
const VM: Uuid = Uuid([0xcc; 16]);

/// What hosts and guests greet each other with.
pub fn hello() -> Vec<(&'static str, Hello)> {
    vec![
        ("ours", Hello { versions: vec![1], software: "lsm-guest 0.1.0".to_owned() }),
        ("of many versions", Hello { versions: vec![300, 2, 1], software: String::new() }),
    ]
}

pub fn proof() -> Vec<(&'static str, Proof)> {
    vec![
        ("Challenge", Proof::Challenge([1; 32])),
        ("Answer", Proof::Answer { challenge: [1; 32], nonce: [2; 32], tag: [3; 32] }),
        ("Proven", Proof::Proven([4; 32])),
        ("Refused: ByHost", Proof::Refused(Unproved::ByHost)),
        ("Refused: ByGuest", Proof::Refused(Unproved::ByGuest)),
        ("Refused: WrongKey", Proof::Refused(Unproved::WrongKey)),
        ("Refused: OutOfTurn", Proof::Refused(Unproved::OutOfTurn)),
        ("Refused: Seal", Proof::Refused(Unproved::Seal)),
        ("Declined", Proof::Declined { challenge: [1; 32], why: Unproved::ByGuest }),
    ]
}

pub fn to_guest() -> Vec<(&'static str, ToGuest)> {
    let plan = offer(Join::Before, Drain::UntilIdle).prepare(false);
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    let v6 = V6::Static(Given { address, prefix_len: 64, gateway: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1) });
    let dhcp = V4::Dhcp(Some(Subnet { address: Ipv4Addr::new(192, 0, 2, 0), prefix_len: 24 }));
    let slaac = V6::Slaac(Some(Subnet { address: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), prefix_len: 64 }));
    let by = |v4, v6| Prepare { addressing: Addressing { v4, v6 }, ..plan.clone() };
    let migration = OURS;
    vec![
        ("Prepare", ToGuest::Prepare(plan.clone())),
        ("Prepare, IPv6, for a time", ToGuest::Prepare(Prepare { drain: Drain::For(300_000), ..by(V4::None, v6) })),
        ("Prepare, both", ToGuest::Prepare(by(plan.addressing.v4, v6))),
        ("Prepare, DHCP, for ever", ToGuest::Prepare(Prepare { drain: Drain::Forever, ..by(dhcp, V6::None) })),
        ("Prepare, SLAAC, arrived", ToGuest::Prepare(Prepare { arrived: true, ..by(V4::None, slaac) })),
        ("Prepare, DHCP and SLAAC", ToGuest::Prepare(by(V4::Dhcp(None), V6::Slaac(None)))),
        ("Switch to the new", ToGuest::Switch { migration, to: Side::New }),
        ("Switch to the old", ToGuest::Switch { migration, to: Side::Old }),
        ("Arrived", ToGuest::Arrived { migration }),
        ("Abort", ToGuest::Abort { migration }),
        ("KeepAlive", ToGuest::KeepAlive { migration }),
        ("Query", ToGuest::Query),
        ("Release", ToGuest::Release { migration }),
        ("Forecast", ToGuest::Forecast { vnics: vec![OLD], skip: 1_000 }),
        ("Settle", ToGuest::Settle { migration, cut: false }),
        ("Settle, cut", ToGuest::Settle { migration, cut: true }),
    ]
}

fn refusals() -> Vec<(&'static str, Refusal)> {
    let gateway = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
    vec![
        ("Busy", Refusal::Busy(FOREIGN)),
        ("NoSuchMigration", Refusal::NoSuchMigration),
        ("NoSuchVnic", Refusal::NoSuchVnic(OLD)),
        ("Path", Refusal::Path { mac: OLD, detail: "no route".to_owned() }),
        ("GatewaySilent", Refusal::GatewaySilent(gateway)),
        ("PathManager", Refusal::PathManager("limit reached".to_owned())),
        ("Addressing", Refusal::Addressing),
        ("Arrived", Refusal::Arrived),
        ("NotPrepared", Refusal::NotPrepared),
        ("Held", Refusal::Held { waiting: 1, legacy: 300 }),
        ("NotArrived", Refusal::NotArrived),
        ("NoAddress", Refusal::NoAddress { mac: OLD, detail: "no DHCP server answered".to_owned() }),
    ]
}

/// A connection of each fate.
fn forecast() -> Forecast {
    let local = SocketAddr::from(([192, 0, 2, 7], 80));
    let remote = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9], 40_000));
    let obstacles = [
        Obstacle::Plain,
        Obstacle::Unanswered,
        Obstacle::FellBack,
        Obstacle::NotJoined { ago: 300_000 },
        Obstacle::Full,
    ];
    let fates = [Fate::Joined, Fate::Able { ago: 0 }, Fate::OpenedHere, Fate::Unproven, Fate::Local];
    let fates = obstacles.map(Fate::Waits).into_iter().chain(fates);
    let sums = Sums { moves: 2, opened_here: 1, unproven: 1, waits: 5, local: 300 };
    let connections = fates.map(|fate| Foreseen { local, remote, fate }).collect();
    Forecast { sums, skipped: 1_000, connections, datagrams: Some(vec![local]) }
}

/// A connection of each kind of end.
fn report() -> Report {
    let peer = SocketAddr::from(([192, 0, 2, 9], 40_000));
    let [from, to] = [7, 9].map(|last| IpAddr::V4(Ipv4Addr::new(192, 0, 2, last)));
    let became = [
        Became::Moved,
        Became::MovedLate,
        Became::Ended,
        Became::Stayed(Obstacle::Plain),
        Became::Cut(Obstacle::NotJoined { ago: 0 }),
        Became::Lost(110),
        Became::Kept,
    ];
    let script = |name: &str, status| Script { name: name.to_owned(), status, outcome: String::new() };
    Report {
        migration: OURS,
        lan: "dallas".to_owned(),
        began: 1_800_000_000_000,
        outcome: Outcome::Settled,
        addresses: vec![Readdressed { from, to: Some(to) }, Readdressed { from: to, to: None }],
        steps: vec![Step { step: "switching".to_owned(), at: 300 }],
        sums: report::Sums { moved: 1, moved_late: 2, ended: 3, stayed: 4, legacy: 5, cut: 6, lost: 7, kept: 300 },
        connections: became.map(|became| report::Connection { peer, became }).into(),
        gap: Some(Gap { at_least: 20, at_most: 300 }),
        rtt_before: Some(70_000),
        rtt_after: Some(2_000),
        datagrams: Some(vec![peer]),
        scripts: Some(vec![script("dns", Some(0)), script("slow", None)]),
        restarted: false,
    }
}

pub fn from_guest() -> Vec<(String, FromGuest)> {
    let migration = OURS;
    let status = GuestStatus {
        state: "switched".to_owned(),
        migration: Some(OURS),
        counts: COUNTS,
        awaiting: Some("data on every new subflow".to_owned()),
    };
    let idle = GuestStatus { state: "idle".to_owned(), migration: None, counts: Counts::default(), awaiting: None };
    let mut all = vec![
        ("Prepared".to_owned(), FromGuest::Prepared { migration, counts: COUNTS }),
        ("Switched to the new".to_owned(), FromGuest::Switched { migration, to: Side::New, counts: COUNTS }),
        ("Switched to the old".to_owned(), FromGuest::Switched { migration, to: Side::Old, counts: COUNTS }),
        ("Settled".to_owned(), FromGuest::Settled { migration }),
        ("Aborted".to_owned(), FromGuest::Aborted { migration }),
        ("Status".to_owned(), FromGuest::Status(status)),
        ("Status, idle".to_owned(), FromGuest::Status(idle)),
    ];
    all.push(("Forecast".to_owned(), FromGuest::Forecast(forecast())));
    let nothing = Forecast { datagrams: None, ..Forecast::default() };
    all.push(("Forecast, of nothing".to_owned(), FromGuest::Forecast(nothing)));
    let v4 = |last| Some(Ipv4Addr::new(192, 0, 2, last));
    let [from, to] = [v4(7), v4(9)].map(|v4| Addresses { v4, v6: None });
    all.push(("Moved".to_owned(), FromGuest::Moved { migration, from, to }));
    let from = Addresses { v6: Some(Ipv6Addr::LOCALHOST), ..from };
    all.push(("Addressed".to_owned(), FromGuest::Addressed { migration, addresses: from }));
    all.push((
        "Moved, from both families to none".to_owned(),
        FromGuest::Moved { migration, from, to: Addresses::default() },
    ));
    let aborted = Report {
        outcome: Outcome::Aborted,
        gap: None,
        rtt_after: None,
        datagrams: None,
        scripts: None,
        restarted: true,
        ..report()
    };
    let refused_report = Report { outcome: Outcome::Refused(Refusal::Addressing), ..aborted.clone() };
    all.push(("Report".to_owned(), FromGuest::Report(report().into())));
    all.push(("Report, aborted".to_owned(), FromGuest::Report(aborted.into())));
    all.push(("Report, refused".to_owned(), FromGuest::Report(refused_report.into())));
    let refused = |(name, why)| (format!("Refused: {name}"), FromGuest::Refused { migration, why });
    all.extend(refusals().into_iter().map(refused));
    all
}

pub fn peer() -> Vec<(String, Peer)> {
    let migration = OURS;
    let places = vec![
        VnicPlace { mac: OLD, lan: Some("montreal".to_owned()) },
        VnicPlace { mac: Mac([0x52, 0x54, 0, 0xaa, 0, 2]), lan: None },
    ];
    let underlay = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    let running = Running { vnics: places, active: OLD, underlay, mtu: 1500 };
    let addresses = Addresses { v4: Some(Ipv4Addr::new(192, 0, 2, 9)), v6: Some(Ipv6Addr::LOCALHOST) };
    let after = Offer { underlay: IpAddr::V6(Ipv6Addr::LOCALHOST), ..offer(Join::After, Drain::For(1)) };
    let mut all = vec![
        ("Locate", Peer::Locate { vm: VM }),
        ("Located", Peer::Located { vm: VM, running: Some(running) }),
        ("Located, not here", Peer::Located { vm: VM, running: None }),
        ("Offer", Peer::Offer(offer(Join::Before, Drain::UntilIdle))),
        ("Offer, join after", Peer::Offer(after)),
        ("Offer, join never", Peer::Offer(offer(Join::Never, Drain::Forever))),
        ("Accepted", Peer::Accepted { migration }),
        ("Declined: Busy", Peer::Declined { migration, why: Decline::Busy(FOREIGN) }),
        ("Declined: NotRunning", Peer::Declined { migration, why: Decline::NotRunning }),
        ("Declined: Tunnel", Peer::Declined { migration, why: Decline::Tunnel("exists".to_owned()) }),
        ("Declined: Mtu", Peer::Declined { migration, why: Decline::Mtu { needed: 1550, available: 1500 } }),
        ("GuestPrepared", Peer::GuestPrepared { migration, counts: COUNTS }),
        ("GuestRefused: Refused", Peer::GuestRefused { migration, why: GuestFailure::Refused(Refusal::Addressing) }),
        ("GuestRefused: Silent", Peer::GuestRefused { migration, why: GuestFailure::Silent(8_000) }),
        ("Flipped", Peer::Flipped { migration }),
        ("Stopped", Peer::Stopped { migration }),
        ("Resumed", Peer::Resumed { migration }),
        ("Arrived", Peer::Arrived { migration }),
        ("TakeDown", Peer::TakeDown { migration }),
        ("TakenDown", Peer::TakenDown { migration }),
        ("Abort", Peer::Abort { migration }),
        ("KeepAlive", Peer::KeepAlive { migration }),
        ("Foresee", Peer::Foresee { vm: VM }),
        ("Foreseen", Peer::Foreseen { vm: VM, forecast: Some(forecast()) }),
        ("Foreseen, no answer", Peer::Foreseen { vm: VM, forecast: None }),
        ("GuestAddressed", Peer::GuestAddressed { migration, addresses }),
        ("Encrypt", Peer::Encrypt { migration, end: WireguardEnd { key: [7; 32], port: 16_520 } }),
        ("Encrypted", Peer::Encrypted { migration, end: WireguardEnd { key: [8; 32], port: 51_820 } }),
    ];
    all.drain(..).map(|(name, peer)| (name.to_owned(), peer)).collect()
}
