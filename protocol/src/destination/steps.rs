//! Steps that more than one state takes.

use alloc::{vec, vec::Vec};

use super::{BEGIN, Destination, KEEP_ALIVES, LOST, Order, Policy, Preparation, REPEAT, Refused, TRIAL, UNDO};
use crate::{GuestFailure, Join, Millis, Offer, Peer, Prepare, ToGuest};

pub(super) fn both(
    now: Millis,
    offer: Offer,
    policy: Policy,
    built: bool,
    accepted: bool,
    until: Millis,
) -> (Destination, Vec<Order>) {
    if !built || !accepted {
        return (Destination::Building { offer, policy, built, accepted, until }, vec![]);
    }
    let (keep_alive, say) = keep_alive_again(now, &offer);
    let guest = if offer.join == Join::Before && policy.prepare_wait > 0 {
        Preparation::Awaited { until: now + policy.prepare_wait }
    } else {
        Preparation::Over { warning: None }
    };
    let trial = Some(now + TRIAL + TRIAL / 2); // the shell gives up first, and knows why
    (Destination::Waiting { offer, policy, keep_alive, trial, guest }, vec![say, Order::TryTunnels])
}

/// Admits the VM when nothing is waited for any more.
pub(super) fn ready(now: Millis, state: Destination) -> (Destination, Vec<Order>) {
    match state {
        Destination::Waiting { offer, trial: None, guest: Preparation::Over { warning }, .. } => {
            admit(now, offer, warning)
        }
        state => (state, vec![]),
    }
}

pub(super) fn admit(now: Millis, offer: Offer, warning: Option<GuestFailure>) -> (Destination, Vec<Order>) {
    let (keep_alive, say) = keep_alive_again(now, &offer);
    let begin = Some(begin_by(now, &offer));
    (Destination::Incoming { offer, diverted: false, keep_alive, begin }, vec![say, Order::Admit { warning }])
}

pub(super) fn begin_by(now: Millis, offer: &Offer) -> Millis {
    now + offer.lease.max(BEGIN)
}

/// When the source hears of us next, and what it hears now.
pub(super) fn keep_alive_again(now: Millis, offer: &Offer) -> (Millis, Order) {
    (now + offer.lease / KEEP_ALIVES, Order::TellPeer(Peer::KeepAlive { migration: offer.migration }))
}

pub(super) fn refuse(now: Millis, offer: Offer, why: Refused) -> (Destination, Vec<Order>) {
    let order = Order::Refuse(why.clone());
    let (state, orders) = match why {
        Refused::Declined(_) => (Destination::Gone, vec![Order::RemoveAdvance, Order::RemoveHome]),
        _ => undo(now, offer, why != Refused::Aborted),
    };
    (state, [vec![order], orders].concat())
}

/// The VM is not to come any more. It may run on at the source, and be reached through the advance tunnel until its guest
/// has left it: no frame may wait here for it.
pub(super) fn give_up(now: Millis, offer: Offer, diverted: bool, tell: bool) -> (Destination, Vec<Order>) {
    let (state, orders) = undo(now, offer, tell);
    let back = if diverted { vec![Order::PointAtTunnel] } else { vec![] };
    (state, [back, orders].concat())
}

/// The source first: the guest there may still send through the tunnels, and stops within [`UNDO`].
pub(super) fn undo(now: Millis, offer: Offer, tell: bool) -> (Destination, Vec<Order>) {
    let say = Order::TellPeer(Peer::Abort { migration: offer.migration });
    let orders = if tell { vec![say] } else { vec![] };
    (Destination::Undoing { offer, repeat: now + REPEAT, until: now + UNDO }, orders)
}

pub(super) fn arrive(now: Millis, offer: Offer, diverted: bool) -> (Destination, Vec<Order>) {
    let migration = offer.migration;
    // ---- the point of no return: the VM lives here now ----
    let mut orders = if diverted { vec![] } else { vec![Order::PointAtTap] };
    match offer.join {
        // Not prepared after all: the guest answers that it knows no such migration, and is told all of it.
        Join::Before => orders.push(Order::TellGuest(ToGuest::Arrived { migration })),
        Join::After => orders.push(Order::TellGuest(ToGuest::Prepare(offer.prepare(true)))),
        Join::Never => {}
    }
    orders.extend([Order::TellPeer(Peer::Arrived { migration }), Order::RemoveAdvance]);
    (
        Destination::Arrived { offer, switched: None, repeat: now + REPEAT, leave: None, heard: now, aside: false },
        orders,
    )
}

/// When the source's end of the home tunnel is taken for gone.
pub(super) fn lost(heard: Millis, offer: &Offer) -> Millis {
    heard + LOST * offer.lease
}

pub(super) fn take_down(now: Millis, offer: Offer) -> (Destination, Vec<Order>) {
    let lease = now + offer.lease;
    let say = Order::TellPeer(Peer::TakeDown { migration: offer.migration });
    (Destination::TakingDown { offer, repeat: now + REPEAT, lease }, vec![Order::RemoveHome, say])
}

impl Offer {
    /// The guest's part of it.
    pub fn prepare(&self, arrived: bool) -> Prepare {
        Prepare {
            migration: self.migration,
            old: self.home.mac,
            new: self.advance.mac,
            lan: self.lan.clone(),
            addressing: self.addressing,
            mtu: self.mtu,
            arrived,
            drain: self.drain,
            lease: self.lease,
        }
    }
}
