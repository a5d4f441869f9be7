use lsm_protocol::{
    Addressing, Counts, Drain, Join, Mac, Millis, Prepare, Refusal, Side, ToGuest, V4, V6,
    guest::{Deadline, Event, Guest, Order, Step, fallback::Progress},
};

use crate::{
    Machine, Row, table,
    world::{BEFORE, FOREIGN, OURS, START, elsewhere, golden, offer},
};

impl Machine for Guest {
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

const ALL: Counts = Counts { joined: 2, waiting: 0, moved: 0, legacy: 0, early: 2 };
const ONE: Counts = Counts { joined: 1, waiting: 1, moved: 0, legacy: 0, early: 1 };
const MOVED: Counts = Counts { moved: 2, ..ALL };
const LEGACY: Counts = Counts { legacy: 1, ..MOVED };

const DEAD: Progress = Progress { carrying: 0, stuck: 1, saved: 0 };
const SAVED: Progress = Progress { saved: 1, ..DEAD };
const ALIVE: Progress = Progress { carrying: 1, stuck: 0, saved: 0 };

fn plan(arrived: bool) -> Prepare {
    offer(Join::Before, Drain::UntilIdle).prepare(arrived)
}

fn events() -> Vec<Event> {
    let migration = OURS;
    let told = [
        ToGuest::Prepare(plan(false)),
        ToGuest::Prepare(plan(true)),
        ToGuest::Switch { migration, to: Side::New },
        ToGuest::Switch { migration, to: Side::Old },
        ToGuest::Arrived { migration },
        ToGuest::Release { migration },
        ToGuest::Abort { migration },
        ToGuest::KeepAlive { migration },
        ToGuest::Query,
        ToGuest::Forecast { vnics: vec![], skip: 0 },
        ToGuest::Settle { migration, cut: false },
        ToGuest::Settle { migration, cut: true },
        ToGuest::Prepare(elsewhere(plan(false))),
        ToGuest::Arrived { migration: FOREIGN },
        ToGuest::Abort { migration: FOREIGN },
        ToGuest::Arrived { migration: BEFORE },
        ToGuest::Release { migration: BEFORE },
    ];
    let steps = [
        Step::Obtain,
        Step::RaisePath,
        Step::ProbeGateway,
        Step::Announce,
        Step::Reannounce,
        Step::Invite,
        Step::Prefer(Side::New),
        Step::Prefer(Side::Old),
        Step::TakeOver,
        Step::Withdraw(Side::New),
        Step::Withdraw(Side::Old),
        Step::LowerPath,
        Step::ReleaseOld,
    ];
    let mut events: Vec<Event> = told.into_iter().map(Event::Told).collect();
    events.extend(steps.map(Event::Done));
    events.extend(steps.map(|step| Event::Failed(step, Refusal::PathManager("no".to_owned()))));
    events.extend([ALL, ONE, MOVED, LEGACY].map(Event::Counted));
    events.extend([DEAD, SAVED, ALIVE].map(Event::Carried));
    events.extend([Event::SubflowsChanged, Event::TransportReset, Event::Deadline, Event::Restarted]);
    events.push(Event::Lost(Refusal::NoAddress { mac: Mac([2; 6]), detail: "gone".to_owned() }));
    events.extend([START + 2_000, 0].map(|until| Event::Held { until }));
    events
}

fn rows() -> Vec<Row<Guest>> {
    let migration = OURS;
    let prepare = Event::Told(ToGuest::Prepare(plan(false)));
    let obtained = Prepare { addressing: Addressing { v4: V4::Dhcp(None), v6: V6::None }, ..plan(false) };
    let probing = vec![prepare.clone(), Event::Done(Step::RaisePath)];
    let announcing = [probing.clone(), vec![Event::Done(Step::ProbeGateway)]].concat();
    let joining = [announcing.clone(), vec![Event::Done(Step::Announce)]].concat();
    let held = [joining.clone(), vec![Event::Held { until: START + 60_000 }]].concat();
    let prepared = [joining.clone(), vec![Event::Counted(ALL)]].concat();
    let early = [prepared.clone(), vec![Event::Told(ToGuest::Switch { migration, to: Side::New })]].concat();
    let confirmed = [early.clone(), vec![Event::Done(Step::Prefer(Side::New))]].concat();
    let guessed = [confirmed.clone(), vec![Event::TransportReset]].concat();
    let over = [guessed.clone(), vec![Event::Done(Step::TakeOver)]].concat();
    let sure = [over.clone(), vec![Event::Told(ToGuest::Arrived { migration })]].concat();
    let left = [sure.clone(), vec![Event::Counted(ONE)]].concat();
    let doubtful =
        [sure.clone(), vec![Event::Carried(DEAD), Event::Deadline, Event::Deadline, Event::Deadline]].concat();
    let given_up = [doubtful.clone(), vec![Event::Deadline; 2], vec![Event::Carried(DEAD)]].concat();
    let fallen = [given_up.clone(), vec![Event::Done(Step::Prefer(Side::Old))]].concat();
    let saved = [fallen.clone(), vec![Event::Carried(SAVED)]].concat();
    let back = [sure.clone(), vec![Event::Told(ToGuest::Switch { migration, to: Side::Old })]].concat();
    let draining = [sure.clone(), vec![Event::Counted(LEGACY)]].concat();
    let landed = [draining.clone(), vec![Event::Deadline]].concat();
    let withdrawing = [landed.clone(), vec![Event::Counted(LEGACY)]].concat();
    let holding = [withdrawing.clone(), vec![Event::Done(Step::Withdraw(Side::Old))]].concat();
    let releasing = [holding.clone(), vec![Event::Counted(MOVED)]].concat();
    let settled = [releasing.clone(), vec![Event::Done(Step::ReleaseOld)]].concat();
    let undoing = [confirmed.clone(), vec![Event::Told(ToGuest::Abort { migration })]].concat();
    let lowering = [undoing.clone(), vec![Event::Deadline]].concat();
    let aborted = [lowering.clone(), vec![Event::Done(Step::LowerPath)]].concat();
    let refused = [probing.clone(), vec![Event::Deadline]].concat();
    let row = |name, events| Row::new(name, Guest::default(), events);
    // On the way back, from where an address is held.
    let from = |name, events: &[Event]| Row::new(name, crate::world::holding(Drain::UntilIdle), events.to_vec());
    let off = [Event::Told(ToGuest::Prepare(plan(false))), Event::Told(ToGuest::Abort { migration })];
    vec![
        row("idle", vec![]),
        row("obtaining addresses", vec![Event::Told(ToGuest::Prepare(obtained))]),
        row("raising the path", vec![prepare]),
        row("probing the gateway", probing.clone()),
        row("probing, arrival guessed", [probing, vec![Event::TransportReset]].concat()),
        row("announcing", announcing),
        row("joining", joining.clone()),
        row("joining, announced again", [joining, vec![Event::Counted(ONE), Event::Deadline]].concat()),
        row("held back by programs in the VM", [held, vec![Event::Counted(ALL)]].concat()),
        row("prepared", prepared),
        row("switched early, the kernel not yet", early),
        row("switched early", confirmed),
        row("switched, arrival guessed, not taken over", guessed),
        row("switched, arrival guessed", over),
        row("switched, arrival sure", sure),
        row("switched, with a straggler", left.clone()),
        row(
            "switched, the straggler invited",
            [left, vec![Event::Deadline, Event::Deadline, Event::Deadline]].concat(),
        ),
        row("switched, the new path in doubt", doubtful),
        row("fallen back, the kernel not yet", given_up),
        row("fallen back", fallen),
        row("fallen back, the old path carries data", saved),
        row("switched back after arrival", back),
        row("draining", draining),
        row("drained, counting", landed),
        row("withdrawing: beyond the point of no return", withdrawing),
        row("holding the old address", holding),
        row("releasing", releasing),
        row("settled", settled),
        row("undoing, draining", undoing),
        row("undoing, lowering", lowering),
        row("undoing, having refused", refused),
        row("aborted", aborted),
        from("holding the address that the plan leads back to", &[]),
        from("on the way back: raising the path", &off[..1]),
        from("on the way back: undoing", &off),
        from("holding again", &[off.to_vec(), vec![Event::Done(Step::LowerPath)]].concat()),
        from("holding; the VM has gone back unprepared", &[Event::Told(ToGuest::Prepare(plan(true)))]),
    ]
}

#[test]
fn as_frozen() {
    golden("guest.transitions", &table(rows(), &events()));
}
