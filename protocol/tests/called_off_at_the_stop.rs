//! A migration fails while the VM's CPUs stand still, and the destination has pointed the new vNIC's MAC at its tap. The VM
//! runs on at the source, where a guest that has switched early is reached through the advance tunnel: that way has to be
//! open again at once, not when the source has answered.

#[path = "world/world.rs"]
mod world;

use lsm_protocol::{
    Counts, Drain, FromGuest, Join, Peer, Side, ToGuest,
    destination::{Destination, Event, Order},
    source::{self, Source, Switch},
};

use world::{LEASE, OURS, START, offer};

#[test]
fn the_new_mac_leads_back_into_the_tunnel() {
    for event in [Event::VmGone, Event::Release, Event::Peer(Peer::Abort { migration: OURS })] {
        for diverted in [true, false] {
            let offer = offer(Join::Before, Drain::UntilIdle);
            let incoming = Destination::Incoming { offer, diverted, keep_alive: START + LEASE, begin: None };
            let (state, orders) = incoming.handle(START, event.clone());
            assert_eq!(state.name(), "undoing");
            assert_eq!(orders.contains(&Order::PointAtTunnel), diverted, "{event:?}: {orders:?}");
        }
    }
}

/// Nor has the guest to wait for a word of a destination that may not be heard any more.
#[test]
fn the_guest_flips_back() {
    let counts = Counts { joined: 2, waiting: 0, moved: 0, legacy: 0, early: 0 };
    let prepared = source::Event::Guest(FromGuest::Prepared { migration: OURS, counts });
    let copied = source::Event::Progress { left: 0 };
    for (flips, events) in [(true, vec![prepared.clone(), copied]), (false, vec![prepared])] {
        let (mut state, _) = Source::new(START, offer(Join::Before, Drain::UntilIdle), Switch::Early);
        let mut orders = Vec::new();
        let stop = [source::Event::Suspended, source::Event::Resumed];
        for event in [source::Event::Built].into_iter().chain(events).chain(stop) {
            (state, orders) = state.handle(START, event);
        }
        let back = source::Order::TellGuest(ToGuest::Switch { migration: OURS, to: Side::Old });
        assert_eq!((state.name(), orders.contains(&back)), ("copying", flips), "{orders:?}");
    }
}
