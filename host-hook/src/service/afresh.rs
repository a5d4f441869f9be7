//! What became of the VMs while no event told it (this service was away, or libvirt was): libvirt is asked, and every
//! migration hears how things are. A VM that is here unknown to us, since its hooks found nobody, becomes known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lsm_protocol::Uuid;
use tokio::sync::mpsc;

use super::{Input, Service};
use crate::{
    arrival, departure,
    domain::Domain,
    inventory::{Vm, parse_uuid},
    libvirt::{self, Place, State},
    story,
};

/// While there is a migration, libvirt is asked so often anyway: an event lost is a black hole until it is noticed. Most
/// moves are over before the first time: at the stop the service has other things to do.
pub(super) const AGAIN: Duration = Duration::from_secs(30);
/// A libvirt that starts answers after some seconds.
const ATTEMPTS: u32 = 10;
const RETRY: Duration = Duration::from_secs(1);

/// How things were when libvirt was asked.
pub(super) struct Found {
    /// The question that this answers.
    number: u64,
    states: BTreeMap<Uuid, State>,
    /// Managed VMs that are here and were not known.
    unknown: Vec<Domain>,
}

/// The last question.
#[derive(Default)]
pub(super) struct Question {
    number: u64,
    /// Of these VMs a hook or an event has told since, and knows better than the answer.
    told: BTreeSet<Uuid>,
}

impl Question {
    pub(super) fn overtaken(&mut self, vm: Uuid) {
        self.told.insert(vm);
    }
}

impl Service {
    /// The answer comes as [`Input::Found`].
    pub(super) fn ask_afresh(&mut self) {
        self.question = Question { number: self.question.number + 1, told: BTreeSet::new() };
        let number = self.question.number;
        let known: BTreeSet<Uuid> = self.host.inventory.borrow().all().map(|vm| vm.uuid).collect();
        tokio::task::spawn_local(ask(number, known, self.inputs.clone()));
    }

    pub(super) fn found(&mut self, found: Found) {
        let Found { number, states, unknown } = found;
        if number != self.question.number {
            return; // asked again since
        }
        let told = std::mem::take(&mut self.question.told);
        for vm in unknown.iter().filter_map(|domain| Vm::of(domain, &self.host.config)) {
            if !told.contains(&vm.uuid) {
                tracing::info!(vm = vm.name, "found here");
                self.started(vm, false);
            }
        }
        let mut concerned: BTreeSet<Uuid> = self.host.inventory.borrow().all().map(|vm| vm.uuid).collect();
        concerned.extend(self.departures.values().map(|(vm, _)| *vm));
        concerned.extend(self.arrivals.values().map(|(vm, _)| *vm));
        for uuid in concerned.difference(&told) {
            match states.get(uuid) {
                Some(State::Running) => {
                    self.tell_departures(*uuid, || departure::News::Runs);
                    self.tell_arrivals(*uuid, || arrival::News::Resumed);
                }
                Some(State::Paused) => {
                    self.tell_departures(*uuid, || departure::News::Suspended);
                    self.tell_arrivals(*uuid, || arrival::News::Begun);
                }
                None => {
                    self.host.inventory.borrow_mut().remove(*uuid);
                    self.tell_departures(*uuid, || departure::News::VmGone);
                    self.tell_arrivals(*uuid, || arrival::News::NotHere);
                }
            }
        }
    }
}

async fn ask(number: u64, known: BTreeSet<Uuid>, inputs: mpsc::UnboundedSender<Input>) {
    let place = Place::default();
    let mut why = String::new();
    for _ in 0..ATTEMPTS {
        match libvirt::domains(&place).await {
            Ok(domains) => {
                let mut unknown = Vec::new();
                let mut states = BTreeMap::new();
                for (name, state) in domains {
                    let Some(uuid) = parse_uuid(&name) else { continue };
                    states.insert(uuid, state);
                    if !known.contains(&uuid) {
                        unknown.extend(managed(&place, &name).await);
                    }
                }
                let _ = inputs.send(Input::Found(Box::new(Found { number, states, unknown })));
                return;
            }
            Err(error) => why = story(&error),
        }
        tokio::time::sleep(RETRY).await;
    }
    tracing::warn!(why, "libvirt does not say which VMs run; what happened to them meanwhile is not known");
}

async fn managed(place: &Place, uuid: &str) -> Option<Domain> {
    match libvirt::description(place, uuid).await {
        Ok(xml) => Domain::parse(&xml).ok().filter(|domain| !domain.vnics.is_empty()),
        Err(error) => {
            tracing::warn!(uuid, error = story(&error), "libvirt does not describe this VM");
            None
        }
    }
}
