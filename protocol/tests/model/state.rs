//! A state of the model: a run of the simulation in which nothing is left to chance, and the messages that are late.

use std::{
    collections::hash_map::DefaultHasher,
    fmt,
    hash::{Hash, Hasher},
};

use lsm_protocol::Millis;

use crate::{
    libvirt::Step,
    orders::Action,
    run::{Run, What},
    world::{START, brief, hosts::Vm},
};

/// A message that is later than this never comes: the connection that it was on is gone.
const LATE: Millis = 4_000;
/// The VM may be out of reach for this long: as above, and every fault here is a short one.
const DARK: Millis = 1_500;
/// Both ends may claim the VM's address for this long: an event is on its way, or a service starts. Each fault may cost as
/// much again: a service may die with the event that came late.
const CLAIMED: Millis = 2_000;
/// What was so long ago makes no difference: longer than every lease.
const LONG_AGO: Millis = 30_000;

#[derive(Clone)]
pub struct State {
    pub run: Run,
    /// On their way for longer than anything else; since when.
    pub late: Vec<(Millis, What)>,
    /// How much may still go wrong.
    pub faults: u8,
    /// How much could at the beginning.
    all_faults: u8,
    /// What was promised and is not so.
    pub broken: Option<String>,
    claimed_since: Option<Millis>,
    pub digest: (u64, u64),
}

impl State {
    pub fn new(run: Run, faults: u8) -> State {
        let (late, all_faults) = (Vec::new(), faults);
        let mut state = State { run, late, faults, all_faults, broken: None, claimed_since: None, digest: (0, 0) };
        let begun = state.run.begin_at_destination();
        state.take_stock(begun);
        state
    }

    /// A message between two programs.
    pub fn is_message(what: &What) -> bool {
        matches!(what, What::ToSource(_) | What::ToDestination(_) | What::ToGuest(..) | What::FromGuest(..))
    }

    pub fn messages(&self) -> impl Iterator<Item = usize> {
        // What is said to a VM whose CPUs stand still is read when they run.
        let read = |what: &What| !matches!(what, What::ToGuest(..)) || self.run.vm != Vm::Paused;
        let agenda = self.run.agenda.iter().enumerate();
        agenda.filter(move |(_, (_, _, what))| State::is_message(what) && read(what)).map(|(index, _)| index)
    }

    /// Nothing is on its way.
    pub fn is_quiet(&self) -> bool {
        self.messages().next().is_none() && self.late.is_empty()
    }

    /// Nothing can happen any more.
    pub fn is_end(&self) -> bool {
        self.broken.is_some() || (self.run.is_over() && self.is_quiet())
    }

    /// What holds now, after something has happened.
    pub fn take_stock(&mut self, happened: Result<(), String>) {
        let (late, now) = (&mut self.late, self.run.now);
        late.retain(|(since, _)| now <= since + LATE);
        // Of the copy's progress two words will do: half of it, and nearly all.
        let half = self.run.scenario.copy / 2;
        self.run.agenda.retain(
            |(.., what)| !matches!(what, What::Libvirt(Step::Copies { left }) if *left != half && *left != half / 10),
        );
        let held = happened.and_then(|()| self.run.watch()).and_then(|()| self.reached()).and_then(|()| self.claims());
        let held = held.and_then(|()| if self.is_end() { self.run.end() } else { Ok(()) });
        self.broken = held.err();
        self.run.log.clear();
        self.digest = digest(&self.key());
    }

    fn reached(&self) -> Result<(), String> {
        let dark = self.run.dark_since.filter(|since| self.run.now - since > DARK);
        dark.map_or(Ok(()), |since| Err(format!("no usable path since {}: {}", since - START, self.run.states())))
    }

    /// On each LAN the VM's MAC is in one place.
    fn claims(&mut self) -> Result<(), String> {
        let (source, destination) = (&self.run.source.end, &self.run.destination.end);
        let twice = match self.run.vm {
            // Reached through the advance tunnel, and its new MAC leads to the tap of a VM that does not run.
            Vm::AtSource => destination.at_tap && source.advance && destination.advance,
            // Reached through the home tunnel, and its old MAC leads to the tap that it has left.
            Vm::AtDestination => source.home && destination.home && !source.diverted,
            Vm::Paused | Vm::Dead => false,
        };
        if !twice {
            self.claimed_since = None;
            return Ok(());
        }
        let since = *self.claimed_since.get_or_insert(self.run.now);
        let happened = Millis::from(self.all_faults - self.faults);
        if self.run.now - since > CLAIMED * happened.max(1) {
            return Err(format!("two places claim the VM since {}: {}", since - START, self.run.states()));
        }
        Ok(())
    }

