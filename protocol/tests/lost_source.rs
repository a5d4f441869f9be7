//! The source's host never comes back: the home tunnel does not outlive both its ends, whoever still holds the old path.

#[path = "world/world.rs"]
mod world;

use lsm_protocol::{
    Counts, Drain, FromGuest, Join, Millis, Peer, Side, ToGuest,
    destination::{Destination, Event, Order, Policy, Unprepared},
    forecast::Survival,
};

use world::{LEASE, OURS, START, offer};

/// The VM has arrived, and its guest waits for a legacy connection to close.
fn holding(join: Join) -> Destination {
    let policy = Policy { unprepared: Unprepared::PostJoin, prepare_wait: 0, survival: Survival::ANY };
    let (mut state, _) = Destination::new(START, offer(join, Drain::UntilIdle), policy);
    let counts = Counts { legacy: 1, ..Counts::default() };
    let switched = FromGuest::Switched { migration: OURS, to: Side::New, counts };
    let accepted = Event::Peer(Peer::Accepted { migration: OURS });
    for event in [Event::Built, accepted, Event::Carries, Event::Begun, Event::Arrived, Event::Guest(switched)] {
        (state, _) = state.handle(START, event);
    }
    state
}

/// When the old path is left, if a source is heard of in this way every second for so long.
fn lost(join: Join, event: &Event, until: Millis) -> (Millis, Destination, Vec<Order>) {
    let mut state = holding(join);
    for now in (START..START + 20 * LEASE).step_by(1_000) {
        if now < START + until {
            (state, _) = state.handle(now, event.clone());
        }
        let (next, orders) = state.handle(now, Event::Deadline);
        if orders.iter().any(|order| matches!(order, Order::SourceLost(_))) {
            return (now - START, next, orders);
        }
        state = next;
    }
    panic!("never, though nothing is heard of the source any more: {state:?}");
}

#[test]
fn two_leases_after_the_last_sign_of_the_source_the_guest_leaves_the_old_path() {
    let word = Event::Peer(Peer::KeepAlive { migration: OURS });
    for (sign, until) in [(&word, 0), (&word, 5 * LEASE), (&Event::Crossed, 9 * LEASE)] {
        let (when, state, orders) = lost(Join::Before, sign, until);
        assert!((until + 2 * LEASE - 2_000..=until + 2 * LEASE).contains(&when), "{when} after {until}");
        assert!(orders.contains(&Order::TellGuest(ToGuest::Release { migration: OURS })), "{orders:?}");
        assert_eq!(state.name(), "arrived, leaving the old path");
        let (state, orders) = state.handle(START + when, Event::Guest(FromGuest::Settled { migration: OURS }));
        assert_eq!(state.name(), "taking down");
        assert!(orders.contains(&Order::RemoveHome), "{orders:?}");
        let (state, _) = state.handle(START + when + LEASE, Event::Deadline);
        assert_eq!(state, Destination::Gone, "nobody answers, and nothing is left");
    }
}

#[test]
fn where_no_guest_can_be_told_the_tunnel_goes_at_once() {
    let (_, state, orders) = lost(Join::Never, &Event::Crossed, 0);
    assert_eq!(state.name(), "taking down");
    assert!(orders.contains(&Order::RemoveHome), "{orders:?}");
}

#[test]
fn a_service_that_was_away_itself_begins_to_count_anew() {
    let long = START + 10 * LEASE;
    let (state, _) = holding(Join::Before).handle(long, Event::Restarted);
    let (state, orders) = state.handle(long + 2 * LEASE - 1, Event::Deadline);
    assert!(!orders.iter().any(|order| matches!(order, Order::SourceLost(_))), "{orders:?}");
    assert_ne!(state.name(), "arrived, leaving the old path");
}
