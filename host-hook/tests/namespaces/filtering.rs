//! What crosses a tunnel and what does not.

use std::net::UdpSocket;

use lsm_hook::{
    filters::{self, Counts, Crossing},
    tunnel::{self, Tunnels},
};
use lsm_protocol::{Addresses, Mac};

use crate::{
    frame::{BROADCAST, arp_request, dhcp_broadcast, icmpv6, is, large_v4, numbered},
    host::{CLIENT, Host, VNI, VNIC, able, spec, two_hosts, until},
    tap::Tap,
};

const STRANGER: Mac = Mac([0x52, 0x54, 0, 0xee, 0, 5]);
const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

struct Pair {
    a: Host,
    b: Host,
    client: Tap,
    vm: Tap,
}

fn tunnelled() -> Pair {
    let (a, b) = two_hosts(1600);
    a.lan("lan0");
    let client = Tap::new(&a, "c0", "lan0");
    a.run(async { Tunnels::open().unwrap().build_lan_end(&spec(1), "lan0", true, Crossing::default()).await.unwrap() });
    b.run(async { Tunnels::open().unwrap().build_vm_end(&spec(2)).await.unwrap() });
    let vm = Tap::new(&b, "vm0", &tunnel::bridge(VNI));
    Pair { a, b, client, vm }
}

fn counts(host: &Host) -> Counts {
    host.run(async { filters::counts(VNI).await.unwrap().unwrap() })
}

/// Sends frames on one side and a last one that is known to pass; gives which of them came, in order.
fn that_pass(from: &Tap, to: &Tap, frames: &[(&'static str, Vec<u8>)], last: &[u8]) -> Vec<&'static str> {
    for (_, frame) in frames {
        from.write(frame);
    }
    // Broadcasts take a detour through a kernel thread where they come out: the last frame goes until all are quiet.
    let mut passed: Vec<&'static str> = Vec::new();
    let mut collect = |came: Vec<u8>| {
        passed.extend(frames.iter().filter(|(_, frame)| *frame == came).map(|(name, _)| *name));
    };
    for _ in 0..3 {
        from.write(last);
        loop {
            let came = to.expect("the last frame", |_| true);
            if came == last {
                break;
            }
            collect(came);
        }
        std::thread::yield_now();
    }
    to.waiting(|_| true).into_iter().for_each(collect);
    passed.sort_unstable();
    passed
}

#[test]
fn of_the_lan_only_the_vnics_own_and_what_it_needs_comes_to_the_vm() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    let frames = [
        ("own", numbered(VNIC, CLIENT, 1)),
        ("another's", numbered(STRANGER, CLIENT, 2)),
        ("any broadcast", numbered(BROADCAST, CLIENT, 3)),
        ("any multicast", numbered(ALL_NODES, CLIENT, 4)),
        ("arp", arp_request(CLIENT)),
        ("solicitation", icmpv6(ALL_NODES, CLIENT, 135)),
        ("advertisement", icmpv6(ALL_NODES, CLIENT, 136)),
        ("router", icmpv6(ALL_NODES, CLIENT, 134)),
        ("dhcp reply", dhcp_broadcast(CLIENT, 67, 68, VNIC)),
        ("dhcp reply to another", dhcp_broadcast(CLIENT, 67, 68, STRANGER)),
        ("dhcp request", dhcp_broadcast(CLIENT, 68, 67, VNIC)),
    ];
    let last = numbered(VNIC, CLIENT, 99);
    let pass = |crossing| {
        pair.a.run(async { filters::guard_lan_end(VNI, VNIC, crossing).await.unwrap() });
        that_pass(&pair.client, &pair.vm, &frames, &last)
    };
    assert_eq!(pass(Crossing::default()), ["own"]);
    let all_dropped = counts(&pair.a);
    assert_eq!((all_dropped.sent, all_dropped.sent_dropped), (4, 9), "and one frame for a stranger was not flooded");
    assert_eq!(pass(Crossing { arp: true, ..Crossing::default() }), ["advertisement", "arp", "own", "solicitation"]);
    assert_eq!(pass(Crossing { ra: true, ..Crossing::default() }), ["own", "router"]);
    assert_eq!(pass(Crossing { dhcp: true, ..Crossing::default() }), ["dhcp reply", "own"]);
    let counted = counts(&pair.a);
    assert_eq!((counted.arp, counted.ra, counted.dhcp), (3, 1, 1), "each kind by itself");
    assert!(counts(&pair.a).sent_dropped > all_dropped.sent_dropped, "a change of what crosses keeps the counters");
}

#[test]
fn the_vm_speaks_only_with_its_own_mac() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    let frames = [
        ("own", numbered(CLIENT, VNIC, 1)),
        ("own broadcast", arp_request(VNIC)),
        ("forged", numbered(CLIENT, STRANGER, 2)),
        ("forged broadcast", arp_request(STRANGER)),
    ];
    let last = numbered(CLIENT, VNIC, 99);
    assert_eq!(that_pass(&pair.vm, &pair.client, &frames, &last), ["own", "own broadcast"]);
    assert_eq!(counts(&pair.b).sent_dropped, 2);
    assert_eq!(counts(&pair.a).received_dropped, 0, "they were stopped where they were made");

    // The LAN does not rely on the other host: past its filters, at the device itself, the same frames go nowhere.
    pair.b.command("nft", "flush chain bridge lsm arriving");
    pair.b.command("nft", "flush chain bridge lsm leaving");
    assert_eq!(that_pass(&pair.vm, &pair.client, &frames, &last), ["own", "own broadcast"]);
    assert_eq!(counts(&pair.a).received_dropped, 2);
}

#[test]
fn the_vm_never_hears_itself() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    let echo = arp_request(VNIC);
    let last = numbered(VNIC, CLIENT, 99);
    let all = Crossing { arp: true, dhcp: true, ra: true, ..Crossing::default() };
    pair.a.run(async { filters::guard_lan_end(VNI, VNIC, all).await.unwrap() });
    let echoed = || {
        pair.client.write(&echo);
        // The LAN took the echo for the VM itself.
        pair.a.command("bridge", &format!("fdb replace {VNIC} dev {} master static", tunnel::port(VNI)));
        that_pass(&pair.client, &pair.vm, &[], &last);
    };
    echoed();
    assert_eq!(counts(&pair.a).sent_dropped, 1);
    assert_eq!(counts(&pair.b).received_dropped, 0);
    // The VM's host does not rely on the LAN's.
    pair.a.command("nft", "flush chain bridge lsm leaving");
    echoed();
    until("the echo counted", || counts(&pair.b).received_dropped == 1);
    assert!(pair.vm.waiting(is(&echo)).is_empty());
}

