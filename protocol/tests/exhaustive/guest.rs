//! The guest's machine in every order of events, with steps that fail and an agent that dies between any two of them.

mod promises;

use std::collections::VecDeque;

use lsm_protocol::{
    Counts, Drain, FromGuest, Join, Millis, Prepare, Refusal, Side, ToGuest,
    guest::{Arrival, Ended, Event, Guest, HOLD, Leaving, Notice, Order, Settling, Step, Switched, fallback::Fallback},
};

use crate::world::{
    BEFORE, FOREIGN, LEASE, OURS, START, elsewhere,
    explore::{Explored, Node, explore, most_states},
    holding,
    kernel::{Found, Kernel, Truth},
    offer, relative,
};

/// The machine, or one that is broken to see that it is noticed.
type Handle = fn(Guest, Millis, Event) -> (Guest, Vec<Order>);

const CUT: Millis = 2_000;

#[derive(Clone)]
struct InGuest {
    handle: Handle,
    now: Millis,
    machine: Guest,
    /// What the next start of the agent would find.
    disk: Guest,
    /// Orders not carried out yet, then what came of those that were: as the daemon does it.
    orders: VecDeque<Order>,
    events: VecDeque<Event>,
    /// The daemon writes the state down only after the orders.
    unsaved: bool,
    probing: bool,
    kernel: Kernel,
    truth: Truth,
    /// When the guest was told for sure that it had arrived.
    sure: Option<Millis>,
    /// The operator has given the old path up.
    released: bool,
    replies: Vec<FromGuest>,
    /// Follow each state to its end too.
    to_the_end: bool,
}

impl InGuest {
    fn new(handle: Handle, drain: Drain, to_the_end: bool) -> InGuest {
        let truth = Truth { drain, ..Truth::default() };
        InGuest {
            handle,
            now: START,
            machine: Guest::default(),
            disk: Guest::default(),
            orders: VecDeque::new(),
            events: VecDeque::new(),
            unsaved: false,
            probing: false,
            kernel: Kernel::default(),
            truth,
            sure: None,
            released: false,
            replies: Vec::new(),
            to_the_end,
        }
    }

    /// Where it may return to, the address is held.
    fn holding(handle: Handle, drain: Drain, to_the_end: bool) -> InGuest {
        let machine = holding(Drain::UntilIdle);
        let (disk, kernel) = (machine.clone(), Kernel::holding());
        let truth = Truth { drain, held: true, ..Truth::default() };
        InGuest { machine, disk, kernel, truth, ..InGuest::new(handle, drain, to_the_end) }
    }

    /// At the destination, where the new path is dead.
    fn fallen_back(handle: Handle, drain: Drain, to_the_end: bool) -> Result<InGuest, String> {
        let migration = OURS;
        let mut at = InGuest::new(handle, drain, to_the_end);
        for told in [
            ToGuest::Prepare(at.plan(false)),
            ToGuest::Switch { migration, to: Side::New },
            ToGuest::Arrived { migration },
        ] {
            at.truth.there = matches!(told, ToGuest::Arrived { .. });
            at = at.feed(Event::Told(told))?.at_rest()?;
        }
        while !matches!(&at.machine, Guest::Switched(s) if s.has_fallen_back()) {
            at = at.deadline()?.at_rest()?;
        }
        Ok(at)
    }

    /// When all is carried out, and every count finds the new path dead.
    fn at_rest(self) -> Result<InGuest, String> {
        let mut at = self;
        loop {
            at = if !at.orders.is_empty() {
                at.perform(true, Found::Dead)?
            } else if let Some(event) = at.events.pop_front() {
                at.feed(event)?
            } else if at.probing {
                at.probed(true)?
            } else {
                return Ok(at);
            };
        }
    }

    fn is_before(&self) -> bool {
        self.machine.migration() == Some(BEFORE)
    }

    fn plan(&self, arrived: bool) -> Prepare {
        offer(Join::Before, self.truth.drain).prepare(arrived)
    }

