//! One fault in each move: a VM with live connections goes there and back, something breaks at a step that can be seen
//! from outside, and afterwards everything must be as the fault's row says: connections alive, every byte right, hosts and
//! guest as after an undisturbed move, or as before it.

mod catalogue;
mod record;
mod scene;
mod step;
mod strikes;
mod table;

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use catalogue::{CATALOGUE, Ends, Fault};
pub use record::{Line, Record};
pub use scene::Scene;
pub use step::Step;
pub use table::table;

use crate::{
    shell::{LabError, Result, chain},
    snapshot::Snapshot,
};

/// libvirt's own patience with a cut WAN is 57 s.
const VIRSH: Duration = Duration::from_secs(150);
/// Most have settled by then; of the others it is worth knowing what their connections do.
const SOON: Duration = Duration::from_secs(5);
/// Leases (20 s on this stage) and their repetitions are over.
const SETTLE: Duration = Duration::from_secs(90);

/// What came of one fault in one move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    pub fault: String,
    pub at: String,
    /// The row of the table that it belongs to.
    pub row: String,
    pub to: String,
    /// How the move ended: `settled`, `as before` or nothing that the row allows.
    pub ended: String,
    pub connections: usize,
    pub lost: usize,
    pub bytes_wrong: u64,
    /// What is there and should not be, or the other way round.
    pub residue: Vec<String>,
    /// Of a source that stopped the VM and went on with it: how long its address was silent, in milliseconds.
    pub silent_ms: Option<u64>,
    /// What the row does not allow.
    pub violation: Option<String>,
    pub seconds: f64,
}

impl Outcome {
    /// Before anything is known of it.
    fn unknown(row: &str, fault: &str, at: &str) -> Outcome {
        Outcome {
            fault: fault.into(),
            at: at.into(),
            row: row.into(),
            to: String::new(),
            ended: "unknown".into(),
            connections: 0,
            lost: 0,
            bytes_wrong: 0,
            residue: Vec::new(),
            silent_ms: None,
            violation: None,
            seconds: 0.0,
        }
    }

    /// Of the stage itself, in which no fault had struck: it could not be set, or at the end a connection was not whole.
    #[must_use]
    pub fn of_the_stage(at: &str, error: &LabError) -> Outcome {
        Outcome { violation: Some(chain(error)), ..Outcome::unknown("no fault", "undisturbed", at) }
    }

    /// Nothing that the row does not allow.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.violation.is_none() && self.lost == 0 && self.bytes_wrong == 0 && self.residue.is_empty()
    }
}

/// Faults to choose from, each with one of its steps, by what the operator asked for: `NAME` or `NAME@STEP`.
#[must_use]
pub fn chosen(only: &[String]) -> Vec<(&'static Fault, Step)> {
    let all = CATALOGUE.iter().flat_map(|fault| fault.at.iter().map(move |step| (fault, *step)));
    let wanted = |fault: &Fault, step: Step| {
        let named = |name: &String| *name == fault.name || *name == format!("{}@{}", fault.name, step.name());
        only.is_empty() || only.iter().any(named)
    };
    all.filter(|(fault, step)| wanted(fault, *step)).collect()
}

/// A move to the other site with this fault in it.
pub fn strike(scene: &mut Scene, fault: &'static Fault, step: Step) -> Outcome {
    let begun = Instant::now();
    let mut outcome = Outcome::unknown(fault.row, fault.name, step.name());
    let ended = moved(scene, fault, step, &mut outcome);
    outcome.to.clone_from(&scene.to);
    // The network is whole again before connections are judged, whatever went wrong.
    let healed = scene.heal();
    (outcome.connections, outcome.lost) = scene.connections.lost();
    outcome.bytes_wrong = scene.connections.bytes_wrong();
    outcome.silent_ms = scene.silent_ms.take();
    outcome.violation = ended.and(healed).err().map(|error| chain(&error));
    if scene.stage.guest.kernel_died() {
        outcome.violation = Some("the VM's kernel died".into());
    }
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}

fn moved(scene: &mut Scene, fault: &Fault, step: Step, outcome: &mut Outcome) -> Result<()> {
    scene.begin()?;
    let before = Snapshot::take(&scene.stage)?;
    (fault.set)(scene)?;
    scene.note(&format!("{} at {}: looked at everything", fault.name, step.name()));
    if step == Step::Before {
        (fault.strike)(scene)?;
    }
    let mut migration = scene.migrate(fault, step)?;
    if step != Step::Before {
        if let Err(error) = step.wait(scene) {
            let virsh = migration.end(VIRSH);
            return Err(LabError::Other(format!("{}; virsh: {virsh:?}", chain(&error))));
        }
        scene.note("the step has come");
        (fault.strike)(scene)?;
        scene.note("struck");
    }
    let virsh = migration.end(VIRSH);
    scene.virsh_said(&virsh);
    scene.note("virsh has returned");
    (fault.relent)(scene)?;
    scene.heal()?;
    let settled = match (fault.ends, &virsh) {
        (Ends::Settled, Err(error)) => return Err(LabError::Other(format!("the move failed: {}", chain(error)))),
        (Ends::AsBefore, Ok(())) => return Err(LabError::Other("the move succeeded".into())),
        (Ends::Refused(words), Err(error)) if !chain(error).contains(words) => {
            return Err(LabError::Other(format!("it was not refused with {words:?}: {}", chain(error))));
        }
        (Ends::Refused(_), Ok(())) => return Err(LabError::Other("it was not refused".into())),
        (Ends::SourceLost, _) => true,
        (_, virsh) => virsh.is_ok(),
    };
    outcome.ended = if settled { "settled" } else { "as before" }.into();
    let here = scene.stage.guest.site()?.name().to_owned();
    let should = if settled { &scene.to } else { &scene.from };
    if here != *should {
        return Err(LabError::Other(format!("the VM is in {here}")));
    }
    scene.connections.alive()?;
    scene.note("connections are alive");
    if fault.spoils {
        // Of a plain connection whose tunnel is gone, the guest says that it holds the old path.
        return scene.stage.agent_is(&["idle", "settling"], SETTLE).map(drop);
    }
    if scene.stage.agent_is(&["idle"], SOON).is_err() {
        scene.note(&scene.subflows());
        scene.stage.agent_is(&["idle"], SETTLE)?;
    }
    scene.stage.settled(SETTLE)?;
    scene.note("settled");
    // Who settled is compared with an undisturbed move to the same place.
    let reference = if settled { scene.home(&here)? } else { &before };
    let explained = scene.explained(settled);
    let explained: Vec<&str> = explained.iter().map(String::as_str).collect();
    outcome.residue = reference.left(&scene.stage, Duration::from_secs(20), &explained)?;
    scene.note("compared");
    Ok(())
}