#[test]
fn nothing_goes_from_tunnel_to_tunnel() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    // The second tunnel leads nowhere; its counter tells what was sent into it.
    let mut second = spec(1);
    (second.vni, second.mac) = (VNI + 1, STRANGER);
    pair.a.run(async {
        let crossing = Crossing { arp: true, dhcp: true, ra: true, ..Crossing::default() };
        Tunnels::open().unwrap().build_lan_end(&second, "lan0", true, crossing).await.unwrap();
    });
    pair.vm.write(&numbered(STRANGER, VNIC, 1));
    pair.vm.write(&arp_request(VNIC));
    pair.vm.write(&numbered(CLIENT, VNIC, 2));
    pair.client.expect("the VM's broadcast", is(&arp_request(VNIC)));
    let sent = || pair.a.run(async { filters::counts(VNI + 1).await.unwrap().unwrap().sent });
    assert_eq!(sent(), 0);
    pair.client.write(&numbered(STRANGER, CLIENT, 3));
    until("the client's frame counted", || sent() == 1);
    // The last tunnel takes the table with it, the one before does not.
    pair.a.run(async {
        let tunnels = Tunnels::open().unwrap();
        tunnels.remove(VNI).await.unwrap();
        assert_eq!(filters::list().await.unwrap(), [VNI + 1]);
        assert_eq!(filters::counts(VNI).await.unwrap(), None);
        tunnels.remove(VNI + 1).await.unwrap();
    });
    assert_eq!(pair.a.command("nft", "list ruleset"), "");
}

