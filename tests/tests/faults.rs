//! One or two faults of each kind that must be survived, one in each move of a VM with live connections. `tests/faults`
//! has them all, and draws them at random.

use lsm_tests::{
    faults::{Scene, chosen, strike},
    shell::chain,
    stage::lacking,
};

/// Each strikes once; what came of it is as its row in the table says.
fn survived(names: &[&str]) {
    if lacking() {
        return;
    }
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let plan = chosen(&names);
    assert_eq!(plan.len(), names.len(), "a fault is named that does not exist: {names:?}");
    let mut scene = Scene::set(true).unwrap_or_else(|error| panic!("{}", chain(&error)));
    if let Err(error) = scene.rehearse() {
        panic!("{}\n{}", chain(&error), scene.logs());
    }
    for (fault, step) in plan {
        let outcome = strike(&mut scene, fault, step);
        assert!(outcome.is_good(), "{outcome:#?}\n{}", scene.logs());
    }
    scene.connections.end().unwrap_or_else(|error| panic!("{}", chain(&error)));
}

#[test]
fn of_agents_and_their_channel() {
    survived(&[
        "agent-killed@preparing",
        "agent-killed@prepared",
        "channel-reset@copying",
        "channel-silent@prepared",
        "agent-frozen@copying",
    ]);
}

#[test]
fn of_services_and_their_channel() {
    survived(&["both-services-killed@stopped", "peers-cut@copying"]);
}

#[test]
fn before_arrival_and_in_the_stop() {
    survived(&["domjobabort@flipped", "hook-refuses-started@before", "abort-in-the-stop@stopped"]);
}
