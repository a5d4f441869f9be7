//! A path of two families: raised, taken over, left, and put back as if it had never been.

use std::net::IpAddr;

use lsm_guest::{kernel::Kernel, path, record::Record};
use lsm_protocol::{Addressing, Drain, Given, Mac, MigrationId, Prepare, Refusal, V4, V6};

use nix::net::if_::if_nametoindex;

use crate::{
    addresses::{self, no_link_local},
    place::{alone, run, runtime},
};

const OLD: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
const NEW: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);

fn plan(given: &[(&str, u8, &str)]) -> Prepare {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let given = given.iter().map(|(address, prefix_len, gateway)| Given {
        address: ip(address),
        prefix_len: *prefix_len,
        gateway: ip(gateway),
    });
    Prepare {
        migration: MigrationId([1; 16]),
        old: OLD,
        new: NEW,
        lan: "dallas".to_owned(),
        addressing: given.collect(),
        mtu: 1400,
        arrived: false,
        drain: Drain::UntilIdle,
        lease: 60_000,
    }
}

const FOUR: (&str, u8, &str) = ("198.51.100.7", 24, "198.51.100.254");
const SIX: (&str, u8, &str) = ("2001:db8:b::7", 64, "fe80::fe");

/// A VM with an address of each family on `a`, and `b` as the spare.
fn vm() {
    no_link_local();
    for (name, mac) in [("a", OLD), ("b", NEW)] {
        run(&format!("ip link add name {name} address {mac} type veth peer name g{name}"));
        run(&format!("ip link set dev g{name} up"));
    }
    run("ip link set dev a up");
    run("ip address add 192.0.2.7/24 dev a");
    run("ip address add 2001:db8:a::7/64 dev a nodad");
    run("ip route add default via 192.0.2.254 dev a");
    run("ip -6 route add default via fe80::fe dev a metric 256");
}

/// Without what the kernel adds in its own time: the far ends' links, and the routes of links that have just come up.
fn state() -> String {
    let all = addresses::state().replace("linkdown ", "");
    let settled = |line: &&str| !line.contains("dev g") && !line.starts_with("multicast");
    all.lines().filter(settled).collect::<Vec<_>>().join("\n")
}

fn defaults() -> String {
    run("ip route show default") + &run("ip -6 route show default")
}

/// The longest packets that the routes of ours by a card take, where they say so: of each family the LAN's and the default.
fn at_most(card: &str) -> Vec<Option<u32>> {
    let table = format!("dev {card} table {} ", 19_500 + if_nametoindex(card).unwrap());
    let routes = run("ip -4 route show table all") + &run("ip -6 route show table all");
    let mtu = |route: &str| route.split_once(" mtu ").map(|(_, mtu)| mtu.split(' ').next().unwrap().parse().unwrap());
    routes.lines().filter(|route| route.contains(&table)).map(mtu).collect()
}

#[test]
fn two_families_move_together_and_come_back_together() {
    alone(|| {
        vm();
        let directory = std::env::temp_dir().join(format!("lsm-families-{}", std::process::id()));
        let before = state();
        let (had, six_before) = (defaults(), run("ip -6 rule"));
        runtime().block_on(async {
            let (mut kernel, mut record) = (Kernel::open().unwrap(), Record::open(&directory).unwrap());
            let plan = plan(&[FOUR, SIX]);
            path::raise(&mut kernel, &mut record, &plan).await.unwrap();
            path::raise(&mut kernel, &mut record, &plan).await.unwrap();
            let paths = record.paths().unwrap();
            assert_eq!(paths.old.addresses().to_string(), "192.0.2.7 and 2001:db8:a::7");
            assert_eq!(paths.new.addresses().to_string(), "198.51.100.7 and 2001:db8:b::7");
            assert_eq!(defaults(), had, "not yet");
            for source in paths.old.addresses().all().into_iter().chain(paths.new.addresses().all()) {
                let (far, card) = if source.is_ipv4() { ("203.0.113.9", "a") } else { ("2001:db8:9::1", "a") };
                let card = if paths.new.carries(source) { "b" } else { card };
                let went = run(&format!("ip route get {far} from {source}"));
                assert!(went.contains(&format!("dev {card}")), "{source}: {went}");
            }

            path::take_over(&mut kernel, &mut record).await.unwrap();
            let now = defaults();
            assert!(now.contains("via 198.51.100.254 dev b") && now.contains("via fe80::fe dev b"), "{now}");
            assert!(!now.contains("dev a"), "{now}");
            assert_eq!(
                (at_most("a"), at_most("b")),
                (vec![Some(1_430); 4], vec![None; 4]),
                "a tunnel has room for 70 bytes less"
            );
            run(&format!("ip route flush table {}", 19_500 + if_nametoindex("a").unwrap()));
            assert_eq!(path::upkeep::repair(&mut kernel, &record).unwrap().len(), 1);
            assert_eq!(at_most("a"), vec![Some(1_430); 4], "put back as it was");
            path::lower(&mut kernel, &mut record).await.unwrap();
            assert_eq!((defaults(), state()), (had, before));

            path::raise(&mut kernel, &mut record, &plan).await.unwrap();
            path::take_over(&mut kernel, &mut record).await.unwrap();
            path::release_old(&mut kernel, &mut record).await.unwrap();
            let left = run("ip address show dev a");
            assert!(!left.contains("192.0.2.7") && !left.contains("2001:db8:a::7"), "{left}");
            assert_eq!(run("ip -6 rule"), six_before);
            let now = defaults();
            assert!(now.contains("via 198.51.100.254 dev b") && now.contains("via fe80::fe dev b"), "{now}");
        });
        std::fs::remove_dir_all(&directory).unwrap();
    });
}