    fn feed(mut self, event: Event) -> Result<Self, String> {
        if let Event::Told(ToGuest::Arrived { migration: OURS } | ToGuest::Prepare(Prepare { arrived: true, .. })) =
            &event
        {
            self.sure.get_or_insert(self.now);
        }
        if event == Event::Told(ToGuest::Release { migration: OURS }) {
            self.released = true;
        }
        if event == Event::Told(ToGuest::Release { migration: BEFORE }) {
            self.truth.held_cut = true;
        }
        if event == Event::Told(ToGuest::Settle { migration: OURS, cut: true }) {
            // Before the arrival nobody can give the old path up by this.
            self.released |= self.truth.there && self.sure.is_some();
        }
        let about_another = match &event {
            Event::Told(told) => told.migration() == Some(FOREIGN),
            _ => false,
        };
        let (machine, orders) = (self.handle)(self.machine.clone(), self.now, event.clone());
        if event == Event::Told(ToGuest::Settle { migration: OURS, cut: false })
            && machine.plan().is_some_and(|plan| plan.drain == Drain::UntilIdle)
        {
            self.truth.drain = Drain::UntilIdle; // the operator's, and accepted
        }
        if about_another && (machine != self.machine || orders.iter().any(|o| !matches!(o, Order::Reply(_)))) {
            return Err("another migration's message changed something".to_owned());
        }
        if let Event::Told(_) = &event {
            let (_, repeated) = (self.handle)(machine.clone(), self.now, event);
            if let Some(order) = repeated.iter().find(|order| is_destructive(order) && orders.contains(order)) {
                return Err(format!("a repeated message repeats {order:?}"));
            }
        }
        if orders.iter().any(|order| matches!(order, Order::Notify(Notice::Switched { sure: true, .. })))
            && !self.truth.there
        {
            return Err("tells the world of a move that has not happened".to_owned());
        }
        self.machine = machine;
        // What is said in the VM changes nothing here: it is no step of its own.
        self.orders = orders.into_iter().filter(|order| !matches!(order, Order::Notify(_))).collect();
        self.unsaved |= self.orders.front() == Some(&Order::Do(Step::Prefer(Side::New)));
        self.saved();
        Ok(self)
    }

    fn saved(&mut self) {
        if self.orders.is_empty() {
            self.unsaved = false;
        }
        if !self.unsaved {
            self.disk = self.machine.clone();
        }
    }

    /// The next order carried out, or failed at.
    fn perform(mut self, works: bool, found: Found) -> Result<Self, String> {
        self.truth.cut = self.released
            || match (self.truth.drain, self.sure) {
                (Drain::For(time), Some(since)) => self.now >= since + time,
                _ => false,
            };
        let before = self.is_before();
        match self.orders.pop_front() {
            Some(Order::Do(step)) if before => {
                let event = self.kernel.perform_before(step, works, &self.truth)?;
                self.events.push_back(event);
            }
            Some(Order::Count) if before => self.events.push_back(Event::Counted(Kernel::count_before(&self.truth))),
            Some(Order::Do(Step::ProbeGateway)) => self.probing = true,
            Some(Order::Do(step)) => {
                let event = self.kernel.perform(step, works, &self.truth)?;
                self.events.push_back(event);
            }
            Some(Order::Count) => self.events.extend(self.kernel.counted(&self.truth, found)),
            Some(Order::Reply(reply)) => self.replies.push(reply),
            Some(Order::Notify(_) | Order::Learn) | None => {}
        }
        self.saved();
        Ok(self)
    }

    fn probed(mut self, answered: bool) -> Result<Self, String> {
        self.probing = false;
        let fault = self.kernel.fault;
        let event = self.kernel.perform(Step::ProbeGateway, answered, &self.truth)?;
        self.kernel.fault = fault; // a silent gateway leaves nothing behind
        self.feed(event)
    }

    /// The agent dies here and is started again.
    fn restart(mut self) -> Result<Self, String> {
        self.orders.clear();
        self.events.clear();
        self.probing = false;
        self.unsaved = false;
        self.machine = self.disk.clone();
        self.feed(Event::Restarted)
    }

    fn deadline(mut self) -> Result<Self, String> {
        let Some(deadline) = self.machine.deadline() else { return Ok(self) };
        self.now = self.now.max(deadline.at);
        let before = self.machine.clone();
        let after = self.feed(Event::Deadline)?;
        if after.machine == before && after.orders.is_empty() {
            return Err(format!("spins on a deadline that changes nothing: {}", deadline.awaited));
        }
        Ok(after)
    }

