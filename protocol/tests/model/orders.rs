//! What can happen next, and what is promised whatever happens.

use std::{collections::HashSet, sync::Mutex};

use lsm_protocol::{
    Drain, Join,
    destination::{Policy, Unprepared},
    forecast::Survival,
    source::Switch,
};
use stateright::Property;

use crate::{
    chance::Chance,
    libvirt::Step,
    run::{LIMIT, Machines, Run, What, Who},
    scenario::{Fate, Scenario},
    state::State,
};

/// One thing that happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// The message at this place of the agenda.
    Deliver(usize),
    Lose(usize),
    /// Delivered, and to be delivered once more.
    Repeat(usize),
    Delay(usize),
    DeliverLate(usize),
    /// What is due next, and needs no message: a deadline, an event of libvirt's, the end of a step.
    Next,
    /// libvirt's next step, before its time.
    Hurry,
    Dies(Who),
    /// The program that carries out the orders of this dies at one of them.
    DieAt(Box<Action>, u32),
}

/// The promises, by what breaks them.
pub const PROMISES: [&str; 5] = [
    "a usable path always exists",
    "no two places claim the VM on one LAN",
    "every run settles or is undone",
    "nothing is left behind",
    "no order breaks a promise",
];

pub struct Model {
    machines: Machines,
    faults: u8,
    scenarios: Vec<Scenario>,
    /// Quiet states from which a run is known to come to its end if nothing more goes wrong.
    ends: Mutex<HashSet<(u64, u64)>>,
}

impl Model {
    pub fn new(machines: Machines, faults: u8, scenarios: Vec<Scenario>) -> Model {
        Model { machines, faults, scenarios, ends: Mutex::default() }
    }

    fn keeps(&self, promise: usize, state: &State) -> bool {
        state.broken.as_ref().is_none_or(|broken| kind(broken) != promise)
    }

    /// From here on nothing goes wrong any more: does it come to an end?
    fn ends(&self, state: &State) -> bool {
        if !state.is_quiet() {
            return true; // every way on leads through a quiet state, from which it is tried
        }
        let mut now = state.clone();
        let mut passed = Vec::new();
        while !now.is_end() {
            if now.is_quiet() {
                let digest = now.digest;
                if self.ends.lock().is_ok_and(|ends| ends.contains(&digest)) {
                    break;
                }
                passed.push(digest);
            }
            if now.run.now > state.run.now + LIMIT {
                return false;
            }
            let action = now.messages().next().map_or(Action::Next, Action::Deliver);
            let Some(next) = step(&now, &action) else { return false };
            now = next;
        }
        if let Ok(mut ends) = self.ends.lock() {
            ends.extend(passed);
        }
        true // what else it breaks is another promise's
    }
}

/// Which promise the simulation's words are about.
fn kind(broken: &str) -> usize {
    let words: [&[&str]; 4] =
        [&["no usable path"], &["two places claim"], &["stuck"], &["is left", "leaves something"]];
    words.iter().position(|words| words.iter().any(|words| broken.contains(words))).unwrap_or(4)
}

/// What the state becomes; `None` where nothing does.
fn step(state: &State, action: &Action) -> Option<State> {
    let mut next = state.clone();
    let run = &mut next.run;
    let happened = match action {
        Action::Deliver(index) => {
            let (_, _, what) = run.agenda.swap_remove(*index);
            run.happens(what)
        }
        Action::Lose(index) => {
            run.agenda.swap_remove(*index);
            next.faults -= 1;
            Ok(())
        }
        Action::Repeat(index) => {
            let (_, _, what) = run.agenda.swap_remove(*index);
            next.late.push((run.now, what.clone()));
            next.faults -= 1;
            run.happens(what)
        }
        Action::Delay(index) => {
            let (_, _, what) = run.agenda.swap_remove(*index);
            next.late.push((run.now, what));
            next.faults -= 1;
            Ok(())
        }
        Action::DeliverLate(index) => {
            let (_, what) = next.late.swap_remove(*index);
            run.happens(what)
        }
        Action::Next => {
            let (at, what) = run.next()?;
            run.now = at;
            run.happens(what)
        }
        Action::Hurry => {
            let index = hurried(run)?;
            let (_, _, what) = run.agenda.swap_remove(index);
            next.faults -= 1;
            run.happens(what)
        }
        Action::Dies(who) => {
            run.dies(*who);
            next.faults -= 1;
            Ok(())
        }
        Action::DieAt(action, order) => {
            let mut dying = state.clone();
            dying.run.dies_at = Some(*order);
            let mut died = step(&dying, action)?;
            died.run.dies_at = None;
            died.faults -= 1;
            died.take_stock(died.broken.clone().map_or(Ok(()), Err));
            return Some(died);
        }
    };
    next.take_stock(happened);
    Some(next)
}

