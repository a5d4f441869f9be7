//! All three machines wired together, with a clock of their own: messages lost, repeated, late and out of order, hosts
//! cut off, programs that die at any order, steps that the kernel refuses, migrations that fail at every point.

mod before;
mod chance;
mod destination_host;
mod guest_side;
mod libvirt;
mod run;
mod scenario;
mod source_host;
#[path = "../world/world.rs"]
mod world;

use lsm_protocol::{
    Counts, Peer, Side, ToGuest,
    destination::{self, Destination},
    guest::{self, Arrival, Guest, Prepared, Switched},
    source::{self, Source},
};

use run::{Machines, Run};

/// `LSM_SEEDS` in the environment tries more.
const SEEDS: u64 = 20_000;

fn try_seeds(machines: Machines, seeds: std::ops::Range<u64>) -> Result<(), String> {
    for seed in seeds {
        let mut run = Run::new(machines, seed);
        if let Err(promise) = run.play() {
            // What came first matters; a run that is stuck repeats itself.
            let log: Vec<&str> = run.log.iter().take(400).map(String::as_str).collect();
            return Err(format!("seed {seed}: {promise}\n{}", log.join("\n")));
        }
    }
    Ok(())
}

#[test]
fn every_run_settles_or_is_undone() {
    let number = |name: &str| std::env::var(name).ok().and_then(|number| number.parse::<u64>().ok());
    let seeds = match number("LSM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LSM_SEEDS").unwrap_or(SEEDS),
    };
    if let Err(story) = try_seeds(Machines::default(), seeds) {
        panic!("{story}");
    }
}

/// Breaks one thing, and expects to hear of it in these words.
fn noticed(machines: Machines, promise: &str) {
    let story = try_seeds(machines, 0..SEEDS).expect_err(promise);
    let first = story.lines().next().unwrap_or_default();
    assert!(first.contains(promise), "{story}");
}

#[test]
fn a_guess_taken_for_certainty_is_noticed() {
    let guest = |machine: Guest, now, event| match (machine, event) {
        (Guest::Switched(s), event) if s.arrival == Arrival::Guessed => {
            Guest::Switched(Switched { arrival: Arrival::Sure, lease: None, ..s }).handle(now, event)
        }
        (machine, event) => machine.handle(now, event),
    };
    noticed(Machines { guest, ..Machines::default() }, "gives up the old path while the VM is at the source");
}

#[test]
fn a_forgotten_straggler_is_noticed() {
    let guest = |machine: Guest, now, event| {
        let event = match event {
            guest::Event::Counted(counts) => guest::Event::Counted(Counts { waiting: 0, ..counts }),
            event => event,
        };
        machine.handle(now, event)
    };
    noticed(Machines { guest, ..Machines::default() }, "gives up the old path while a connection has no other");
}

#[test]
fn a_guest_without_a_lease_is_noticed() {
    let guest = |machine: Guest, now, event| match machine.handle(now, event) {
        (Guest::Prepared(s), orders) => (Guest::Prepared(Prepared { lease: None, ..s }), orders),
        (Guest::Switched(s), orders) => (Guest::Switched(Switched { lease: None, ..s }), orders),
        other => other,
    };
    noticed(Machines { guest, ..Machines::default() }, "stuck");
}

#[test]
fn an_abort_that_leaves_something_is_noticed() {
    let guest = |machine: Guest, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        orders.retain(|order| *order != guest::Order::Do(guest::Step::Withdraw(Side::New)));
        (state, orders)
    };
    noticed(Machines { guest, ..Machines::default() }, "takes an address down that is still announced");
}

#[test]
fn a_home_tunnel_removed_at_arrival_is_noticed() {
    let source = |machine: Source, now, event| match machine.handle(now, event) {
        (state @ Source::Departed { .. }, mut orders) => {
            orders.push(source::Order::RemoveHome);
            (state, orders)
        }
        other => other,
    };
    noticed(Machines { source, ..Machines::default() }, "removes the tunnel in use");
}

