//! LANs that no path can be made in: the whole agent refuses, in words that say what to look at, and leaves all as it was.

use socket2::Protocol;

use crate::{
    agent::Agent,
    everyone::end,
    obtained::{comes_back, state, vm},
    obtaining::{ACK, AUTOCONFIGURED, DISCOVER, GOOD, NAK, OFFER, OFFERED, Server, dnsmasq, radvd, wicked},
    place::{Place, alone, run, until},
    switch::Scene,
};

/// Of a LAN that `spoil` has made so; it is none where something that it takes is not installed.
fn refused(
    addresses: &'static str,
    words: &'static str,
    spoil: impl FnOnce(&Place) -> Option<Vec<Server>> + Send + 'static,
) {
    alone(move || {
        let (_home, lan) = vm();
        let Some(_servers) = spoil(&lan) else { return };
        let agent = Agent::start();
        let before = state();
        let said = agent.refuses(addresses);
        assert!(said.contains(words), "{addresses}: {said}");
        agent.is("idle");
        comes_back(&before);
    });
}

#[test]
fn no_dhcp_answer() {
    refused("--address dhcp", "no DHCP server answered within 3.5 s; is there one on the LAN", |_| Some(Vec::new()));
}

#[test]
fn a_dhcp_server_that_takes_its_offer_back() {
    refused("--address dhcp", "DHCP server 10.2.0.1 refused", |lan| {
        wicked(lan, |kind| {
            Some((
                if kind == DISCOVER { OFFER } else { NAK },
                OFFERED,
                if kind == DISCOVER { GOOD.to_vec() } else { Vec::new() },
            ))
        });
        Some(Vec::new())
    });
}

#[test]
fn an_address_of_dhcp_that_somebody_has() {
    refused("--address dhcp", "10.2.0.57, which DHCP server 10.2.0.1 gave, is in use by ", |lan| {
        lan.run("ip address add 10.2.0.57/24 dev g");
        wicked(lan, |kind| match kind {
            DISCOVER => Some((OFFER, OFFERED, GOOD.to_vec())),
            3 => Some((ACK, OFFERED, GOOD.to_vec())),
            _ => None,
        });
        Some(Vec::new())
    });
}

#[test]
fn an_address_of_dhcp_outside_of_its_router_s_subnet() {
    refused(
        "--address dhcp",
        "10.3.0.57/24 with the router 10.2.0.1 outside of it; correct its configuration",
        |lan| {
            wicked(lan, |kind| {
                Some((if kind == DISCOVER { OFFER } else { ACK }, [10, 3, 0, 57].into(), GOOD.to_vec()))
            });
            Some(Vec::new())
        },
    );
}

/// The one address that is there is given back with the rest.
#[test]
fn a_router_that_says_nothing_beside_a_dhcp_server_that_does() {
    refused("--address dhcp --address slaac", "no router advertised itself within 3.5 s", |lan| {
        Some(vec![dnsmasq(lan, "10.2.0.200,10.2.0.210")?])
    });
}

#[test]
fn a_router_that_is_none() {
    refused("--address slaac", "says that it is none any more (lifetime 0)", |lan| Some(vec![radvd(lan, 0)?]));
}

#[test]
fn an_autoconfigured_address_that_somebody_has() {
    refused("--address slaac", "is in use by somebody else on the LAN", |lan| {
        lan.run(&format!("ip address add {AUTOCONFIGURED}/64 dev g nodad"));
        Some(vec![radvd(lan, 1800)?])
    });
}

#[test]
fn a_gateway_that_is_silent() {
    for [address, gateway] in [["10.2.0.7/24", "10.2.0.9"], ["2001:db8:2::7/64", "2001:db8:2::9"]] {
        alone(move || {
            let (_home, _lan) = vm();
            let agent = Agent::start();
            let before = state();
            let said = agent.refuses(&format!("--address {address} --gateway {gateway}"));
            assert!(said.contains(&format!("gateway {gateway} of the new LAN did not answer")), "{said}");
            agent.is("idle");
            comes_back(&before);
        });
    }
}

/// As another agent may have made it: all that goes to the client leaves by the old vNIC, whatever address it has.
#[test]
fn a_rule_that_comes_before_ours() {
    alone(|| {
        let scene = Scene::for_an_agent();
        let connection = scene.opened_by_client(7001, Protocol::MPTCP);
        run("ip route add default dev a table 77");
        run("ip rule add priority 100 lookup 77");
        let agent = Agent::start();
        let routing = || run("ip rule") + &run("ip -4 route show table all") + &run("ip -4 address");
        let before = routing();
        let said = agent.refuses(&format!("--address {}/24 --gateway 198.51.100.2", scene.new));
        assert!(said.contains("another rule comes before ours; see \"ip rule\""), "{said}");
        agent.is("idle");
        until("all to be as before", || (routing() == before).then_some(()));

        // One that comes later: said, and no more.
        run("ip rule del priority 100 lookup 77");
        agent.prepares(&format!("--address {}/24 --gateway 198.51.100.2", scene.new));
        let warned = || agent.log().matches("a path does not lead where it should").count();
        assert_eq!(warned(), 0);
        run("ip rule add priority 100 lookup 77");
        until("the agent to say so", || (warned() == 1).then_some(()));
        end(vec![connection]);
    });
}
