//! A migration fails while the VM's CPUs stand still, and the destination has pointed the new vNIC's MAC at its tap. The VM
//! runs on at the source, where a guest that has switched early is reached through the advance tunnel: that way has to be
//! open again at once, not when the source has answered.

#[path = "world/world.rs"]
mod world;

use lsm_protocol::{
    Drain, Join, Peer,
    destination::{Destination, Event, Order},
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