#[test]
fn a_diversion_that_stays_is_noticed() {
    let source = |machine: Source, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        orders.retain(|order| *order != source::Order::UndoDivert);
        (state, orders)
    };
    noticed(Machines { source, ..Machines::default() }, "no usable path");
}

#[test]
fn an_arrival_said_once_and_lost_is_noticed() {
    let source = |machine: Source, now, event| match (machine, event) {
        (
            machine @ Source::Stopped(_),
            source::Event::Peer(Peer::Arrived { .. } | Peer::TakeDown { .. }) | source::Event::VmGone,
        ) => (machine, vec![]),
        (machine, event) => machine.handle(now, event),
    };
    noticed(Machines { source, ..Machines::default() }, "stuck");
}

#[test]
fn a_settled_guest_that_nobody_asks_again_is_noticed() {
    let destination = |machine: Destination, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        if matches!(state, Destination::Arrived { .. }) {
            orders.retain(|order| !matches!(order, destination::Order::TellGuest(ToGuest::Arrived { .. })));
        }
        (state, orders)
    };
    noticed(Machines { destination, ..Machines::default() }, "stuck");
}

#[test]
fn tunnels_left_at_the_destination_are_noticed() {
    let destination = |machine: Destination, now, event| {
        let (state, mut orders) = machine.handle(now, event);
        orders.retain(|order| *order != destination::Order::RemoveHome);
        (state, orders)
    };
    noticed(Machines { destination, ..Machines::default() }, "the destination leaves something");
}

#[test]
fn a_hook_answered_twice_is_noticed() {
    let destination = |machine: Destination, now, event| match (machine, event) {
        (machine @ Destination::Incoming { .. }, destination::Event::Peer(Peer::GuestPrepared { .. })) => {
            (machine, vec![destination::Order::Admit { warning: None }])
        }
        (machine, event) => machine.handle(now, event),
    };
    noticed(Machines { destination, ..Machines::default() }, "answers the hook twice");
}

#[test]
fn an_address_that_is_forgotten_on_the_way_back_is_noticed() {
    let guest = |machine: Guest, now, event| match machine.handle(now, event) {
        (Guest::Undoing(s), orders) => (Guest::Undoing(guest::Undoing { aside: None, ..s }), orders),
        other => other,
    };
    noticed(Machines { guest, ..Machines::default() }, "before, RaisePath: is no step of a migration that holds");
}

#[test]
fn a_livelock_is_noticed() {
    let source = |machine: Source, now, event| match (machine, event) {
        (machine @ Source::Departed { .. }, source::Event::Deadline) => (machine, vec![]),
        (machine, event) => machine.handle(now, event),
    };
    let destination = |machine: Destination, now, event| match machine.handle(now, event) {
        (Destination::TakingDown { .. }, orders) => (Destination::Gone, orders),
        other => other,
    };
    noticed(Machines { source, destination, ..Machines::default() }, "goes round in circles");
}

#[test]
fn a_dead_path_that_is_kept_to_is_noticed() {
    let guest = |machine: Guest, now, event| match event {
        guest::Event::Carried(_) => (machine, vec![]),
        event => machine.handle(now, event),
    };
    noticed(Machines { guest, ..Machines::default() }, "no usable path");
}

#[test]
fn a_dead_path_that_is_taken_for_a_live_one_is_noticed() {
    let guest = |machine: Guest, now, event| match (machine, event) {
        (Guest::Switched(s), guest::Event::Counted(counts)) if !s.has_fallen_back() && counts.waiting == 0 => {
            let credulous = Switched { fallback: Default::default(), ..s };
            Guest::Switched(credulous).handle(now, guest::Event::Counted(Counts { moved: counts.joined, ..counts }))
        }
        (machine, event) => machine.handle(now, event),
    };
    noticed(Machines { guest, ..Machines::default() }, "gives up the old path while the new one is dead");
}