    /// All that decides what can follow, with times told from now.
    fn key(&self) -> String {
        let run = &self.run;
        let mut agenda: Vec<String> = run.agenda.iter().map(|(at, _, what)| format!("{at} {what:?}")).collect();
        agenda.sort_unstable();
        let (guest, source, destination) = (&run.guest, &run.source, &run.destination);
        let machines = (&guest.machine, &source.machine, &destination.machine);
        let disks = (
            (guest.disk != guest.machine).then_some(&guest.disk),
            (source.disk != source.machine).then_some(&source.disk),
            (destination.disk.as_ref() != Some(&destination.machine)).then_some(&destination.disk),
        );
        let text = format!(
            "{:?}{:?}{:?}{:?}{:?}{:?}{}{}{:?}{}{:?}{:?}{:?}{}{:?}{:?}",
            machines,
            disks,
            (&guest.kernel, guest.up, guest.life, guest.sure, guest.settled),
            (&source.end, source.up, source.inside, source.aborted),
            (&destination.end, destination.up, &run.before),
            run.vm,
            run.incoming,
            run.begun,
            run.truth,
            run.released,
            run.dark_since,
            agenda,
            self.late,
            self.faults,
            self.claimed_since,
            (run.offer.join, run.scenario.switch, run.scenario.fate, run.scenario.copy, run.offer.drain),
        );
        from_now(&text, run.now)
    }

    pub fn since(&self) -> Millis {
        self.run.now - START
    }

    /// How it stands, in few words.
    pub fn told(&self) -> String {
        let run = &self.run;
        if let Some(broken) = &self.broken {
            return format!("BROKEN: {broken}");
        }
        let source = run.source.machine.as_ref().map_or("none", |machine| machine.name());
        let names = [run.guest.machine.name(), source, run.destination.machine.name()].join(", ");
        let scenario = &run.scenario;
        if self.since() == 0 && run.guest.life == 0 {
            return format!("{names}; {:?} {:?} {:?}", scenario.join, scenario.switch, scenario.fate);
        }
        format!("{names}; VM {:?}", run.vm)
    }

    pub fn name(&self, action: &Action) -> String {
        let named = |what: &What| brief(&from_now(&format!("{what:?}"), self.run.now));
        let of = |index: &usize| self.run.agenda.get(*index).map_or_else(String::new, |(_, _, what)| named(what));
        match action {
            Action::Deliver(index) => of(index),
            Action::Lose(index) => format!("lost: {}", of(index)),
            Action::Repeat(index) => format!("for the first time: {}", of(index)),
            Action::Delay(index) => format!("late: {}", of(index)),
            Action::DeliverLate(index) => {
                format!("at last: {}", self.late.get(*index).map_or_else(String::new, |(_, what)| named(what)))
            }
            Action::DieAt(action, order) => format!("{}, and dies at order {order}", self.name(action)),
            Action::Next => self.run.clone().next().map_or_else(String::new, |(_, what)| named(&what)),
            other => format!("{other:?}"),
        }
    }
}

/// A text with every time in it told from `now`.
fn from_now(text: &str, now: Millis) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(begin);
        let (digits, after) = from.split_at(from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len()));
        told.push_str(before);
        match digits.parse::<Millis>() {
            Ok(time) if digits.len() >= 10 => {
                let ago = now as i64 - time as i64;
                told.push_str(&format!("{:+}", -ago.min(LONG_AGO as i64)));
            }
            _ => told.push_str(digits),
        }
        rest = after;
    }
    told.push_str(rest);
    told
}

fn digest(key: &str) -> (u64, u64) {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, key).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.digest.hash(hasher);
        self.broken.hash(hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &State) -> bool {
        (self.digest, &self.broken) == (other.digest, &other.broken)
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.told())
    }
}