/// Anybody who reaches the host can send packets that bear a tunnel's VNI and the vNIC's MAC.
#[test]
fn only_the_other_end_sends_into_a_tunnel() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    pair.b.ip("addr add 192.0.2.9/24 dev u0");
    let send = |from: &str, number| {
        let header = [8, 0, 0, 0, 0, 0, VNI as u8, 0];
        let packet = [header.as_slice(), &numbered(CLIENT, VNIC, number)].concat();
        pair.b.within(|| UdpSocket::bind((from, 0)).unwrap().send_to(&packet, "192.0.2.1:4789").unwrap());
    };
    send("192.0.2.9", 1);
    send("192.0.2.2", 2);
    pair.client.expect("the other end's frame", is(&numbered(CLIENT, VNIC, 2)));
    assert!(pair.client.waiting(|_| true).is_empty(), "somebody else's frame is in the LAN");
    assert_eq!(pair.a.run(async { filters::foreign(VNI).await.unwrap() }), Some(1));
    // The device itself takes it.
    pair.a.command("nft", "flush chain inet lsm from_underlay_1f");
    send("192.0.2.9", 3);
    pair.client.expect("what nothing stops", is(&numbered(CLIENT, VNIC, 3)));
    pair.a.run(async { Tunnels::open().unwrap().remove(VNI).await.unwrap() });
    assert_eq!(pair.a.command("nft", "list ruleset"), "");
}

#[test]
fn in_a_lan_that_it_has_not_reached_the_vm_speaks_with_its_one_address() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    let addresses = Addresses { v4: Some([10, 1, 0, 1].into()), v6: None };
    let crossing = Crossing { arp: true, addresses: Some(addresses), arriving: true, ..Crossing::default() };
    pair.a.run(async { filters::guard_lan_end(VNI, VNIC, crossing).await.unwrap() });
    let patched = |frame: Vec<u8>, at: usize, bytes: &[u8]| {
        let mut frame = frame;
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let packet = || large_v4(CLIENT, VNIC, 100);
    let tagged = [&packet()[..12], &[0x81, 0, 0, 5], &packet()[12..]].concat();
    let (arp_sender, v4_source, v6_source) = (28, 26, 22);
    let frames = [
        ("own", packet()),
        ("own arp", arp_request(VNIC)),
        ("probe", patched(arp_request(VNIC), arp_sender, &[0; 4])),
        ("link-local", patched(icmpv6(CLIENT, VNIC, 135), v6_source, &[0xfe, 0x80])),
        ("another's address", patched(packet(), v4_source, &[10, 1, 0, 254])),
        ("the gateway's arp", patched(arp_request(VNIC), arp_sender, &[10, 1, 0, 254])),
        ("an IPv6 address", icmpv6(CLIENT, VNIC, 135)),
        ("in another VLAN", tagged),
        ("another protocol", numbered(CLIENT, VNIC, 1)),
        ("another's MAC", large_v4(CLIENT, STRANGER, 100)),
    ];
    let last = large_v4(CLIENT, VNIC, 200);
    assert_eq!(that_pass(&pair.vm, &pair.client, &frames, &last), ["own", "own arp", "probe"]);
}

/// What a kernel says of IPv6 by itself when a card comes up would make the LAN take an interest in the VM too early.
#[test]
fn in_a_lan_that_it_has_not_reached_the_vm_asks_for_routers_where_they_give_its_address_alone() {
    if !able() {
        return;
    }
    let pair = tunnelled();
    let from = |kind: u8, source: [u8; 16]| {
        let mut frame = icmpv6(CLIENT, VNIC, kind);
        frame[22..38].copy_from_slice(&source);
        frame
    };
    let link_local = |last| [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let own = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let frames = [
        ("from its address", from(135, own)),
        ("link-local", from(135, link_local(7))),
        ("detection of duplicates", from(135, [0; 16])),
        ("router solicitation", from(133, link_local(8))),
        ("report of groups", from(143, link_local(9))),
        ("older report of groups", from(131, link_local(10))),
    ];
    let pass = |crossing: Crossing| {
        pair.a.run(async { filters::guard_lan_end(VNI, VNIC, crossing).await.unwrap() });
        that_pass(&pair.vm, &pair.client, &frames, &large_v4(CLIENT, VNIC, 200))
    };
    let v4 = Some([10, 1, 0, 1].into());
    let addresses = Some(Addresses { v4, v6: Some(own.into()) });
    let given = Crossing { arp: true, addresses, arriving: true, ..Crossing::default() };
    assert_eq!(pass(given), ["from its address", "link-local"]);
    let of_v4_alone = Crossing { addresses: Some(Addresses { v4, v6: None }), ..given };
    assert_eq!(pass(of_v4_alone), Vec::<String>::new());
    assert_eq!(pass(Crossing { dhcp: true, addresses: None, ..given }), Vec::<String>::new());
    assert_eq!(pass(Crossing { ra: true, addresses: None, ..given }).len(), frames.len());
    // The LAN that it leaves knows it.
    assert_eq!(pass(Crossing { addresses: None, arriving: false, ..given }).len(), frames.len());
}