    /// What anybody may say, sensibly or not.
    fn outside(&self) -> Vec<Event> {
        let migration = OURS;
        let told = [
            ToGuest::Prepare(self.plan(false)),
            ToGuest::Switch { migration, to: Side::New },
            ToGuest::Switch { migration, to: Side::Old },
            ToGuest::Abort { migration },
            ToGuest::KeepAlive { migration },
            ToGuest::Query,
            ToGuest::Settle { migration, cut: false },
            ToGuest::Settle { migration, cut: true },
        ];
        let mut events: Vec<Event> = told.into_iter().map(Event::Told).collect();
        if self.truth.there {
            events.push(Event::Told(ToGuest::Arrived { migration }));
            events.push(Event::Told(ToGuest::Prepare(self.plan(true))));
            events.push(Event::Told(ToGuest::Release { migration }));
        }
        if self.machine.migration().is_some() {
            let migration = FOREIGN;
            events.push(Event::Told(ToGuest::Prepare(elsewhere(self.plan(false)))));
            events.push(Event::Told(ToGuest::Abort { migration }));
            events.push(Event::Told(ToGuest::Arrived { migration }));
        }
        if self.is_before() || self.machine.is_on_way_back() {
            let migration = BEFORE;
            events.push(Event::Told(ToGuest::Arrived { migration }));
            events.push(Event::Told(ToGuest::Release { migration }));
        }
        match &self.machine {
            Guest::Preparing(s) if s.held.is_none() => events.push(Event::Held { until: self.now + HOLD }),
            machine if machine.is_held() => events.push(Event::Held { until: self.now }),
            _ => {}
        }
        events.extend([Event::SubflowsChanged, Event::TransportReset]);
        events
    }

    /// Left to itself with everybody doing their part, does it come to an end?
    fn comes_to_an_end(&self) -> Result<(), String> {
        let mut at = self.clone();
        (at.truth.straggler, at.truth.legacy, at.truth.held) = (false, false, false);
        for _ in 0..200 {
            at = if !at.orders.is_empty() {
                at.perform(true, Found::Moved)?
            } else if let Some(event) = at.events.pop_front() {
                at.feed(event)?
            } else if at.probing {
                at.probed(true)?
            } else {
                let end = match &at.machine {
                    Guest::Idle { last: Some(Ended::Settled(OURS)) } => true,
                    Guest::Idle { .. } => !at.truth.there,
                    Guest::Settling(s) => {
                        at.truth.drain == Drain::Forever && matches!(s.leaving, Leaving::Holding { .. })
                    }
                    _ => false,
                };
                if end {
                    return Ok(());
                }
                at.benign()?
            };
        }
        Err(format!("never comes to an end: {}", self.key()))
    }

    /// The hosts repeat themselves until they are answered, and an operator who switched back switches again.
    fn benign(self) -> Result<Self, String> {
        let migration = OURS;
        let told = match (&self.machine, self.truth.there) {
            (Guest::Idle { .. }, true) => ToGuest::Prepare(self.plan(true)),
            (Guest::Settling(_), true) if self.is_before() => ToGuest::Prepare(self.plan(true)),
            (Guest::Prepared(s), true) if s.arrival == Arrival::Sure => ToGuest::Switch { migration, to: Side::New },
            (Guest::Preparing(_) | Guest::Prepared(_) | Guest::Switched(_), true) if self.sure.is_none() => {
                ToGuest::Arrived { migration }
            }
            (Guest::Preparing(_) | Guest::Prepared(_) | Guest::Switched(_), false) => ToGuest::Abort { migration },
            (Guest::Prepared(_), true) => ToGuest::Arrived { migration },
            (Guest::Switched(s), true) if s.arrival < Arrival::Sure => ToGuest::Arrived { migration },
            _ => return self.deadline(),
        };
        self.feed(Event::Told(told))
    }
}

impl Node for InGuest {
    fn key(&self) -> String {
        let InGuest { now, machine, disk, orders, events, unsaved, probing, kernel, truth, sure, released, .. } = self;
        let disk = (disk != machine).then_some(disk);
        let all = (machine, disk, orders, events, unsaved, probing, kernel, truth, sure, released);
        relative(&format!("{all:?}"), *now)
    }

