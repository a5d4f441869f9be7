//! All three machines together, in every order of what can happen, checked whole within a bound: messages delivered in
//! any order, lost, repeated and late, programs that die between any two orders and start again, libvirt's steps sooner
//! than they were due. The simulation's hosts, guest and libvirt, without its chance.
//!
//! The bound is how many of these happen to one run: `LSM_MODEL_FAULTS` in the environment, 1 if it says nothing. With two
//! of them the scenarios are tried one by one, which takes long: that test runs when it is asked for.
#![allow(dead_code, reason = "the simulation is here whole, and the model has no use for its seeds")]

#[path = "../simulation/before.rs"]
mod before;
#[path = "../simulation/chance.rs"]
mod chance;
#[path = "../simulation/destination_host.rs"]
mod destination_host;
#[path = "../simulation/guest_side.rs"]
mod guest_side;
#[path = "../simulation/libvirt.rs"]
mod libvirt;
mod orders;
#[path = "../simulation/run.rs"]
mod run;
#[path = "../simulation/scenario.rs"]
mod scenario;
#[path = "../simulation/source_host.rs"]
mod source_host;
mod state;
#[path = "../world/world.rs"]
mod world;

use lsm_protocol::{
    Join,
    destination::{self, Destination},
    guest::{self, Guest, Prepared, Switched},
    source::{self, Source},
};
use stateright::{Checker, HasDiscoveries, Model as _};

use orders::{Model, PROMISES};
use run::Machines;
use scenario::{Fate, Scenario};

/// What is found in a model of these machines: the promise, and the shortest way to break it.
fn check(machines: Machines, faults: u8, scenarios: Vec<Scenario>, finish: HasDiscoveries) -> Option<String> {
    let begun = std::time::Instant::now();
    let of = scenarios.len();
    let expected = finish.clone();
    let checker = Model::new(machines, faults, scenarios).checker().threads(2);
    let checker = checker.finish_when(finish).spawn_bfs().join();
    println!(
        "{of} scenarios, {faults} faults in each: {} states, {} transitions, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    let found = checker.discoveries();
    let wanted = |name: &&&str| !matches!(&expected, HasDiscoveries::AnyOf(some) if !some.contains(**name));
    let (name, path) = PROMISES.iter().filter(wanted).find_map(|name| Some((name, found.get(name)?)))?;
    let mut story = format!("{name}\n");
    for (state, action) in path.clone().into_vec() {
        story.push_str(&format!("  {}\n", state.told()));
        if let Some(action) = action {
            story.push_str(&format!("{:>6} {}\n", state.since(), state.name(&action)));
        }
    }
    Some(story)
}

#[test]
fn a_path_is_always_usable_and_every_run_settles_or_leaves_nothing() {
    let faults = std::env::var("LSM_MODEL_FAULTS").ok().and_then(|faults| faults.parse().ok()).unwrap_or(1);
    if let Some(story) = check(Machines::default(), faults, orders::scenarios(), HasDiscoveries::AnyFailures) {
        panic!("{story}");
    }
}

/// Breaks one thing, and expects to hear of it in these words, in a migration that goes so.
fn noticed(machines: Machines, join: Join, fate: Fate, promise: &'static str, words: &str) {
    let mut scenarios = orders::scenarios();
    scenarios.retain(|scenario| scenario.fate == fate && scenario.join == join);
    let story = check(machines, 1, scenarios, HasDiscoveries::AnyOf([promise].into())).expect(promise);
    assert!(story.contains(words), "{story}");
}

/// `LSM_MODEL_SCENARIOS` in the environment, like `0..5`: only these.
#[test]
#[ignore = "takes long: cargo test -p lsm-protocol --test model -- --ignored --nocapture"]
fn it_is_so_with_two_faults_in_a_run() {
    let all = orders::scenarios();
    let wanted = std::env::var("LSM_MODEL_SCENARIOS").ok().and_then(|range| {
        let (from, to) = range.split_once("..")?;
        Some((from.parse().ok()?, to.parse().ok()?))
    });
    let (from, to): (usize, usize) = wanted.unwrap_or((0, all.len()));
    for (number, scenario) in all.into_iter().enumerate().filter(|(number, _)| (from..to).contains(number)) {
        let Scenario { join, switch, fate, straggler, held, .. } = &scenario;
        println!("{number}: {join:?}, {switch:?}, {fate:?}, straggler {straggler:?}, held {held:?}");
        if let Some(story) = check(Machines::default(), 2, vec![scenario], HasDiscoveries::AnyFailures) {
            panic!("{story}");
        }
    }
}

#[test]
fn a_diversion_that_stays_is_noticed() {
    let source = |machine: Source, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        orders.retain(|order| *order != source::Order::UndoDivert);
        (state, orders)
    };
    noticed(
        Machines { source, ..Machines::default() },
        Join::After,
        Fate::CancelledInStop,
        PROMISES[0],
        "no usable path since",
    );
}

#[test]
fn a_mac_that_leads_to_two_places_is_noticed() {
    let source = |machine: Source, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        orders.retain(|order| *order != source::Order::Divert);
        (state, orders)
    };
    noticed(
        Machines { source, ..Machines::default() },
        Join::Before,
        Fate::Arrives,
        PROMISES[1],
        "two places claim the VM since",
    );
}

#[test]
fn a_run_without_an_end_is_noticed() {
    let guest = |machine: Guest, now, event| match machine.handle(now, event) {
        (Guest::Prepared(s), orders) => (Guest::Prepared(Prepared { lease: None, ..s }), orders),
        (Guest::Switched(s), orders) => (Guest::Switched(Switched { lease: None, ..s }), orders),
        other => other,
    };
    noticed(Machines { guest, ..Machines::default() }, Join::Before, Fate::CancelledInCopy, PROMISES[2], "");
}

#[test]
fn an_abort_that_leaves_a_tunnel_is_noticed() {
    let destination = |machine: Destination, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        orders.retain(|order| *order != destination::Order::RemoveHome);
        (state, orders)
    };
    noticed(
        Machines { destination, ..Machines::default() },
        Join::Before,
        Fate::CancelledInCopy,
        PROMISES[3],
        "the destination leaves something",
    );
}

#[test]
fn a_guess_taken_for_certainty_is_noticed() {
    let guest = |machine: Guest, now, event| match (machine, event) {
        (Guest::Switched(s), event) if s.arrival == guest::Arrival::Guessed => {
            let sure = Switched { arrival: guest::Arrival::Sure, lease: None, ..s };
            Guest::Switched(sure).handle(now, event)
        }
        (machine, event) => machine.handle(now, event),
    };
    let words = "gives up the old path while the VM is at the source";
    noticed(Machines { guest, ..Machines::default() }, Join::Before, Fate::CancelledInCopy, PROMISES[4], words);
}