/// How many orders are carried out when this happens.
fn orders(state: &State, action: &Action) -> u32 {
    const MOST: u32 = 1_000;
    let mut counting = state.clone();
    counting.run.dies_at = Some(MOST);
    step(&counting, action).and_then(|after| after.run.dies_at).map_or(0, |left| MOST - left)
}

/// libvirt's next step, unless there is something to be told of the one before: its events come in order, and soon.
fn hurried(run: &Run) -> Option<usize> {
    if run.agenda.iter().any(|(_, _, what)| matches!(what, What::AtSource(_) | What::AtDestination(_))) {
        return None;
    }
    let steps = run
        .agenda
        .iter()
        .enumerate()
        .filter(|(_, (_, _, what))| matches!(what, What::Libvirt(step) if !matches!(step, Step::Copies { .. })));
    steps.min_by_key(|(_, (at, sequence, _))| (*at, *sequence)).map(|(index, _)| index)
}

impl stateright::Model for Model {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let begin = |scenario: &Scenario| {
            let mut run = Run::of(self.machines, scenario.clone(), Chance::none());
            for (after, what) in [
                (scenario.straggler, What::StragglerGoes),
                (scenario.legacy, What::LegacyGoes),
                (scenario.held, What::HeldGoes),
            ] {
                if let Some(after) = after {
                    run.after(after, what);
                }
            }
            if scenario.join == Join::Never || scenario.drain == Drain::Forever {
                run.after(scenario.copy + 20_000, What::OperatorEnds);
            }
            State::new(run, self.faults)
        };
        self.scenarios.iter().map(begin).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.is_end() {
            return;
        }
        let certain: Vec<Action> = if state.messages().next().is_some() {
            state.messages().map(Action::Deliver).collect()
        } else {
            vec![Action::Next]
        };
        actions.extend((0..state.late.len()).map(Action::DeliverLate));
        if state.faults > 0 {
            for index in state.messages() {
                actions.extend([Action::Lose(index), Action::Repeat(index), Action::Delay(index)]);
            }
            for action in &certain {
                actions.extend((0..orders(state, action)).map(|order| Action::DieAt(Box::new(action.clone()), order)));
            }
            actions.extend([Who::Guest, Who::Source, Who::Destination].map(Action::Dies));
            actions.extend(hurried(&state.run).map(|_| Action::Hurry));
        }
        actions.extend(certain);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        step(state, &action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(PROMISES[0], |model, state| model.keeps(0, state)),
            Property::always(PROMISES[1], |model, state| model.keeps(1, state)),
            Property::always(PROMISES[2], |model, state| model.keeps(2, state) && model.ends(state)),
            Property::always(PROMISES[3], |model, state| model.keeps(3, state)),
            Property::always(PROMISES[4], |model, state| model.keeps(4, state)),
        ]
    }
}

/// Each way that a migration can go.
pub fn scenarios() -> Vec<Scenario> {
    let fates = [
        Fate::Arrives,
        Fate::PausedInCopy,
        Fate::CancelledInCopy,
        Fate::CancelledInStop,
        Fate::DestinationDiesInCopy,
        Fate::SourceDies,
    ];
    let ways = [
        (Join::Before, Switch::Early),
        (Join::Before, Switch::Arrival),
        (Join::After, Switch::Arrival),
        (Join::Never, Switch::Arrival),
    ];
    // Where the address is held that the VM goes back to: until after the move, or while it is under way.
    let ways_back = [
        (Fate::Arrives, Switch::Early, 4_000),
        (Fate::CancelledInCopy, Switch::Early, 4_000),
        (Fate::CancelledInStop, Switch::Arrival, 1_500),
    ];
    let policy = Policy { unprepared: Unprepared::PostJoin, prepare_wait: 5_000, survival: Survival::ANY };
    let usual = Scenario {
        join: Join::Before,
        drain: Drain::UntilIdle,
        switch: Switch::Early,
        policy,
        fate: Fate::Arrives,
        copy: 2_000,
        stop: 400,
        lost: 0,
        repeated: 0,
        delay: 2,
        deaths: 0,
        refusals: 0,
        cut: None,
        straggler: None,
        legacy: None,
        dead: None,
        held: None,
    };
    let mut scenarios = Vec::new();
    for fate in fates {
        for (join, switch) in ways {
            let who_stays = fate == Fate::Arrives && join == Join::Before;
            for stays in if who_stays { vec![None, Some(9_000)] } else { vec![None] } {
                scenarios.push(Scenario { join, switch, fate, straggler: stays, legacy: stays, ..usual.clone() });
            }
        }
    }
    for (fate, switch, held) in ways_back {
        scenarios.push(Scenario { switch, fate, held: Some(held), ..usual.clone() });
    }
    scenarios
}
