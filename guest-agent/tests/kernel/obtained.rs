//! The whole agent with addresses from a LAN, asked by hand: got, given back, lost.

use std::{
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use crate::{
    addresses::{self, no_link_local},
    agent::{Agent, OLD},
    obtaining::{ACK, AUTOCONFIGURED, DISCOVER, MAC, NAK, OFFER, OFFERED, dnsmasq, radvd, wicked},
    place::{Place, alone, run, until},
};

/// A VM on a LAN of its own by `a`, whose spare `v` is plugged into the LAN that is returned: 10.2.0.1/24, 2001:db8:2::1.
pub(crate) fn vm() -> (Place, Place) {
    no_link_local();
    let (home, lan) = (Place::new(), Place::new());
    home.plug("a", "h");
    run(&format!("ip link set dev a address {OLD}"));
    run("ip address add 192.0.2.7/24 dev a");
    run("ip address add 2001:db8:1::7/64 dev a nodad");
    run("ip route add default via 192.0.2.1 dev a");
    run("ip -6 route add default via 2001:db8:1::1 dev a metric 1024");
    home.run("ip address add 192.0.2.1/24 dev h");
    home.run("ip address add 2001:db8:1::1/64 dev h nodad");
    lan.plug("v", "g");
    run("ip link set dev v down");
    run(&format!("ip link set dev v address {MAC}"));
    run("sysctl -q -w net.ipv6.conf.v.addr_gen_mode=0"); // as it is in VMs
    run("ip -6 address flush dev v"); // made at once, though the card is down
    lan.run("sysctl -q -w net.ipv6.conf.all.forwarding=1");
    lan.run("ip address add 10.2.0.1/24 dev g");
    lan.run("ip address add 2001:db8:2::1/64 dev g nodad");
    lan.run("ip address add fe80::1/64 dev g nodad");
    (home, lan)
}

/// What a move may leave no trace in: addresses, rules, routes, and the spare's parameters.
pub(crate) fn state() -> String {
    let parameters = run("sysctl -a --pattern net\\.ipv[46]\\.(conf|neigh)\\.v\\.");
    let settled = |line: &&str| !line.starts_with("multicast") && !line.contains("stable_secret");
    let all = addresses::state().replace("linkdown ", "") + &parameters;
    all.lines().filter(settled).collect::<Vec<_>>().join("\n")
}

pub(crate) fn comes_back(before: &str) {
    let begun = Instant::now();
    loop {
        let now = state();
        if now == before {
            return;
        }
        let only = |these: &str, those: &str| -> Vec<String> {
            these.lines().filter(|line| !those.lines().any(|other| other == *line)).map(str::to_owned).collect()
        };
        let (more, less) = (only(&now, before), only(before, &now));
        assert!(begun.elapsed() < Duration::from_secs(10), "there is still {more:#?}, and no more {less:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn after_an_abort_nothing_is_left_of_what_was_got() {
    alone(|| {
        let (_home, lan) = vm();
        let Some(server) = dnsmasq(&lan, "10.2.0.200,10.2.0.210") else { return };
        let Some(_radvd) = radvd(&lan, 1800) else { return };
        let agent = Agent::start();
        let before = state();
        let main = || run("ip route show default") + &run("ip -6 route show default");
        let defaults = main();
        agent.prepares("--address dhcp --address slaac");
        let got = run("ip -o address show dev v scope global");
        assert!(got.contains("inet 10.2.0.2") && got.contains(AUTOCONFIGURED), "{got}");
        assert!(server.read("leases").contains("10.2.0.2"));
        for (family, from, to) in [("-4", got_v4(&got), "203.0.113.9"), ("-6", AUTOCONFIGURED.into(), "2001:db8:9::9")]
        {
            let way = run(&format!("ip {family} route get {to} from {from}"));
            assert!(way.contains("dev v"), "{way}");
        }
        assert_eq!(main(), defaults, "new connections go on by the old vNIC");
        agent.does(&["abort"]);
        agent.is("idle");
        comes_back(&before);
        until("the lease to be given back", || (!server.read("leases").contains("10.2.0.2")).then_some(()));
    });
}

fn got_v4(got: &str) -> String {
    let found = got.split_whitespace().find_map(|word| word.strip_suffix("/24"));
    found.unwrap().to_owned()
}

/// Four seconds; the router, and the mask.
const SHORT: [u8; 18] = [1, 4, 255, 255, 255, 0, 3, 4, 10, 2, 0, 1, 51, 4, 0, 0, 0, 4];

#[test]
fn a_lease_that_its_server_takes_back_before_the_move_ends_the_preparation() {
    alone(|| {
        static REQUESTS: AtomicU32 = AtomicU32::new(0);
        let (_home, lan) = vm();
        wicked(&lan, |kind| match kind {
            DISCOVER => Some((OFFER, OFFERED, SHORT.to_vec())),
            3 if REQUESTS.fetch_add(1, Ordering::SeqCst) == 0 => Some((ACK, OFFERED, SHORT.to_vec())),
            3 => Some((NAK, OFFERED, b"\x38\x07changed".to_vec())),
            _ => None,
        });
        let agent = Agent::start();
        let before = state();
        agent.prepares("--address dhcp");
        assert!(run("ip -o address show dev v").contains("10.2.0.57"));
        agent.is("idle");
        comes_back(&before);
        let log = agent.log();
        assert!(log.contains("10.2.0.57 is lost: DHCP server 10.2.0.1 refused"), "{log}");
    });
}

/// As an owner does it whose lease has run out, or who is stopped.
#[test]
fn an_address_that_is_taken_away_before_the_move_ends_the_preparation() {
    alone(|| {
        let (_home, lan) = vm();
        let Some(_server) = dnsmasq(&lan, "10.2.0.200,10.2.0.210") else { return };
        let agent = Agent::start();
        let before = state();
        agent.prepares("--address dhcp");
        agent.is("prepared");
        let got = got_v4(&run("ip -o address show dev v scope global"));
        run(&format!("ip address delete {got}/24 dev v"));
        agent.is("idle");
        comes_back(&before);
        let log = agent.log();
        assert!(log.contains(&format!("somebody has taken {got} away from it")), "{log}");
    });
}

#[test]
fn a_lease_that_becomes_another_address_before_the_move_ends_the_preparation() {
    alone(|| {
        static REQUESTS: AtomicU32 = AtomicU32::new(0);
        let (_home, lan) = vm();
        wicked(&lan, |kind| match kind {
            DISCOVER => Some((OFFER, OFFERED, SHORT.to_vec())),
            3 if REQUESTS.fetch_add(1, Ordering::SeqCst) == 0 => Some((ACK, OFFERED, SHORT.to_vec())),
            3 => Some((ACK, Ipv4Addr::new(10, 2, 0, 58), SHORT.to_vec())),
            _ => None,
        });
        let agent = Agent::start();
        let before = state();
        agent.prepares("--address dhcp");
        assert!(run("ip -o address show dev v").contains("10.2.0.57"));
        agent.is("idle");
        comes_back(&before);
        let log = agent.log();
        assert!(log.contains("the lease of 10.2.0.57 became one of 10.2.0.58"), "{log}");
    });
}

#[test]
fn an_agent_that_dies_goes_on_with_the_lease() {
    alone(|| {
        static REQUESTS: AtomicU32 = AtomicU32::new(0);
        let (_home, lan) = vm();
        wicked(&lan, |kind| match kind {
            DISCOVER => Some((OFFER, OFFERED, SHORT.to_vec())),
            3 => {
                REQUESTS.fetch_add(1, Ordering::SeqCst);
                Some((ACK, OFFERED, SHORT.to_vec()))
            }
            _ => None,
        });
        let mut agent = Agent::start();
        let before = state();
        agent.prepares("--address dhcp");
        agent.dies();
        let asked = REQUESTS.load(Ordering::SeqCst);
        until("the lease to be extended twice", || (REQUESTS.load(Ordering::SeqCst) >= asked + 2).then_some(()));
        agent.is("prepared");
        assert!(run("ip -o address show dev v").contains("10.2.0.57"));
        agent.does(&["abort"]);
        agent.is("idle");
        comes_back(&before);
    });
}

#[test]
fn once_settled_the_default_route_is_the_routers_to_take_back() {
    alone(|| {
        let (_home, lan) = vm();
        let Some(server) = dnsmasq(&lan, "10.2.0.200,10.2.0.210") else { return };
        let Some(router) = radvd(&lan, 1800) else { return };
        let agent = Agent::start();
        agent.prepares("--address dhcp --address slaac");
        agent.does(&["switch", "--settle"]);
        agent.is("idle");
        assert_eq!(run("ip -o address show dev a scope global"), "", "the old addresses are gone");
        assert!(server.read("leases").contains("10.2.0.2"), "the new one stays");
        let v4 = run("ip route show default");
        assert!(v4.contains("via 10.2.0.1 dev v"), "{v4}");
        let v6 = || run("ip -6 route show default");
        until("the kernel's own default route, alone", || {
            (v6().contains("via fe80::1 dev v proto ra") && v6().lines().count() == 1).then_some(())
        });
        // Says itself that it is none any more, as it ends.
        drop(router);
        let Some(_none) = radvd(&lan, 0) else { return };
        until("no default route by a router that is none", || (!v6().contains("dev v")).then_some(()));
        assert!(run("ip -o address show dev v").contains(AUTOCONFIGURED));
    });
}

/// The spare gets an address of a pool; gives the rules that say which addresses are moved.
fn moved_addresses(agent: &Agent) -> String {
    agent.prepares("--address 2001:db8:2::7/64 --gateway 2001:db8:2::1");
    run("ip -6 rule")
}

#[test]
fn of_several_addresses_the_one_that_connections_have_is_moved() {
    alone(|| {
        let (home, _lan) = vm();
        let listener = TcpListener::bind("[::]:7001").unwrap();
        let theirs = home.call(|| TcpStream::connect("[2001:db8:1::7]:7001").unwrap());
        let ours = listener.accept().unwrap();
        run("ip address add 2001:db8:1::98/64 dev a nodad"); // comes first in the kernel's list
        let rules = moved_addresses(&Agent::start());
        assert!(rules.contains("from 2001:db8:1::7 lookup") && !rules.contains("2001:db8:1::98"), "{rules}");
        drop((theirs, ours));
    });
}

/// The kernel sends nothing from it yet.
#[test]
fn an_address_that_may_be_somebody_else_s_yet_is_not_the_one_to_be_moved() {
    alone(|| {
        let (_home, _lan) = vm();
        let agent = Agent::start();
        run("ip address add 2001:db8:1::99/64 dev a");
        let rules = moved_addresses(&agent);
        assert!(rules.contains("from 2001:db8:1::7 lookup") && !rules.contains("2001:db8:1::99"), "{rules}");
    });
}
