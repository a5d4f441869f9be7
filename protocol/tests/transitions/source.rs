use lsm_protocol::{
    Counts, Decline, Drain, FromGuest, Join, Millis, Offer, Peer, Refusal, Side,
    guest::Deadline,
    source::{Event, Order, Source, Switch},
};

use crate::{
    Machine, Row, table,
    world::{FOREIGN, OURS, START, golden, offer},
};

impl Machine for Source {
    type Event = Event;
    type Order = Order;

    fn take(self, now: Millis, event: Event) -> (Self, Vec<Order>) {
        self.handle(now, event)
    }

    fn awaits(&self) -> Option<Deadline> {
        self.deadline()
    }

    fn is_deadline(event: &Event) -> bool {
        *event == Event::Deadline
    }
}

const NEAR: Counts = Counts { joined: 2, waiting: 0, moved: 0, legacy: 0, early: 2 };

fn events() -> Vec<Event> {
    let (migration, counts) = (OURS, NEAR);
    let guest = [
        FromGuest::Prepared { migration, counts },
        FromGuest::Refused { migration, why: Refusal::NoSuchMigration },
        FromGuest::Refused { migration, why: Refusal::Busy(FOREIGN) },
        FromGuest::Switched { migration, to: Side::New, counts },
        FromGuest::Switched { migration, to: Side::Old, counts },
        FromGuest::Settled { migration },
        FromGuest::Aborted { migration },
        FromGuest::Prepared { migration: FOREIGN, counts },
    ];
    let peer = [
        Peer::Offer(offer(Join::Before, Drain::UntilIdle)),
        Peer::KeepAlive { migration },
        Peer::Arrived { migration },
        Peer::TakeDown { migration },
        Peer::Abort { migration },
        Peer::KeepAlive { migration: FOREIGN },
        Peer::Arrived { migration: FOREIGN },
        Peer::TakeDown { migration: FOREIGN },
        Peer::Abort { migration: FOREIGN },
    ];
    let mut events = vec![
        Event::Built,
        Event::BuildFailed(Decline::Tunnel("no".to_owned())),
        Event::Progress { left: 60_000 },
        Event::Progress { left: 0 },
        Event::Suspended,
        Event::Resumed,
        Event::VmGone,
    ];
    events.extend(guest.map(Event::Guest));
    events.extend(peer.map(Event::Peer));
    events.extend([Event::Deadline, Event::Restarted]);
    events
}

fn rows() -> Vec<Row<Source>> {
    let migration = OURS;
    let prepared = Event::Guest(FromGuest::Prepared { migration, counts: NEAR });
    let copying = vec![Event::Built, prepared];
    let flipped = [copying.clone(), vec![Event::Progress { left: 0 }]].concat();
    let stopped = [copying.clone(), vec![Event::Suspended]].concat();
    let resumed = [stopped.clone(), vec![Event::Resumed]].concat();
    let departed = [stopped.clone(), vec![Event::Peer(Peer::Arrived { migration })]].concat();
    let undoing = [copying.clone(), vec![Event::Peer(Peer::Abort { migration })]].concat();
    let gone = [departed.clone(), vec![Event::Peer(Peer::TakeDown { migration })]].concat();
    let row = |name, join, events| {
        let offer: Offer = offer(join, Drain::UntilIdle);
        Row::new(name, Source::new(START, offer, Switch::Auto).0, events)
    };
    vec![
        row("building", Join::Before, vec![]),
        row("preparing", Join::Before, vec![Event::Built]),
        row("copying, to flip early", Join::Before, copying),
        row("copying, flipped", Join::Before, flipped),
        row("stopped", Join::Before, stopped),
        row("copying again", Join::Before, resumed),
        row("departed", Join::Before, departed),
        row("undoing", Join::Before, undoing),
        row("gone", Join::Before, gone),
        row("building, to join after", Join::After, vec![]),
        row("copying, to join after", Join::After, vec![Event::Built]),
    ]
}

#[test]
fn as_frozen() {
    golden("source.transitions", &table(rows(), &events()));
}
