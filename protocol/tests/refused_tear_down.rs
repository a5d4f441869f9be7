//! The kernel refuses what the guest tears down: it is asked again, later each time, and not for ever.

#[path = "world/world.rs"]
mod world;

use lsm_protocol::{
    Counts, Drain, FromGuest, Join, Millis, Refusal, Side, ToGuest,
    guest::{Event, Guest, Order, Step, TRIES},
};

use world::{OURS, START, offer};

/// All have joined and moved.
const MOVED: Counts = Counts { joined: 1, waiting: 0, moved: 1, legacy: 0, early: 1 };

/// Plays the guest, its kernel refusing one step so often, until it is idle. Gives when it was tried, and the last reply.
fn play(first: Vec<ToGuest>, refused: Step, times: usize) -> (Vec<Millis>, FromGuest) {
    let (mut guest, mut now, mut tried, mut last) = (Guest::default(), START, vec![], None);
    let mut told = first.into_iter().map(Event::Told);
    let mut events: std::collections::VecDeque<Event> = told.next().into_iter().collect();
    for _ in 0..500 {
        let event = match (events.pop_front(), guest.deadline()) {
            (Some(event), _) => event,
            (None, deadline) => match told.next() {
                Some(event) => event,
                None if guest.migration().is_none() => return (tried, last.expect("an answer")),
                None => {
                    now = now.max(deadline.expect("something to wait for").at);
                    Event::Deadline
                }
            },
        };
        let (next, orders) = guest.handle(now, event);
        guest = next;
        for order in orders {
            match order {
                Order::Do(step) if step == refused => {
                    tried.push(now);
                    events.push_back(match tried.len() > times {
                        true => Event::Done(step),
                        false => Event::Failed(step, Refusal::PathManager("as tried".to_owned())),
                    });
                }
                Order::Do(step) => events.push_back(Event::Done(step)),
                Order::Count => events.push_back(Event::Counted(MOVED)),
                Order::Notify(_) | Order::Learn => {}
                Order::Reply(reply) => last = Some(reply),
            }
        }
    }
    panic!("never idle: {guest:?}");
}

fn moves() -> Vec<ToGuest> {
    let prepare = offer(Join::Before, Drain::UntilIdle).prepare(false);
    vec![ToGuest::Prepare(prepare), ToGuest::Arrived { migration: OURS }]
}

fn aborts() -> Vec<ToGuest> {
    vec![ToGuest::Prepare(offer(Join::Before, Drain::UntilIdle).prepare(false)), ToGuest::Abort { migration: OURS }]
}

#[test]
fn until_the_kernel_does_it() {
    for (story, refused, end) in [
        (moves(), Step::Withdraw(Side::Old), FromGuest::Settled { migration: OURS }),
        (moves(), Step::ReleaseOld, FromGuest::Settled { migration: OURS }),
        (aborts(), Step::LowerPath, FromGuest::Aborted { migration: OURS }),
        (aborts(), Step::Withdraw(Side::New), FromGuest::Aborted { migration: OURS }),
    ] {
        let (tried, last) = play(story, refused, 2);
        assert_eq!((tried.len(), last), (3, end), "{refused:?}");
        assert!(tried[2] - tried[1] > tried[1] - tried[0], "{refused:?}: no later each time: {tried:?}");
    }
}

#[test]
fn but_not_for_ever() {
    for (story, refused, end) in [
        (moves(), Step::ReleaseOld, FromGuest::Settled { migration: OURS }),
        (aborts(), Step::LowerPath, FromGuest::Aborted { migration: OURS }),
    ] {
        let (tried, last) = play(story, refused, usize::MAX);
        assert_eq!((tried.len(), last), (usize::from(TRIES), end), "{refused:?}");
        assert!(tried[tried.len() - 1] - tried[0] < 20_000, "{tried:?}");
    }
}