#[test]
fn a_lan_of_one_family_takes_a_vm_of_two() {
    alone(|| {
        vm();
        let directory = std::env::temp_dir().join(format!("lsm-families-one-{}", std::process::id()));
        runtime().block_on(async {
            let (mut kernel, mut record) = (Kernel::open().unwrap(), Record::open(&directory).unwrap());
            path::raise(&mut kernel, &mut record, &plan(&[SIX])).await.unwrap();
            let paths = record.paths().unwrap();
            assert_eq!(paths.old.addresses().to_string(), "192.0.2.7 and 2001:db8:a::7");
            assert_eq!(paths.new.addresses().to_string(), "2001:db8:b::7");
            path::take_over(&mut kernel, &mut record).await.unwrap();
            let now = defaults();
            assert!(now.contains("via 192.0.2.254 dev a"), "IPv4 has nowhere else to go: {now}");
            assert!(now.contains("via fe80::fe dev b"), "{now}");
            path::lower(&mut kernel, &mut record).await.unwrap();
        });
        std::fs::remove_dir_all(&directory).unwrap();
    });
}

#[test]
fn what_cannot_be_given_is_refused_before_anything_is_touched() {
    alone(|| {
        vm();
        let directory = std::env::temp_dir().join(format!("lsm-families-none-{}", std::process::id()));
        let before = state();
        runtime().block_on(async {
            let (mut kernel, mut record) = (Kernel::open().unwrap(), Record::open(&directory).unwrap());
            for (v4, v6) in [(V4::None, V6::None)] {
                let plan = Prepare { addressing: Addressing { v4, v6 }, ..plan(&[]) };
                let refused = path::raise(&mut kernel, &mut record, &plan).await;
                assert_eq!(refused, Err(Refusal::Addressing));
            }
            let taken = plan(&[FOUR, ("2001:db8:a::7", 64, "fe80::fe")]);
            let refused = path::raise(&mut kernel, &mut record, &taken).await.unwrap_err().to_string();
            assert!(refused.contains("2001:db8:a::7 is in use"), "{refused}");
            assert_eq!(state(), before);
        });
        std::fs::remove_dir_all(&directory).unwrap();
    });
}

#[test]
fn what_another_agent_takes_away_is_put_back_and_nothing_else() {
    alone(|| {
        vm();
        let directory = std::env::temp_dir().join(format!("lsm-families-upkeep-{}", std::process::id()));
        runtime().block_on(async {
            let (mut kernel, mut record) = (Kernel::open().unwrap(), Record::open(&directory).unwrap());
            path::raise(&mut kernel, &mut record, &plan(&[FOUR, SIX])).await.unwrap();
            let raised = state();
            assert_eq!(path::upkeep::repair(&mut kernel, &record).unwrap(), Vec::<String>::new());

            let mut watch = path::upkeep::watch().unwrap();
            run("ip route add 203.0.113.0/24 dev a"); // not ours, and no reason to look
            run("ip rule flush"); // as agents do: even the kernel's own rules
            run("ip rule add from all lookup main priority 32766");
            run("ip -6 rule del from 2001:db8:b::7");
            run(&format!("ip -6 route flush table {}", 19_500 + if_nametoindex("b").unwrap()));
            let told = tokio::time::timeout(std::time::Duration::from_secs(10), watch.changed());
            told.await.expect("word of changed rules").unwrap();
            let put_back = path::upkeep::repair(&mut kernel, &record).unwrap();
            let words =
                ["from 192.0.2.7 ", "from 198.51.100.7 ", "from 2001:db8:b::7 ", "via fe80::fe src 2001:db8:b::7 "];
            assert_eq!(put_back.len(), words.len(), "{put_back:?}");
            assert!(words.iter().all(|word| put_back.iter().any(|line| line.contains(word))), "{put_back:?}");
            assert_eq!(path::upkeep::repair(&mut kernel, &record).unwrap(), Vec::<String>::new());
            for line in raised.lines().filter(|line| line.contains("19500") || line.contains("table 195")) {
                assert!(state().contains(line), "{line}");
            }

            path::lower(&mut kernel, &mut record).await.unwrap();
            assert_eq!(
                path::upkeep::repair(&mut kernel, &record).unwrap(),
                Vec::<String>::new(),
                "nothing is ours any more"
            );
            assert!(!state().contains("proto 76"), "{}", state());
        });
        std::fs::remove_dir_all(&directory).unwrap();
    });
}
