//! Cards, addresses, rules, routes and parameters: set, found again, and gone without residue.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use lsm_guest::{
    netlink::Changed,
    routing::{Exit, Routing, Rule},
    sysctl,
    vnic::Vnics,
};
use nix::{errno::Errno, net::if_::if_nametoindex};

use crate::place::{Place, alone, run, runtime};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// All that this module can change, as iproute2 shows it.
pub(crate) fn state() -> String {
    ["ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all", "ip -o address"]
        .map(run)
        .join("\n")
}

/// The same, once the kernel has done all that it does on its own when these cards come up.
fn settled(cards: &[&str]) -> String {
    let begun = Instant::now();
    loop {
        let now = state();
        let multicast = |card: &&str| now.contains(&format!("ff00::/8 dev {card} table local"));
        if cards.iter().all(multicast) && !now.contains("linkdown") && !now.contains("tentative") {
            return now;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "awaited the routes of {cards:?} that are up: {now}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Link-local addresses come and settle in their own time; without them, states can be compared.
pub(crate) fn no_link_local() {
    sysctl::set("net/ipv6/conf/default/addr_gen_mode", "1").unwrap();
}

#[test]
fn a_card_is_found_by_its_mac_and_changed_once() {
    alone(|| {
        run("ip link add name a address 52:54:00:aa:00:01 mtu 1500 type veth peer name g");
        runtime().block_on(async {
            let vnics = Vnics::open().unwrap();
            let mac = "52:54:00:aa:00:01".parse().unwrap();
            let vnic = vnics.find(mac).await.unwrap().unwrap();
            assert_eq!((vnic.name.as_str(), vnic.up, vnic.carrier, vnic.mtu), ("a", false, false, 1500));
            assert_eq!(vnics.find("52:54:00:aa:00:02".parse().unwrap()).await.unwrap(), None);
            assert_eq!(vnics.set_up(&vnic, true).await.unwrap(), Changed::Yes);
            assert_eq!(vnics.set_up(&vnic, true).await.unwrap(), Changed::No);
            assert_eq!(vnics.set_mtu(&vnic, 1400).await.unwrap(), Changed::Yes);
            assert_eq!(vnics.set_mtu(&vnic, 1400).await.unwrap(), Changed::No);
            run("ip link set dev g up");
            let six = (address("2001:db8::7"), 64);
            for (address, prefix) in [(address("192.0.2.7"), 24), six] {
                assert_eq!(vnics.add_address(&vnic, address, prefix).await.unwrap(), Changed::Yes);
                assert_eq!(vnics.add_address(&vnic, address, prefix).await.unwrap(), Changed::No);
            }
            assert!(!run("ip -6 address show dev a to 2001:db8::7").contains("tentative"));
            let now = vnics.find(mac).await.unwrap().unwrap();
            assert_eq!((now.up, now.carrier, now.mtu), (true, true, 1400));
            assert!(now.addresses.contains(&six) && now.addresses.contains(&(address("192.0.2.7"), 24)), "{now:?}");
            for (address, prefix) in [(address("192.0.2.7"), 24), six] {
                assert_eq!(vnics.remove_address(&vnic, address, prefix).await.unwrap(), Changed::Yes);
                assert_eq!(vnics.remove_address(&vnic, address, prefix).await.unwrap(), Changed::No);
            }
            assert_eq!(vnics.set_up(&vnic, false).await.unwrap(), Changed::Yes);
            run("ip link del dev a");
            let gone = vnics.set_up(&vnic, true).await.unwrap_err();
            assert_eq!(gone.errno(), Some(Errno::ENODEV));
            assert!(gone.to_string().contains("52:54:00:aa:00:01"), "{gone}");
        });
    });
}

#[test]
fn rules_and_tables_come_and_go_without_residue() {
    alone(|| {
        no_link_local();
        run("ip link add name a type veth peer name g");
        run("ip link set dev a up");
        run("ip link set dev g up");
        run("ip address add 192.0.2.7/24 dev a");
        run("ip address add 2001:db8::7/64 dev a nodad");
        run("ip rule add from 192.0.2.99 lookup 99 priority 99");
        let index = if_nametoindex("a").unwrap();
        let mut routing = Routing::open().unwrap();
        let before = settled(&["a", "g"]);
        let cases = [
            ("192.0.2.7", 24, "192.0.2.254", 1001, "203.0.113.9"),
            ("192.0.2.7", 24, "198.51.100.1", 1002, "203.0.113.9"), // onlink
            ("2001:db8::7", 64, "2001:db8::fe", 1001, "2001:db8:9::1"),
            ("2001:db8::7", 64, "fe80::1", 200, "2001:db8:9::1"),
        ];
        for (source, prefix, gateway, table, far) in cases {
            let exit = Exit { ifindex: index, source: address(source), prefix, gateway: address(gateway) };
            let rule = Rule { source: exit.source, table, priority: 500 };
            routing.fill_table(table, &exit, None).unwrap();
            routing.fill_table(table, &exit, None).unwrap();
            assert_eq!(routing.add_rule(&rule).unwrap(), Changed::Yes);
            assert_eq!(routing.add_rule(&rule).unwrap(), Changed::No);
            assert_eq!(routing.rules().unwrap(), [rule], "others' rules are not ours");
            let far = routing.route_get(address(far), Some(exit.source)).unwrap();
            assert_eq!((far.ifindex, far.gateway, far.source), (index, Some(exit.gateway), Some(exit.source)));
            assert!(
                routing.route_get(address(if prefix == 24 { "203.0.113.9" } else { "2001:db8:9::1" }), None).is_err()
            );
            assert_eq!(routing.remove_rule(&rule).unwrap(), Changed::Yes);
            assert_eq!(routing.remove_rule(&rule).unwrap(), Changed::No);
            assert_eq!(routing.clear_table(table).unwrap(), Changed::Yes);
            assert_eq!(routing.clear_table(table).unwrap(), Changed::No);
            assert_eq!(state(), before);
        }
        let nowhere = Exit { ifindex: 999, source: address("192.0.2.7"), prefix: 24, gateway: address("192.0.2.254") };
        let error = routing.fill_table(1001, &nowhere, None).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENODEV));
        assert!(error.to_string().contains("192.0.2.254 in table 1001"), "{error}");
    });
}

#[test]
fn a_default_route_is_replaced_in_place_and_restored_as_it_was() {
    alone(|| {
        no_link_local();
        for (name, four, six) in
            [("a", "192.0.2.7/24", "2001:db8:a::7/64"), ("b", "198.51.100.7/24", "2001:db8:b::7/64")]
        {
            run(&format!("ip link add name {name} type veth peer name g{name}"));
            run(&format!("ip link set dev {name} up"));
            run(&format!("ip link set dev g{name} up"));
            run(&format!("ip address add {four} dev {name}"));
            run(&format!("ip address add {six} dev {name} nodad"));
        }
        run("ip route add default via 192.0.2.254 dev a proto dhcp src 192.0.2.7 metric 100 mtu 1400 advmss 1300");
        run("ip route add default metric 200 nexthop via 192.0.2.253 dev a nexthop via 198.51.100.253 dev b");
        run("ip -6 route add default via 2001:db8:a::fe dev a proto static metric 100 pref high");
        let (a, b) = (if_nametoindex("a").unwrap(), if_nametoindex("b").unwrap());
        let mut routing = Routing::open().unwrap();
        let before = settled(&["a", "ga", "b", "gb"]);
        let found = routing.default_routes().unwrap();
        let brief: Vec<_> = found.iter().map(|route| (route.v6, route.gateway, route.ifindex, route.metric)).collect();
        let expected = [
            (false, Some(address("192.0.2.254")), Some(a), 100),
            (true, Some(address("2001:db8:a::fe")), Some(a), 100),
            (false, None, None, 200),
        ];
        assert_eq!(brief, expected);
        assert_eq!((found[0].source, found[0].protocol), (Some(address("192.0.2.7")), 16));

        for (source, prefix, gateway) in
            [("198.51.100.7", 24, "198.51.100.254"), ("2001:db8:b::7", 64, "2001:db8:b::fe")]
        {
            let exit = Exit { ifindex: b, source: address(source), prefix, gateway: address(gateway) };
            routing.replace_default(&exit, 100).unwrap();
            routing.replace_default(&exit, 100).unwrap();
            let now = routing.default_routes().unwrap();
            let same =
                |route: &&lsm_guest::routing::DefaultRoute| route.v6 == exit.source.is_ipv6() && route.metric == 100;
            let [route] = now.iter().filter(same).collect::<Vec<_>>()[..] else { panic!("{now:?}") };
            assert_eq!((route.gateway, route.ifindex, route.source), (Some(exit.gateway), Some(b), Some(exit.source)));
        }
        for route in &found {
            routing.restore_default(route).unwrap();
        }
        assert_eq!(state(), before);
        for route in &found {
            assert_eq!(routing.delete_default(route).unwrap(), Changed::Yes);
            assert_eq!(routing.delete_default(route).unwrap(), Changed::No);
        }
        assert_eq!(routing.default_routes().unwrap(), []);
        for route in &found {
            routing.restore_default(route).unwrap();
        }
        assert_eq!(routing.default_routes().unwrap().len(), 3);
    });
}

/// As systemd-networkd and NetworkManager have it when they are told to keep a card's routes in another table.
#[test]
fn the_main_table_reaches_the_lan_of_a_card_whose_owner_keeps_its_routes_elsewhere() {
    alone(|| {
        no_link_local();
        let way_out = || run("ip route show dev b") + &run("ip -6 route show dev b");
        run("ip link add name b type veth peer name gb");
        run("ip link set dev b up");
        run("ip link set dev gb up");
        run("ip address add 198.51.100.7/24 dev b noprefixroute");
        run("ip address add 2001:db8:b::7/64 dev b nodad noprefixroute");
        let before = way_out();
        let mut routing = Routing::open().unwrap();
        let ifindex = if_nametoindex("b").unwrap();
        let exits = [("198.51.100.7", 24, "198.51.100.254"), ("2001:db8:b::7", 64, "2001:db8:b::fe")].map(
            |(source, prefix, gateway)| Exit { ifindex, source: address(source), prefix, gateway: address(gateway) },
        );
        for exit in &exits {
            assert!(routing.replace_unbound_default(exit, 100).is_err(), "its gateway is out of reach");
            assert_eq!(routing.connect(exit).unwrap(), Changed::Yes);
            assert_eq!(routing.connect(exit).unwrap(), Changed::No);
            routing.replace_unbound_default(exit, 100).unwrap();
        }
        // A lease that is exchanged takes none of it away; with the parameter that systemd sets the second address outlives
        // the first.
        run("sysctl -q -w net.ipv4.conf.b.promote_secondaries=1");
        run("ip address add 198.51.100.8/24 dev b noprefixroute");
        run("ip address delete 198.51.100.7/24 dev b");
        run("ip address delete 2001:db8:b::7/64 dev b");
        let left = way_out();
        for route in ["default via 198.51.100.254", "198.51.100.0/24", "default via 2001:db8:b::fe", "2001:db8:b::/64"]
        {
            assert!(left.contains(route), "{route} is gone: {left}");
        }
        run("ip address add 198.51.100.7/24 dev b noprefixroute");
        run("ip address delete 198.51.100.8/24 dev b");
        run("ip address add 2001:db8:b::7/64 dev b nodad noprefixroute");
        for route in routing.default_routes().unwrap() {
            routing.delete_default(&route).unwrap();
        }
        for exit in &exits {
            assert_eq!(routing.disconnect(exit).unwrap(), Changed::Yes);
            assert_eq!(routing.disconnect(exit).unwrap(), Changed::No);
        }
        assert_eq!(way_out(), before);
    });
}

#[test]
fn a_parameter_of_this_namespace_is_set() {
    alone(|| {
        let before = sysctl::get("net/mptcp/add_addr_timeout").unwrap();
        assert_ne!(before, "1");
        sysctl::set("net/mptcp/add_addr_timeout", "1").unwrap();
        assert_eq!(sysctl::get("net/mptcp/add_addr_timeout").unwrap(), "1");
        let elsewhere = Place::new().call(|| sysctl::get("net/mptcp/add_addr_timeout").unwrap());
        assert_eq!(elsewhere, before);
        let refused = sysctl::set("net/mptcp/add_addr_timeout", "much").unwrap_err();
        assert!(refused.to_string().contains("\"much\""), "{refused}");
    });
}
