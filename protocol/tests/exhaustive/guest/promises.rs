//! What is promised of the guest's machine, and that what breaks a promise is noticed.

use super::*;

fn try_all(handle: Handle, drains: &[Drain], to_the_end: bool) -> Result<Explored, String> {
    let root = |drain: &Drain| (format!("at the source, drain {drain:?}"), InGuest::new(handle, *drain, to_the_end));
    // To follow each to its end costs most: what only looks for a broken promise may look further.
    let most = if to_the_end { 200_000 } else { 500_000 };
    explore(drains.iter().map(root).collect(), 60, most_states(most))
}

fn try_all_holding(handle: Handle, to_the_end: bool) -> Result<Explored, String> {
    let root = ("an address held".to_owned(), InGuest::holding(handle, Drain::UntilIdle, to_the_end));
    explore(vec![root], 60, most_states(100_000))
}

fn try_all_fallen_back(handle: Handle, to_the_end: bool) -> Result<Explored, String> {
    let root = |drain| {
        let fallen = InGuest::fallen_back(Guest::handle, drain, to_the_end)?;
        Ok::<_, String>((format!("fallen back, drain {drain:?}"), InGuest { handle, ..fallen }))
    };
    let drains = [Drain::UntilIdle, Drain::For(CUT)];
    explore(drains.into_iter().map(root).collect::<Result<_, _>>()?, 60, most_states(100_000))
}

