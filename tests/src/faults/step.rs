//! The steps of a move that can be seen from outside, as they happen: by the state files of the hosts' services, and by
//! QEMU's own events.

use std::time::Duration;

use super::Scene;
use crate::shell::{Result, wait_for};

/// Each comes within this, or the move is over.
const LIMIT: Duration = Duration::from_secs(90);

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The move has not begun: what is wrong is wrong from the start.
    Before,
    /// libvirt's hook waits at the destination.
    Hook,
    /// The source has told the guest to prepare.
    Preparing,
    /// The source has the guest's answer.
    Prepared,
    /// Memory is being copied.
    Copying,
    /// The early flip is ordered.
    Flipped,
    /// The CPUs have stopped at the source.
    Stopped,
    /// They run at the destination.
    Resumed,
    /// The destination knows that the guest has switched for good.
    Settling,
}

impl Step {
    /// On the command line and in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Step::Before => "before",
            Step::Hook => "hook",
            Step::Preparing => "preparing",
            Step::Prepared => "prepared",
            Step::Copying => "copying",
            Step::Flipped => "flipped",
            Step::Stopped => "stopped",
            Step::Resumed => "resumed",
            Step::Settling => "settling",
        }
    }

    /// Whether the copy must last, for the step to be met.
    pub(super) fn wants_time(self) -> bool {
        matches!(self, Step::Preparing | Step::Prepared | Step::Copying | Step::Flipped | Step::Stopped)
    }

    pub(super) fn wait(self, scene: &Scene) -> Result<()> {
        let departure = || scene.machine(&scene.from, "departure");
        let arrival = || scene.machine(&scene.to, "arrival");
        let is = |machine: Option<(String, serde_json::Value)>, names: &[&str]| {
            machine.is_some_and(|(name, _)| names.contains(&name.as_str()))
        };
        let seen = || match self {
            Step::Before => true,
            Step::Hook => arrival().is_some(),
            Step::Preparing => is(departure(), &["Preparing"]),
            Step::Prepared => is(departure(), &["Copying"]),
            Step::Copying => scene.copied().is_some(),
            Step::Flipped => departure().is_some_and(|(_, state)| state["flipped"] == true),
            Step::Stopped => scene.qemu_said(&scene.from, "event STOP"),
            Step::Resumed => scene.qemu_said(&scene.to, "event RESUME"),
            Step::Settling => arrival().is_some_and(|(name, state)| name == "Arrived" && !state["switched"].is_null()),
        };
        wait_for(&format!("the move to be {}", self.name()), LIMIT, || seen().then_some(()))?;
        if self == Step::Flipped {
            // Ordered; and carried out a moment later.
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}
