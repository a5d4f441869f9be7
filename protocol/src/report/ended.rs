//! How a migration ended, for a host: read off the steps of its machine.

use serde::{Deserialize, Serialize};

use crate::{FromGuest, Peer, destination, source};

/// How it ended. A later step may know better than an earlier one: what was given up can still arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The guest has left the old path.
    Settled,
    /// The old path was taken down without the guest's word: by the operator, or because nothing of it is left there.
    Released,
    /// The VM stopped before it had settled.
    VmGone,
    /// Nothing has moved.
    Refused,
    /// It was called off.
    Aborted,
    /// It left, and nothing more was heard of its destination.
    Silent,
    /// The VM went back while its old address was held, which is the direct one again.
    Returned,
}

impl Ended {
    /// As programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Ended::Settled => "settled",
            Ended::Released => "released",
            Ended::VmGone => "vm-gone",
            Ended::Refused => "refused",
            Ended::Aborted => "aborted",
            Ended::Silent => "silent",
            Ended::Returned => "returned",
        }
    }

    /// What a step of the destination's machine means, if it is an end.
    pub fn at_destination(
        was: &destination::Destination,
        event: &destination::Event,
        is: &destination::Destination,
        orders: &[destination::Order],
    ) -> Option<Ended> {
        use destination::{Destination, Event, Order};
        match (was, is, event) {
            _ if orders.iter().any(|order| matches!(order, Order::Refuse(_))) => Some(Ended::Refused),
            (Destination::Arrived { aside: true, .. }, Destination::TakingDown { .. }, Event::VmGone) => {
                Some(Ended::Returned)
            }
            (Destination::Arrived { .. }, Destination::TakingDown { .. }, event) => Some(match event {
                Event::Guest(FromGuest::Settled { .. }) => Ended::Settled,
                Event::VmGone => Ended::VmGone,
                _ => Ended::Released,
            }),
            (Destination::Incoming { .. }, Destination::Undoing { .. }, _) => Some(Ended::Aborted),
            _ => None,
        }
    }

    /// What a step of the source's machine means, if it is an end.
    pub fn at_source(was: &source::Source, event: &source::Event, is: &source::Source) -> Option<Ended> {
        use source::{Event, Source};
        match (was, is, event) {
            (_, Source::Gone, Event::Peer(Peer::TakeDown { .. })) => Some(Ended::Settled),
            (Source::Building(_), Source::Gone, Event::BuildFailed(_)) => Some(Ended::Refused),
            (Source::Departed { .. }, Source::Gone, Event::Deadline) => Some(Ended::Silent),
            (Source::Departed { .. }, Source::Gone, Event::Peer(Peer::Abort { .. })) => Some(Ended::Aborted),
            (Source::Undoing { .. }, _, _) => None,
            (_, Source::Undoing { .. }, _) => Some(Ended::Aborted),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec::Vec};

    use super::*;
    use crate::{
        Addressing, Counts, Drain, Join, Mac, MigrationId, Offer, Side, TunnelId, Uuid, V4, V6,
        destination::{Destination, Policy, Unprepared},
        forecast::Survival,
        source::{Source, Switch},
    };

    const MIGRATION: MigrationId = MigrationId([1; 16]);

    fn offer() -> Offer {
        let tunnel = |n| TunnelId { mac: Mac([n; 6]), vni: n.into() };
        Offer {
            migration: MIGRATION,
            vm: Uuid([2; 16]),
            home: tunnel(1),
            advance: tunnel(2),
            join: Join::Before,
            lan: String::new(),
            addressing: Addressing { v4: V4::None, v6: V6::None },
            mtu: 1500,
            underlay: [10, 0, 0, 1].into(),
            port: 4789,
            drain: Drain::UntilIdle,
            lease: 60_000,
        }
    }

    fn at_destination(events: &[destination::Event]) -> Option<Ended> {
        let policy = Policy { unprepared: Unprepared::PostJoin, prepare_wait: 5_000, survival: Survival::ANY };
        let (mut machine, _) = Destination::new(0, offer(), policy);
        let mut ended = None;
        for event in events {
            let was = machine.clone();
            let (is, orders) = machine.handle(1, event.clone());
            ended = Ended::at_destination(&was, event, &is, &orders).or(ended);
            machine = is;
        }
        ended
    }

    #[test]
    fn ends_of_an_arrival() {
        use destination::Event;
        let peer = |message: fn(MigrationId) -> Peer| Event::Peer(message(MIGRATION));
        let accepted = peer(|migration| Peer::Accepted { migration });
        let prepared = peer(|migration| Peer::GuestPrepared { migration, counts: Counts::default() });
        let abort = peer(|migration| Peer::Abort { migration });
        let incoming = [Event::Built, accepted, Event::Carries, prepared];
        let arrived = [&incoming[..], &[Event::Begun, Event::Arrived]].concat();
        let then = |before: &[Event], event: Event| at_destination(&[before, &[event]].concat());
        assert_eq!(at_destination(&arrived), None);
        assert_eq!(then(&arrived, Event::Guest(FromGuest::Settled { migration: MIGRATION })), Some(Ended::Settled));
        assert_eq!(then(&arrived, Event::VmGone), Some(Ended::VmGone));
        let switched =
            Event::Guest(FromGuest::Switched { migration: MIGRATION, to: Side::New, counts: Counts::default() });
        let back = [&arrived[..], &[switched, Event::Departs]].concat();
        assert_eq!(then(&back, Event::VmGone), Some(Ended::Returned));
        assert_eq!(then(&incoming, abort.clone()), Some(Ended::Aborted));
        assert_eq!(then(&incoming[..2], abort.clone()), Some(Ended::Refused));
        // Given up too early: it is here, and settles.
        let late: Vec<Event> =
            [&incoming[..], &[abort, Event::Arrived, Event::Guest(FromGuest::Settled { migration: MIGRATION })]]
                .concat();
        assert_eq!(at_destination(&late), Some(Ended::Settled));
    }

    #[test]
    fn ends_of_a_departure() {
        use source::Event;
        let at = |events: &[(u64, Event)]| {
            let (mut machine, _) = Source::new(0, offer(), Switch::Arrival);
            let mut ended = None;
            for (now, event) in events {
                let was = machine.clone();
                let (is, _) = machine.handle(*now, event.clone());
                ended = Ended::at_source(&was, event, &is).or(ended);
                machine = is;
            }
            ended
        };
        let peer = |message: Peer| (1, Event::Peer(message));
        let gone = [(1, Event::Built), (1, Event::Suspended), peer(Peer::Arrived { migration: MIGRATION })];
        let then = |event: (u64, Event)| at(&[&gone[..], &[event]].concat());
        assert_eq!(at(&gone), None);
        assert_eq!(then(peer(Peer::TakeDown { migration: MIGRATION })), Some(Ended::Settled));
        assert_eq!(then(peer(Peer::Abort { migration: MIGRATION })), Some(Ended::Aborted));
        assert_eq!(then((90_000, Event::Deadline)), Some(Ended::Silent));
        assert_eq!(at(&[(1, Event::Built), peer(Peer::Abort { migration: MIGRATION })]), Some(Ended::Aborted));
        let failed = Event::BuildFailed(crate::Decline::NotRunning);
        assert_eq!(at(&[(1, failed)]), Some(Ended::Refused));
    }
}