#[test]
fn while_the_new_path_is_dead_the_old_one_stays_and_afterwards_the_move_ends() {
    match try_all_fallen_back(Guest::handle, true) {
        Ok(explored) => {
            println!("guest that has fallen back: {explored}");
            assert!(explored.depth >= 6 || explored.whole);
        }
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn a_usable_path_always_exists() {
    const { assert!(LEASE > CUT) };
    match try_all(Guest::handle, &[Drain::UntilIdle, Drain::For(CUT), Drain::Forever], true) {
        Ok(explored) => {
            println!("guest: {explored}");
            assert!(explored.depth >= 6 || explored.whole);
        }
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn a_way_back_keeps_what_is_held_and_leads_back_to_it_if_called_off() {
    match try_all_holding(Guest::handle, true) {
        Ok(explored) => {
            println!("guest on its way back: {explored}");
            assert!(explored.depth >= 6 || explored.whole);
        }
        Err(story) => panic!("{story}"),
    }
}

#[test]
fn an_abort_that_forgets_what_was_set_aside_is_noticed() {
    let story = try_all_holding(
        |machine, now, event| match machine.handle(now, event) {
            (Guest::Undoing(mut s), orders) => {
                s.aside = None;
                (Guest::Undoing(s), orders)
            }
            other => other,
        },
        false,
    );
    let story = story.expect_err("it is forgotten");
    assert!(story.contains("forgets the address that is held"), "{story}");
}

/// Breaks one thing, and expects to hear of it in these words.
fn noticed(handle: Handle, promise: &str) {
    let story = try_all(handle, &[Drain::UntilIdle], false).expect_err(promise);
    assert!(story.contains(promise), "{story}");
}

/// Takes a reset of the transport for the destination's word.
fn credulous(machine: Guest, now: Millis, event: Event) -> (Guest, Vec<Order>) {
    let event = match event {
        Event::TransportReset => Event::Told(ToGuest::Arrived { migration: OURS }),
        event => event,
    };
    machine.handle(now, event)
}

#[test]
fn a_withdrawal_on_a_guess_is_noticed() {
    noticed(
        |machine, now, event| {
            let (state, mut orders) = credulous(machine, now, event);
            orders.retain(|order| !matches!(order, Order::Notify(_)));
            (state, orders)
        },
        "gives up the old path while the VM is at the source",
    );
}

#[test]
fn a_tale_told_on_a_guess_is_noticed() {
    noticed(credulous, "tells the world of a move that has not happened");
}

#[test]
fn a_forgotten_straggler_is_noticed() {
    noticed(
        |machine, now, event| {
            let event = match event {
                Event::Counted(counts) => Event::Counted(lsm_protocol::Counts { waiting: 0, ..counts }),
                event => event,
            };
            machine.handle(now, event)
        },
        "gives up the old path while a connection has no other",
    );
}

#[test]
fn a_withdrawal_after_falling_back_is_noticed() {
    let story = try_all_fallen_back(
        |machine, now, event| match (machine, event) {
            (Guest::Switched(s), Event::Counted(counts)) if s.has_fallen_back() => {
                let forgetful = Switched { fallback: Fallback::default(), ..s };
                Guest::Switched(forgetful).handle(now, Event::Counted(counts))
            }
            (machine, event) => machine.handle(now, event),
        },
        false,
    );
    let story = story.expect_err("it is withdrawn");
    assert!(story.contains("Withdraw(Old): gives up the path in use"), "{story}");
}

#[test]
fn an_announcement_before_the_gateway_answers_is_noticed() {
    noticed(
        |machine, now, event| match machine.handle(now, event) {
            (state, orders) if orders == [Order::Do(Step::ProbeGateway)] => {
                state.handle(now, Event::Done(Step::ProbeGateway))
            }
            other => other,
        },
        "announces before the gateway has answered",
    );
}

#[test]
fn a_deadline_that_changes_nothing_is_noticed() {
    noticed(
        |machine, now, event| match event {
            Event::Deadline if matches!(machine, Guest::Prepared(_)) => (machine, vec![]),
            event => machine.handle(now, event),
        },
        "spins on a deadline",
    );
}

#[test]
fn something_left_after_an_abort_is_noticed() {
    noticed(
        |machine, now, event| {
            let (state, mut orders) = machine.handle(now, event);
            if let Some(lower) = orders.iter_mut().find(|o| **o == Order::Do(Step::LowerPath)) {
                *lower = Order::Reply(FromGuest::Aborted { migration: OURS });
                return (Guest::Idle { last: Some(Ended::Aborted(OURS)) }, orders);
            }
            (state, orders)
        },
        "something is left of an aborted migration",
    );
}

#[test]
fn refusals_name_the_migration_that_is_in_the_way() {
    let plan = offer(Join::Before, Drain::UntilIdle).prepare(false);
    let (busy, _) = Guest::default().handle(START, Event::Told(ToGuest::Prepare(plan.clone())));
    let other = Prepare { migration: FOREIGN, ..plan };
    let (_, orders) = busy.handle(START, Event::Told(ToGuest::Prepare(other)));
    let why = Refusal::Busy(OURS);
    assert_eq!(orders, [Order::Reply(FromGuest::Refused { migration: FOREIGN, why })]);
}

/// The states in which the old address is held, those in between, and elsewhere than back.
#[test]
fn only_the_way_back_is_open_and_only_while_the_kernel_has_nothing_to_do() {
    let back = offer(Join::Before, Drain::UntilIdle).prepare(false);
    let prepare = |plan: &Prepare| Event::Told(ToGuest::Prepare(plan.clone()));
    let Guest::Settling(held) = holding(Drain::UntilIdle) else { panic!("it holds") };
    let recount = START + 1;
    let busy = |plan: &Prepare| {
        let why = Refusal::Busy(BEFORE);
        [Order::Reply(FromGuest::Refused { migration: plan.migration, why })]
    };
    for (leaving, open) in [
        (Leaving::Draining { until: recount, landed: false }, true),
        (Leaving::Draining { until: recount, landed: true }, true),
        (Leaving::Withdrawing, false),
        (Leaving::Holding { recount }, true),
        (Leaving::Releasing, false),
    ] {
        let state = Guest::Settling(Settling { leaving, ..held.clone() });
        let (after, orders) = state.clone().handle(START, prepare(&back));
        if open {
            assert_eq!(after.aside(), Some(&state), "{leaving:?}");
            assert_eq!(orders, [Order::Notify(Notice::Preparing), Order::Do(Step::RaisePath)], "{leaving:?}");
        } else {
            assert_eq!((&after, &orders[..]), (&state, &busy(&back)[..]), "{leaving:?}");
        }
        let third = elsewhere(back.clone());
        let (after, orders) = state.clone().handle(START, prepare(&third));
        assert_eq!((&after, &orders[..]), (&state, &busy(&third)[..]), "{leaving:?}");
    }
}

/// Stragglers keep the machine in Switched; a way back that is called off leads there.
#[test]
fn stragglers_are_set_aside_and_found_again() {
    let migration = BEFORE;
    let here = holding(Drain::UntilIdle).plan().cloned().expect("a plan");
    let straggler = Counts { joined: 1, waiting: 1, moved: 1, legacy: 0, early: 1 };
    let mut guest = Guest::default();
    for event in [
        Event::Told(ToGuest::Prepare(Prepare { arrived: true, ..here })),
        Event::Done(Step::RaisePath),
        Event::Done(Step::ProbeGateway),
        Event::Done(Step::Announce),
        Event::Counted(Counts { waiting: 0, ..straggler }),
        Event::Done(Step::Prefer(Side::New)),
    ] {
        guest = guest.handle(START, event).0;
    }
    let back = offer(Join::Before, Drain::UntilIdle).prepare(false);
    let prepare = Event::Told(ToGuest::Prepare(back));
    let why = Refusal::Busy(migration);
    let (_, orders) = guest.clone().handle(START, prepare.clone());
    assert_eq!(orders, [Order::Reply(FromGuest::Refused { migration: OURS, why })], "the take-over is under way");
    for event in [Event::Done(Step::TakeOver), Event::Counted(straggler)] {
        guest = guest.handle(START, event).0;
    }
    assert_eq!(guest.name(), "switched");
    let (returning, _) = guest.clone().handle(START, prepare);
    assert_eq!((returning.name(), returning.aside()), ("preparing", Some(&guest)));
    // Whoever asks for it meanwhile is answered, and nothing is done.
    let (returning, orders) = returning.handle(START, Event::Told(ToGuest::Settle { migration, cut: true }));
    assert_eq!(orders, [Order::Reply(FromGuest::Switched { migration, to: Side::New, counts: straggler })]);
    let (returning, orders) = returning.handle(START, Event::Told(ToGuest::Switch { migration, to: Side::Old }));
    assert_eq!(orders, [Order::Reply(FromGuest::Refused { migration, why: Refusal::Busy(OURS) })]);
    let (undoing, _) = returning.handle(START, Event::Told(ToGuest::Abort { migration: OURS }));
    let (after, orders) = undoing.handle(START, Event::Done(Step::LowerPath));
    let aborted = [
        Order::Reply(FromGuest::Aborted { migration: OURS }),
        Order::Notify(Notice::Aborted { migration: OURS }),
        Order::Do(Step::Prefer(Side::New)),
        Order::Do(Step::TakeOver),
    ];
    assert_eq!((after.name(), after.migration(), &orders[..]), ("switched", Some(BEFORE), &aborted[..]));
    let Guest::Switched(after) = after else { panic!("{after:?}") };
    assert_eq!((after.cut, after.plan.drain), (Some(START), Drain::For(0)), "the operator's word holds");
}
