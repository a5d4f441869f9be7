//! A client that opens a connection to the old address when that is withdrawn already, and only kept for others.

use lsm_guest::connections::Diag;
use socket2::Protocol;

use crate::{
    agent::Agent,
    everyone::{end, gets_on},
    place::{alone, until},
    switch::Scene,
};

#[test]
fn who_came_to_the_withdrawn_address_leaves_it_with_the_others() {
    alone(|| {
        let scene = Scene::for_an_agent();
        let plain = scene.opened_by_client(7001, Protocol::TCP);
        let agent = Agent::start();
        agent.prepares(&format!("--address {}/24 --gateway 198.51.100.2", scene.new));
        agent.does(&["switch", "--settle"]);
        until("the old address to be withdrawn", || agent.log().contains("Withdraw(Old) done").then_some(()));

        let late = scene.opened_by_client(7002, Protocol::MPTCP);
        let mut diag = Diag::open().unwrap();
        let mut subflows = |address| {
            let connections = diag.snapshot().unwrap().connections;
            let all = connections.iter().flat_map(|connection| &connection.subflows);
            all.filter(|subflow| subflow.established && subflow.local.ip() == address).count()
        };
        until("it to join the new address", || (subflows(scene.new) == 1).then_some(()));
        assert_eq!(subflows(scene.old), 1);
        gets_on("data on both paths", &[&late]);

        end(vec![plain]);
        agent.is("idle");
        assert_eq!((subflows(scene.old), subflows(scene.new)), (0, 1), "nothing is left where nothing answers");
        gets_on("data on the new path alone", &[&late]);
        end(vec![late]);
    });
}
