use lsm_protocol::{
    Counts, Decline, Drain, FromGuest, GuestFailure, Join, Millis, Peer, Refusal, Side,
    destination::{Destination, Event, Impassable, Order, Policy, Unprepared},
    forecast::{Forecast, Survival},
    guest::Deadline,
};

use crate::{
    Machine, Row, table,
    world::{FOREIGN, OURS, START, golden, offer},
};

impl Machine for Destination {
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

fn events() -> Vec<Event> {
    let (migration, counts) = (OURS, Counts::default());
    let guest = [
        FromGuest::Prepared { migration, counts },
        FromGuest::Refused { migration, why: Refusal::NoSuchMigration },
        FromGuest::Refused { migration, why: Refusal::Busy(FOREIGN) },
        FromGuest::Switched { migration, to: Side::New, counts },
        FromGuest::Switched { migration, to: Side::Old, counts },
        FromGuest::Settled { migration },
        FromGuest::Aborted { migration },
        FromGuest::Settled { migration: FOREIGN },
    ];
    let peer = [
        Peer::Accepted { migration },
        Peer::Declined { migration, why: Decline::NotRunning },
        Peer::GuestPrepared { migration, counts },
        Peer::GuestPrepared { migration, counts: Counts { joined: 9, legacy: 1, ..counts } },
        Peer::Foreseen { vm: offer(Join::Before, Drain::UntilIdle).vm, forecast: Some(Forecast::default()) },
        Peer::Foreseen { vm: offer(Join::Before, Drain::UntilIdle).vm, forecast: None },
        Peer::GuestRefused { migration, why: GuestFailure::Silent(1) },
        Peer::Flipped { migration },
        Peer::Stopped { migration },
        Peer::Resumed { migration },
        Peer::KeepAlive { migration },
        Peer::TakenDown { migration },
        Peer::Abort { migration },
        Peer::Accepted { migration: FOREIGN },
        Peer::Abort { migration: FOREIGN },
        Peer::TakenDown { migration: FOREIGN },
    ];
    let mut events =
        vec![Event::Built, Event::BuildFailed(Decline::Tunnel("no".to_owned())), Event::Begun, Event::Arrived];
    events.extend([Event::Carries, Event::Impassable(Impassable::Closed { port: 4789 })]);
    events.extend([Event::VmGone, Event::Crossed, Event::Release, Event::Departs, Event::Stays]);
    events.extend(guest.map(Event::Guest));
    events.extend(peer.map(Event::Peer));
    events.extend([Event::Deadline, Event::Restarted]);
    events
}

fn rows() -> Vec<Row<Destination>> {
    let migration = OURS;
    let waiting = vec![Event::Built, Event::Peer(Peer::Accepted { migration })];
    let carries = [waiting.clone(), vec![Event::Carries]].concat();
    let incoming =
        [carries.clone(), vec![Event::Peer(Peer::GuestPrepared { migration, counts: Counts::default() })]].concat();
    let begun = [incoming.clone(), vec![Event::Begun]].concat();
    let stopped = [begun.clone(), vec![Event::Peer(Peer::Stopped { migration })]].concat();
    let arrived = [stopped.clone(), vec![Event::Arrived]].concat();
    let switched = FromGuest::Switched { migration, to: Side::New, counts: Counts::default() };
    let switched = [arrived.clone(), vec![Event::Guest(switched)]].concat();
    let aside = [switched.clone(), vec![Event::Departs]].concat();
    let leaving = [switched.clone(), vec![Event::Release]].concat();
    let taking_down = [switched.clone(), vec![Event::Guest(FromGuest::Settled { migration })]].concat();
    let undoing = [incoming.clone(), vec![Event::VmGone]].concat();
    let gone = [taking_down.clone(), vec![Event::Peer(Peer::TakenDown { migration })]].concat();
    let refuse = Policy { unprepared: Unprepared::Refuse, prepare_wait: 5_000, survival: Survival::ANY };
    let post_join = Policy { unprepared: Unprepared::PostJoin, ..refuse };
    let few =
        Event::Peer(Peer::GuestPrepared { migration, counts: Counts { joined: 1, waiting: 1, ..Counts::default() } });
    let short = [waiting.clone(), vec![few]].concat();
    let most = Policy { survival: Survival::Percent(90), ..post_join };
    let row = |name, join, policy, events| {
        Row::new(name, Destination::new(START, offer(join, Drain::UntilIdle), policy).0, events)
    };
    let now = Policy { prepare_wait: 0, ..refuse };
    vec![
        row("building", Join::Before, refuse, vec![]),
        row("built", Join::Before, refuse, vec![Event::Built]),
        row("waiting", Join::Before, refuse, waiting.clone()),
        row("waiting, most must join", Join::Before, most, waiting.clone()),
        row("waiting to hear who has not joined", Join::Before, most, short),
        row("waiting, post-join will do", Join::Before, post_join, waiting),
        row("waiting, full frames have crossed", Join::Before, refuse, carries.clone()),
        row("the same, post-join will do", Join::Before, post_join, carries),
        row("incoming", Join::Before, refuse, incoming),
        row("incoming, QEMU started", Join::Before, refuse, begun),
        row("incoming, stopped", Join::Before, refuse, stopped),
        row("arrived", Join::Before, refuse, arrived),
        row("arrived, switched", Join::Before, refuse, switched),
        row("arrived, on the way back", Join::Before, refuse, aside),
        row("arrived, released by the operator", Join::Before, refuse, leaving),
        row("taking down", Join::Before, refuse, taking_down),
        row("undoing", Join::Before, refuse, undoing),
        row("gone", Join::Before, refuse, gone),
        row("accepted, no wait", Join::Before, now, vec![Event::Peer(Peer::Accepted { migration })]),
        row(
            "waiting for frames only, to join after",
            Join::After,
            refuse,
            vec![Event::Peer(Peer::Accepted { migration }), Event::Built],
        ),
        row("accepted, to join after", Join::After, refuse, vec![Event::Peer(Peer::Accepted { migration })]),
        row(
            "incoming, to join after",
            Join::After,
            refuse,
            vec![Event::Peer(Peer::Accepted { migration }), Event::Built, Event::Carries],
        ),
        row(
            "arrived, never to join",
            Join::Never,
            refuse,
            vec![Event::Peer(Peer::Accepted { migration }), Event::Built, Event::Carries, Event::Arrived],
        ),
    ]
}

#[test]
fn as_frozen() {
    golden("destination.transitions", &table(rows(), &events()));
}
