//! The destination's service is silent while libvirt goes on copying: the VM will arrive, and needs what was built for it.

#[path = "world/world.rs"]
mod world;

use lsm_protocol::{
    Counts, Drain, FromGuest, Join, ToGuest,
    source::{Event, Order, Source, Switch},
};

use world::{OURS, START, offer};

fn copying() -> Source {
    let (source, _) = Source::new(START, offer(Join::Before, Drain::UntilIdle), Switch::Arrival);
    let (source, _) = source.handle(START, Event::Built);
    let prepared = FromGuest::Prepared { migration: OURS, counts: Counts::default() };
    source.handle(START, Event::Guest(prepared)).0
}

#[test]
fn a_copy_that_goes_on_renews_the_lease_and_the_guest_s() {
    let lease = offer(Join::Before, Drain::UntilIdle).lease;
    let mut source = copying();
    let mut kept = 0;
    for tenth in 1..=30 {
        let now = START + tenth * lease / 10;
        let (next, orders) = source.handle(now, Event::Progress { left: 60_000 });
        kept += orders.iter().filter(|o| **o == Order::TellGuest(ToGuest::KeepAlive { migration: OURS })).count();
        source = next.handle(now, Event::Deadline).0;
        assert_eq!(source.name(), "copying", "{tenth} tenths of a lease without a word");
    }
    assert!((3..=8).contains(&kept), "the guest was told {kept} times in three leases");
}

#[test]
fn without_a_copy_the_lease_ends() {
    let lease = offer(Join::Before, Drain::UntilIdle).lease;
    let (source, _) = copying().handle(START + lease, Event::Deadline);
    assert_eq!(source.name(), "undoing");
}
