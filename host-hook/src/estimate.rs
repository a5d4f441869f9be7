//! `lsm-hook estimate`: what a move would take, before it is made. Looks at the VM, the way and the other host, and has
//! `lsm-plan` work out the rest. Changes nothing, and holds up nobody.

mod memory;
mod way;
mod words;

use std::time::{Duration, Instant};

use lsm_plan::{Abilities, Advice, Predictions, Situation, Watched, Writes, advise};
use serde::Serialize;

use self::memory::{Memory, Seen};
use crate::{
    config::Config,
    domain::{Domain, DomainError},
    libvirt::{self, LibvirtError, Place, Power, Stats},
    peer::{Identity, PeerError},
};

/// For how long the VM is watched, in seconds, one after the other. More than one: what is written over and over and
/// what is written once differ only in time.
pub const WATCHED: [u32; 3] = [1, 3, 9];
/// The pause that QEMU aims at where nobody said otherwise (migration/options.c, `DEFAULT_MIGRATE_SET_DOWNTIME`).
const DOWNTIME: f64 = 0.3;

/// What a move would take.
#[derive(Debug, Clone, Serialize)]
pub struct Estimate {
    pub vm: String,
    pub to: String,
    pub situation: Situation,
    pub ways: Predictions,
    pub can: Abilities,
    pub advice: Advice,
    /// Whose word the rate is.
    pub rate_from: String,
    /// What could not be looked at, and what was taken instead.
    pub unsure: Vec<String>,
}

/// Why there is no estimate.
#[derive(Debug, thiserror::Error)]
pub enum EstimateError {
    #[error("there is no [peer.{to}] in the configuration; it knows {}", if .known.is_empty() { "no peer" } else { .known })]
    Stranger { to: String, known: String },
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{to} answers the call, and no question: {why}; is its lsm-hook as new as this one?")]
    Mute { to: String, why: String },
    #[error("no VM {vm} here: {said}; \"virsh list --all\" shows which there are")]
    NoVm { vm: String, said: String },
    #[error(
        "VM {0} is off: there is no memory to move; start it, or move its definition with \"virsh migrate --offline\""
    )]
    Off(String),
    #[error(
        "libvirt cannot tell how fast VM {vm} writes its memory: {said}; that needs libvirt 7.2 and QEMU 5.2 or later"
    )]
    NoDirtyRate { vm: String, said: String },
    #[error("nobody says how fast the way to {to} is ({why}); say it with --rate MBIT, as iperf measures it")]
    NoRate { to: String, why: String },
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    #[error(transparent)]
    Domain(#[from] DomainError),
}

/// Looks and works it out. `mbit`: what the stream gets, where the operator knows. `told` hears what takes time.
///
/// # Errors
/// What cannot be looked at, and what to do.
pub async fn estimate(
    config: &Config,
    identity: &Identity,
    vm: &str,
    to: &str,
    mbit: Option<f64>,
    mut told: impl FnMut(&str),
) -> Result<Estimate, EstimateError> {
    let place = Place::default();
    let peer = config
        .peers
        .get(to)
        .ok_or_else(|| EstimateError::Stranger { to: to.to_owned(), known: config.peer_names().join(", ") })?;
    let stats = libvirt::stats(&place, vm).await.map_err(|error| no_vm(vm, error))?;
    if stats.power == Power::Off {
        return Err(EstimateError::Off(vm.to_owned()));
    }
    let domain = Domain::parse(&libvirt::described(&place, vm).await?)?;
    let mut unsure = Vec::new();
    let round_trip = way::round_trip(identity, to, &peer.address, &domain).await?;
    let (rate, rate_from) = match mbit {
        Some(mbit) => (mbit * way::MBIT, "--rate".to_owned()),
        None => way::rate(&peer.address).await.map_err(|why| EstimateError::NoRate { to: to.to_owned(), why })?,
    };
    let memory = Memory::open(&domain.name, stats.memory);
    let seen = memory.as_ref().map_err(String::clone).and_then(Memory::look).unwrap_or_else(|why| {
        unsure.push(format!("{why}; all of the VM's memory is taken to be in use, and not to shrink when compressed"));
        Seen { data: stats.memory as f64, compressed: 1.0 }
    });
    if stats.power == Power::Paused {
        unsure.push("it is paused and writes nothing; what it would write when it runs is another matter".to_owned());
    }
    let writes = watch(&place, vm, &stats, memory.ok().as_ref(), &mut told).await?;
    let situation = Situation {
        memory: stats.memory as f64,
        data: seen.data,
        writes,
        compressed: seen.compressed,
        disk: domain.disks.iter().filter_map(|name| stats.disks.get(name)).sum::<u64>() as f64,
        rate,
        round_trip: round_trip.as_secs_f64(),
        downtime: DOWNTIME,
    };
    let ways = situation.predict();
    let can = Abilities { compressed: libvirt::compresses_in_parallel(&place).await };
    let advice = advise(&situation, &ways, can);
    Ok(Estimate { vm: domain.name, to: to.to_owned(), situation, ways, can, advice, rate_from, unsure })
}

/// By QEMU's own calculation; or, if `memory` can be looked at and more of its pages are than QEMU looks at, by these.
async fn watch(
    place: &Place,
    vm: &str,
    stats: &Stats,
    memory: Option<&Memory>,
    told: &mut impl FnMut(&str),
) -> Result<Writes, EstimateError> {
    if stats.power == Power::Paused {
        return Ok(Writes::default());
    }
    told(&format!("watching VM {vm} for {} s", WATCHED.iter().sum::<u32>()));
    let mut spans = Vec::new();
    let memory = memory.filter(|_| memory::is_finer(stats.memory));
    for seconds in WATCHED {
        let before = memory.and_then(|memory| Some((memory, Instant::now(), memory.prints().ok()?)));
        let dirtied = libvirt::dirtied(place, vm, seconds).await.map_err(|error| no_dirty_rate(vm, error))?;
        let own = before.and_then(|(memory, began, before)| {
            let (seconds, after) = (began.elapsed().as_secs_f64(), memory.prints().ok()?);
            Some(Watched { seconds, bytes: memory.changed(&before, &after) })
        });
        let qemu_s = Watched { seconds: dirtied.within.as_secs_f64(), bytes: dirtied.bytes as f64 };
        spans.push(own.unwrap_or(qemu_s));
    }
    Ok(Writes::watched(&spans, stats.memory as f64))
}

fn no_vm(vm: &str, error: LibvirtError) -> EstimateError {
    match error {
        LibvirtError::Virsh { said, .. } if said.contains("failed to get domain") => {
            EstimateError::NoVm { vm: vm.to_owned(), said: last_line(&said) }
        }
        error => EstimateError::Libvirt(error),
    }
}

fn no_dirty_rate(vm: &str, error: LibvirtError) -> EstimateError {
    match error {
        LibvirtError::Virsh { said, .. } => EstimateError::NoDirtyRate { vm: vm.to_owned(), said: last_line(&said) },
        error => EstimateError::Libvirt(error),
    }
}

fn last_line(said: &str) -> String {
    said.lines().last().unwrap_or_default().trim().trim_start_matches("error: ").to_owned()
}

/// Longer than anybody answers.
const PATIENCE: Duration = Duration::from_secs(5);