    fn next(&self) -> Vec<(String, Result<Self, String>)> {
        let mut next = Vec::new();
        let mut add = |name: String, result| next.push((name, result));
        if let Some(order) = self.orders.front() {
            add(format!("{order:?}"), self.clone().perform(true, Found::Moved));
            match order {
                Order::Do(Step::ProbeGateway) | Order::Reply(_) | Order::Notify(_) | Order::Learn => {}
                Order::Do(step) => add(format!("{step:?} fails"), self.clone().perform(false, Found::Idle)),
                Order::Count => {
                    add("Count finds none moved".to_owned(), self.clone().perform(true, Found::Idle));
                    if matches!(&self.machine, Guest::Switched(s) if s.arrival > Arrival::No) {
                        add("Count finds the new path dead".to_owned(), self.clone().perform(true, Found::Dead));
                    }
                }
            }
            add("the agent dies".to_owned(), self.clone().restart());
            return next;
        }
        if !self.events.is_empty() {
            let mut at = self.clone();
            if let Some(event) = at.events.pop_front() {
                add(relative(&format!("{event:?}"), self.now), at.feed(event));
            }
            add("the agent dies".to_owned(), self.clone().restart());
            return next;
        }
        for event in self.outside() {
            add(relative(&format!("{event:?}"), self.now), self.clone().feed(event));
        }
        if self.probing {
            add("the gateway answers".to_owned(), self.clone().probed(true));
            add("the probe fails".to_owned(), self.clone().probed(false));
        }
        if let Some(deadline) = self.machine.deadline() {
            add(format!("in vain awaited {}", deadline.awaited), self.clone().deadline());
        }
        add("the agent is restarted".to_owned(), self.clone().restart());
        let mut truths =
            vec![("a straggler more or less", Truth { straggler: !self.truth.straggler, ..self.truth.clone() })];
        if self.kernel.held {
            truths.push((
                "a connection to the held address more or less",
                Truth { held: !self.truth.held, ..self.truth.clone() },
            ));
        }
        truths.push(("a legacy connection more or less", Truth { legacy: !self.truth.legacy, ..self.truth.clone() }));
        if !self.truth.there {
            truths.push(("the VM moves", Truth { there: true, ..self.truth.clone() }));
        }
        for (name, truth) in truths {
            add(name.to_owned(), Ok(InGuest { truth, ..self.clone() }));
        }
        next
    }

    fn check(&self) -> Result<(), String> {
        if !self.orders.is_empty() || !self.events.is_empty() {
            return Ok(());
        }
        let waits = self.machine.deadline().is_some() || self.probing;
        match &self.machine {
            Guest::Idle { last: Some(Ended::Aborted(_)) } if !self.kernel.as_before() && !self.kernel.fault => {
                return Err(format!("something is left of an aborted migration: {:?}", self.kernel));
            }
            machine if self.is_before() && !self.kernel.as_before() && !self.kernel.fault => {
                return Err(format!(
                    "something is left of a way back that was called off: {machine:?}, {:?}",
                    self.kernel
                ));
            }
            Guest::Idle { last: Some(Ended::Settled(BEFORE)) } if !self.kernel.as_before() && !self.kernel.fault => {
                return Err(format!("something is left of what was held: {:?}", self.kernel));
            }
            Guest::Idle { last: Some(Ended::Settled(OURS)) } if !self.kernel.as_after() && !self.kernel.fault => {
                return Err(format!("settled on half a path: {:?}", self.kernel));
            }
            Guest::Idle { last: Some(Ended::Aborted(_)) | None } if self.kernel.held && !self.kernel.fault => {
                return Err("forgets the address that is held".to_owned());
            }
            Guest::Idle { .. } => {}
            Guest::Prepared(s) if s.arrival == Arrival::Sure => {} // waits for the operator who switched back
            _ if !waits => return Err(format!("{} waits for nobody", self.machine.name())),
            _ => {}
        }
        if self.to_the_end { self.comes_to_an_end() } else { Ok(()) }
    }
}

fn is_destructive(order: &Order) -> bool {
    use Step::{LowerPath, Reannounce, ReleaseOld, Withdraw};
    matches!(order, Order::Do(Withdraw(_) | LowerPath | ReleaseOld | Reannounce))
}
