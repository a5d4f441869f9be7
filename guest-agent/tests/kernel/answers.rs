//! Who answers on the link.

use std::{net::IpAddr, time::Duration};

use lsm_guest::{
    neighbours::{Neighbours, announce, announce_again, probe},
    netlink::Changed,
    vnic::{Vnic, Vnics},
};
use lsm_protocol::Mac;
use tokio::time::timeout;

use crate::place::{Place, alone, run, runtime, until};

async fn card(name: &str) -> Vnic {
    let all = Vnics::open().unwrap().list().await.unwrap();
    all.into_iter().find(|vnic| vnic.name == name).unwrap()
}

fn there(place: &Place, name: &'static str) -> Vnic {
    place.call(move || runtime().block_on(card(name)))
}

fn answered_and_not(source: &'static str, gateway: &'static str, nobody: &'static str, configure: bool) {
    alone(move || {
        let lan = Place::new();
        lan.plug("a", "g");
        let suffix = if gateway.contains(':') { "/64 dev g nodad" } else { "/24 dev g" };
        lan.run(&format!("ip address add {gateway}{suffix}"));
        if configure {
            run(&format!("ip address add {source}/64 dev a nodad"));
        }
        let peer = there(&lan, "g");
        runtime().block_on(async {
            let vnic = card("a").await;
            let ask = |target: &str| probe(vnic.index, vnic.mac, source.parse().unwrap(), target.parse().unwrap());
            let answer = timeout(Duration::from_secs(10), ask(gateway)).await.expect("an answer of the gateway");
            assert_eq!(answer.unwrap(), peer.mac);
            assert!(timeout(Duration::from_millis(350), ask(nobody)).await.is_err(), "nobody is there");
        });
    });
}

#[test]
fn a_gateway_answers_arp_before_the_address_is_ours() {
    answered_and_not("192.0.2.7", "192.0.2.254", "192.0.2.9", false);
}

#[test]
fn a_gateway_answers_neighbour_solicitation() {
    answered_and_not("2001:db8::7", "2001:db8::fe", "2001:db8::9", true);
}

#[test]
fn a_probe_that_is_not_answered_is_repeated() {
    alone(|| {
        let lan = Place::new();
        lan.plug("a", "g");
        runtime().block_on(async {
            let vnic = card("a").await;
            let asking = probe(vnic.index, vnic.mac, "192.0.2.7".parse().unwrap(), "192.0.2.254".parse().unwrap());
            let late = async {
                tokio::time::sleep(Duration::from_millis(150)).await;
                lan.run("ip address add 192.0.2.254/24 dev g");
                std::future::pending::<()>().await;
            };
            tokio::select! {
                answer = timeout(Duration::from_secs(10), asking) => drop(answer.expect("a later answer").unwrap()),
                () = late => unreachable!(),
            }
        });
    });
}

#[test]
fn a_card_that_is_gone_or_down_is_an_error() {
    alone(|| {
        run("ip link add name a type veth peer name g");
        runtime().block_on(async {
            let (source, target): (IpAddr, IpAddr) = ("192.0.2.7".parse().unwrap(), "192.0.2.254".parse().unwrap());
            let gone = timeout(Duration::from_secs(10), probe(999, Mac([2; 6]), source, target)).await.unwrap();
            assert!(gone.unwrap_err().to_string().contains("192.0.2.254"));
            let vnic = card("a").await;
            let down = timeout(Duration::from_secs(10), probe(vnic.index, vnic.mac, source, target)).await.unwrap();
            assert!(down.is_err());
            assert!(announce(vnic.index, vnic.mac, source).is_err());
        });
    });
}

#[test]
fn what_is_announced_is_believed() {
    alone(|| {
        let lan = Place::new();
        lan.plug("a", "g");
        lan.run("ip address add 192.0.2.254/24 dev g");
        lan.run("ip address add 2001:db8::fe/64 dev g nodad");
        run("ip address add 2001:db8::7/64 dev a nodad");
        let vnic = runtime().block_on(card("a"));
        for address in ["192.0.2.7", "2001:db8::7"] {
            lan.run(&format!("ip neigh add {address} lladdr 02:00:00:00:00:99 dev g nud stale"));
            let wanted = format!("{address} dev g lladdr {}", vnic.mac);
            until(&wanted, || {
                announce(vnic.index, vnic.mac, address.parse().unwrap()).unwrap();
                let table = lan.call(|| run("ip neigh show"));
                table.lines().any(|line| line.starts_with(&wanted)).then_some(())
            });
        }
    });
}

#[test]
fn what_is_announced_may_be_lost_and_is_said_three_times_more() {
    alone(|| {
        let lan = Place::new();
        lan.plug("a", "g");
        lan.run("ip address add 192.0.2.254/24 dev g");
        runtime().block_on(async {
            let vnic = card("a").await;
            let said = announce_again(vnic.index, vnic.mac, "192.0.2.7".parse().unwrap());
            let right = format!("192.0.2.7 dev g lladdr {}", vnic.mac);
            let heard = async {
                for _ in 0..3 {
                    lan.run("ip neigh replace 192.0.2.7 lladdr 02:00:00:00:00:99 dev g nud stale");
                    while !lan.call(|| run("ip neigh show")).contains(&right) {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            };
            let both = async { tokio::join!(said, heard) };
            timeout(Duration::from_secs(20), both).await.expect("three more announcements");
        });
    });
}

#[test]
fn a_neighbour_is_asked_again() {
    alone(|| {
        let lan = Place::new();
        lan.plug("a", "g");
        lan.run("ip address add 192.0.2.254/24 dev g");
        run("ip address add 192.0.2.7/24 dev a");
        let gateway: IpAddr = "192.0.2.254".parse().unwrap();
        let index = runtime().block_on(card("a")).index;
        let mut neighbours = Neighbours::open().unwrap();
        assert_eq!(neighbours.refresh(index, gateway).unwrap(), Changed::No, "no entry");
        let mac = there(&lan, "g").mac;
        run(&format!("ip neigh add 192.0.2.254 lladdr {mac} dev a nud stale"));
        assert_eq!(neighbours.refresh(index, gateway).unwrap(), Changed::Yes);
        until("the gateway confirmed", || run("ip neigh show").contains("REACHABLE").then_some(()));
        // An entry that knows nothing is forgotten.
        run("ip neigh add 192.0.2.9 dev a nud failed");
        assert_eq!(neighbours.refresh(index, "192.0.2.9".parse().unwrap()).unwrap(), Changed::Yes);
        until("the failed entry gone", || (!run("ip neigh show").contains("192.0.2.9 ")).then_some(()));
    });
}
