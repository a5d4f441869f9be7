//! The source's service dies while memory is copied, and the guest takes the end of its channel for the arrival.

#[path = "world/world.rs"]
mod world;

use lsm_protocol::{
    Counts, Drain, FromGuest, Join, Millis, Side, ToGuest,
    guest::{self, Arrival, Guest},
    source::{Event, Order, Source, Switch},
};

use world::{OURS, START, offer};

const FAR: Counts = Counts { joined: 2, waiting: 0, moved: 0, legacy: 0, early: 0 };

/// A guest whose kernel does as it is told.
struct VmAgent(Guest);

impl VmAgent {
    fn take(&mut self, now: Millis, event: guest::Event) -> Vec<FromGuest> {
        let (mut events, mut replies) = (vec![event], vec![]);
        while let Some(event) = events.pop() {
            let (state, orders) = std::mem::take(&mut self.0).handle(now, event);
            self.0 = state;
            for order in orders {
                match order {
                    guest::Order::Do(step) => events.insert(0, guest::Event::Done(step)),
                    guest::Order::Count => events.insert(0, guest::Event::Counted(FAR)),
                    guest::Order::Notify(_) | guest::Order::Learn => {}
                    guest::Order::Reply(reply) => replies.push(reply),
                }
            }
        }
        replies
    }

    fn prepared() -> VmAgent {
        let mut agent = VmAgent(Guest::default());
        let prepare = ToGuest::Prepare(offer(Join::Before, Drain::UntilIdle).prepare(false));
        let said = agent.take(START, guest::Event::Told(prepare));
        assert!(said.iter().any(|reply| matches!(reply, FromGuest::Prepared { .. })), "{said:?}");
        agent
    }
}

fn told(orders: &[Order]) -> Vec<ToGuest> {
    orders
        .iter()
        .filter_map(|order| if let Order::TellGuest(told) = order { Some(told.clone()) } else { None })
        .collect()
}

/// The guest hears it; what it says comes back to the source until both are silent.
fn converse(mut source: Source, agent: &mut VmAgent, mut orders: Vec<Order>) -> Source {
    while !orders.is_empty() {
        let replies: Vec<_> =
            told(&orders).into_iter().flat_map(|told| agent.take(START, guest::Event::Told(told))).collect();
        orders = vec![];
        for reply in replies {
            let (next, more) = source.handle(START, Event::Guest(reply));
            source = next;
            orders.extend(more);
        }
    }
    source
}

fn back_and_ready(agent: &mut VmAgent) {
    let Guest::Prepared(prepared) = &agent.0 else { panic!("not flipped back: {:?}", agent.0) };
    assert_eq!(prepared.arrival, Arrival::No);
    agent.take(START, guest::Event::TransportReset);
    assert!(
        matches!(&agent.0, Guest::Switched(s) if s.arrival == Arrival::Guessed),
        "blind to the arrival: {:?}",
        agent.0
    );
}

#[test]
fn a_guest_that_flipped_at_the_restart_flips_back_while_memory_is_copied() {
    let mut agent = VmAgent::prepared();
    let (source, _) = Source::new(START, offer(Join::Before, Drain::UntilIdle), Switch::Arrival);
    let (source, _) = source.handle(START, Event::Built);
    let (source, _) = source.handle(START, Event::Guest(FromGuest::Prepared { migration: OURS, counts: FAR }));
    agent.take(START, guest::Event::TransportReset);
    assert!(matches!(agent.0, Guest::Switched(_)));
    let (source, orders) = source.handle(START, Event::Restarted);
    let source = converse(source, &mut agent, orders);
    assert_eq!(source.name(), "copying");
    back_and_ready(&mut agent);
}

#[test]
fn a_guest_that_flipped_at_the_restart_flips_back_while_it_was_awaited() {
    let mut agent = VmAgent::prepared();
    let (source, _) = Source::new(START, offer(Join::Before, Drain::UntilIdle), Switch::Auto);
    let (source, _) = source.handle(START, Event::Built);
    agent.take(START, guest::Event::TransportReset);
    let (source, orders) = source.handle(START, Event::Restarted);
    let source = converse(source, &mut agent, orders);
    assert_eq!(source.name(), "copying");
    back_and_ready(&mut agent);
}

#[test]
fn where_the_flip_was_ordered_it_stays() {
    let mut agent = VmAgent::prepared();
    let (source, _) = Source::new(START, offer(Join::Before, Drain::UntilIdle), Switch::Early);
    let (source, _) = source.handle(START, Event::Built);
    let (source, _) = source.handle(START, Event::Guest(FromGuest::Prepared { migration: OURS, counts: FAR }));
    let (source, orders) = source.handle(START, Event::Progress { left: 0 });
    let source = converse(source, &mut agent, orders);
    assert_eq!(source.name(), "copying, flipped");
    let (source, orders) = source.handle(START, Event::Restarted);
    assert!(!told(&orders).contains(&ToGuest::Switch { migration: OURS, to: Side::Old }), "{orders:?}");
    let source = converse(source, &mut agent, orders);
    assert!(matches!(agent.0, Guest::Switched(_)) && source.name() == "copying, flipped");
}
