//! What a seed stands for.

use lsm_protocol::{
    Drain, Join, Millis,
    destination::{Policy, Unprepared},
    forecast::Survival,
    source::Switch,
};

use crate::{chance::Chance, world::LEASE};

/// What becomes of libvirt's migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    CancelledInCopy,
    CancelledInStop,
    /// The operator pauses the VM and lets it run again, all during the copy.
    PausedInCopy,
    DestinationDiesInCopy,
    DestinationDiesInStop,
    SourceDies,
}

/// How a run goes wrong.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub join: Join,
    pub drain: Drain,
    pub switch: Switch,
    pub policy: Policy,
    pub fate: Fate,
    pub copy: Millis,
    pub stop: Millis,
    /// In a thousand messages.
    pub lost: u64,
    pub repeated: u64,
    /// Messages take up to this long, each its own time: so they overtake each other.
    pub delay: Millis,
    /// In a thousand orders, the program that carries one out dies at it.
    pub deaths: u64,
    /// In a thousand steps, the guest's kernel refuses.
    pub refusals: u64,
    /// The hosts do not hear each other from, to.
    pub cut: Option<(Millis, Millis)>,
    pub straggler: Option<Millis>,
    pub legacy: Option<Millis>,
    /// The clients do not reach the new LAN from, to.
    pub dead: Option<(Millis, Millis)>,
    /// The VM goes back to where its address is held; until when a connection needs that.
    pub held: Option<Millis>,
}

impl Scenario {
    pub fn new(chance: &mut Chance) -> Scenario {
        let fates = [
            Fate::Arrives,
            Fate::Arrives,
            Fate::Arrives,
            Fate::Arrives,
            Fate::PausedInCopy,
            Fate::CancelledInCopy,
            Fate::CancelledInStop,
            Fate::DestinationDiesInCopy,
            Fate::DestinationDiesInStop,
            Fate::SourceDies,
        ];
        let mut fate = chance.of(&fates);
        let mut cut = None;
        if chance.in_thousand(150) {
            let from = chance.between(0, 15_000);
            cut = Some((from, from + chance.between(100, 4_000)));
        } else if chance.in_thousand(50) {
            // Longer than every lease; libvirt's own connection does not outlive it either.
            let from = chance.between(1_000, 10_000);
            cut = Some((from, from + chance.between(15_000, 40_000)));
            fate = chance.of(&[Fate::CancelledInCopy, Fate::CancelledInStop, Fate::DestinationDiesInCopy]);
        }
        let policy = Policy {
            unprepared: chance.of(&[Unprepared::Refuse, Unprepared::PostJoin, Unprepared::PostJoin]),
            prepare_wait: chance.of(&[0, 1_000, 5_000]),
            survival: Survival::ANY,
        };
        let mut scenario = Scenario {
            join: chance.of(&[Join::Before, Join::Before, Join::Before, Join::After, Join::Never]),
            drain: chance.of(&[Drain::UntilIdle, Drain::UntilIdle, Drain::For(3_000), Drain::Forever]),
            switch: chance.of(&[Switch::Auto, Switch::Early, Switch::Arrival]),
            policy,
            fate,
            copy: chance.of(&[300, 2_000, 9_000, 20_000]),
            stop: chance.between(30, 1_500),
            lost: chance.of(&[0, 0, 100, 300]),
            repeated: chance.of(&[0, 0, 100, 300]),
            delay: chance.of(&[2, 50, 300, 2_000]),
            deaths: chance.of(&[0, 0, 5, 20]),
            refusals: chance.of(&[0, 0, 0, 20]),
            cut,
            straggler: chance.in_thousand(300).then(|| chance.between(0, 30_000)),
            legacy: chance.in_thousand(300).then(|| chance.between(0, 30_000)),
            dead: None,
            held: None,
        };
        // The last draws: what every seed stood for before, it stands for still.
        scenario.policy.survival = chance.of(&[Survival::ANY, Survival::ANY, Survival::Percent(90)]);
        scenario.held = chance.in_thousand(150).then(|| chance.between(0, 30_000));
        // No way back without the guest; and a cut that is longer than a lease ends what was held.
        let outlived = scenario.cut.is_some_and(|(from, to)| to - from > LEASE / 2);
        if scenario.join == Join::Never || outlived {
            scenario.held = None;
        }
        if scenario.fate == Fate::Arrives && chance.in_thousand(300) {
            let from = scenario.copy + chance.between(0, 3_000);
            scenario.dead = Some((from, from + chance.between(1_000, 30_000)));
        }
        scenario
    }
}
