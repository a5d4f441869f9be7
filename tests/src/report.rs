//! The demo's results: as JSON, as a table on the terminal, as a page with pictures.

use serde::{Deserialize, Serialize};

mod chart;
mod html;
mod table;

pub(crate) use chart::{escape, number, step};
pub use html::{Curves, Mark, html};
pub(crate) use table::spread;
pub use table::{comparison, table};

/// A step: the guest changes the priority of its paths.
pub const FLIP: &str = "the agent's flip";
/// Steps: the last data before the longest gap of all connections, and the first after it.
pub const GAP_BEGINS: &str = "the longest gap begins";
pub const GAP_ENDS: &str = "the longest gap ends";

/// A run of the demo. Its JSON is the demo's interface. Times are in milliseconds, rates in 10^6 bits per second;
/// what never happened is null.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Demo {
    pub mode: String,
    pub moves: Vec<MoveReport>,
}

/// One move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MoveReport {
    pub from: String,
    pub to: String,
    pub hooks: Vec<HookCall>,
    pub connections: Connections,
    pub legacy: Legacy,
    pub bytes_wrong: u64,
    pub frames_lost: u64,
    /// From QEMU's STOP on the source to its RESUME on the destination.
    pub pause_ms: Option<f64>,
    /// The longest time without received data, over all MPTCP connections, the pause included.
    pub longest_gap_ms: Option<f64>,
    pub udp_gap_ms: Option<f64>,
    pub udp_lost: u64,
    pub arrival_to_direct_ms: ArrivalToDirect,
    pub rtt_before_ms: Option<f64>,
    pub rtt_after_ms: Option<f64>,
    pub mbit_before: Option<f64>,
    pub mbit_after: Option<f64>,
    pub tunnels_left: u64,
    pub steps: Vec<Step>,
}

/// A call of the hook by libvirt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HookCall {
    pub host: String,
    pub operation: String,
    pub ms: f64,
}

/// The MPTCP connections of one move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    pub total: u64,
    pub joined_before_arrival: u64,
    pub survived: u64,
    pub on_direct_path: u64,
}

/// The plain TCP connections of one move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Legacy {
    pub total: u64,
    pub survived: u64,
}

/// From RESUME to the first data on the direct path.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ArrivalToDirect {
    pub to_client: Option<f64>,
    pub to_vm: Option<f64>,
}

/// Something that happened, counted from the beginning of the move.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub at_ms: f64,
}

impl MoveReport {
    /// What the pause alone does not explain of the longest gap.
    pub fn gap_minus_pause_ms(&self) -> Option<f64> {
        Some((self.longest_gap_ms? - self.pause_ms?).max(0.0))
    }

    /// From RESUME to the first frame that the guest itself sent: before it, no agent could have done anything.
    pub fn awake_ms(&self) -> Option<f64> {
        self.between_ms("arrived", "first frame of the VM")
    }

    /// From RESUME to the agent's flip; negative where it was told to flip before the VM stopped.
    pub fn flip_ms(&self) -> Option<f64> {
        self.between_ms("arrived", FLIP)
    }

    /// From STOP to the last data before the longest gap: what was under way then still arrives.
    pub fn in_flight_ms(&self) -> Option<f64> {
        self.between_ms("paused", GAP_BEGINS)
    }

    /// From RESUME to the end of the longest gap: the slowest connection has data again. Less [`Self::in_flight_ms`] it is
    /// what the gap exceeds the pause by.
    pub fn all_again_ms(&self) -> Option<f64> {
        self.between_ms("arrived", GAP_ENDS)
    }

    fn between_ms(&self, from: &str, to: &str) -> Option<f64> {
        let at = |name: &str| self.steps.iter().find(|step| step.name == name).map(|step| step.at_ms);
        Some(at(to)? - at(from)?)
    }

    /// What went wrong, in words; `direct` tells whether the direct path was to be reached at all. Empty: nothing.
    pub fn faults(&self, direct: bool) -> Vec<String> {
        let Connections { total, survived, on_direct_path, .. } = self.connections;
        let mut faults = Vec::new();
        let mut note = |wrong: bool, what: String| {
            if wrong {
                faults.push(what);
            }
        };
        note(survived < total, format!("{} of {total} connections died", total.saturating_sub(survived)));
        note(
            self.legacy.survived < self.legacy.total,
            format!("{} plain TCP connections died", self.legacy.total.saturating_sub(self.legacy.survived)),
        );
        note(self.bytes_wrong > 0, format!("{} bytes were wrong", self.bytes_wrong));
        note(
            direct && on_direct_path < total,
            format!("{} of {total} connections are not on the direct path", total.saturating_sub(on_direct_path)),
        );
        note(self.tunnels_left > 0, format!("{} tunnels were left behind", self.tunnels_left));
        faults
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample() -> MoveReport {
        MoveReport {
            from: "montreal".into(),
            to: "dallas".into(),
            hooks: vec![HookCall { host: "dallas".into(), operation: "migrate begin".into(), ms: 312.5 }],
            connections: Connections { total: 8, joined_before_arrival: 8, survived: 8, on_direct_path: 8 },
            legacy: Legacy { total: 1, survived: 1 },
            pause_ms: Some(407.0),
            longest_gap_ms: Some(426.0),
            udp_gap_ms: Some(430.0),
            arrival_to_direct_ms: ArrivalToDirect { to_client: Some(41.0), to_vm: Some(43.5) },
            rtt_before_ms: Some(70.6),
            rtt_after_ms: Some(2.9),
            mbit_before: Some(181.0),
            mbit_after: Some(182.0),
            steps: vec![Step { name: "prepared".into(), at_ms: 320.0 }],
            ..MoveReport::default()
        }
    }

    #[test]
    fn the_json_has_the_agreed_names() {
        let demo = Demo { mode: "pre-join".into(), moves: vec![sample()] };
        let value = serde_json::to_value(&demo).unwrap();
        let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<String>>();
        let mut expected = vec![
            "from",
            "to",
            "hooks",
            "connections",
            "legacy",
            "bytes_wrong",
            "frames_lost",
            "pause_ms",
            "longest_gap_ms",
            "udp_gap_ms",
            "udp_lost",
            "arrival_to_direct_ms",
            "rtt_before_ms",
            "rtt_after_ms",
            "mbit_before",
            "mbit_after",
            "tunnels_left",
            "steps",
        ];
        let mut found = names(&value["moves"][0]);
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(value["mode"], "pre-join");
        assert_eq!(value["moves"][0]["connections"]["joined_before_arrival"], 8);
        assert_eq!(value["moves"][0]["arrival_to_direct_ms"]["to_client"], 41.0);
        assert_eq!(value["moves"][0]["steps"][0]["at_ms"], 320.0);
    }

    #[test]
    fn what_never_happened_is_null() {
        let value = serde_json::to_value(MoveReport::default()).unwrap();
        assert!(value["arrival_to_direct_ms"]["to_vm"].is_null());
    }

    #[test]
    fn the_gap_is_the_pause_and_its_two_ends() {
        let step = |name: &str, at_ms| Step { name: name.into(), at_ms };
        let steps = vec![step("paused", 100.0), step(GAP_BEGINS, 130.0), step("arrived", 500.0), step(GAP_ENDS, 552.0)];
        let report = MoveReport { pause_ms: Some(400.0), longest_gap_ms: Some(422.0), steps, ..MoveReport::default() };
        assert_eq!(report.in_flight_ms(), Some(30.0));
        assert_eq!(report.all_again_ms(), Some(52.0));
        assert_eq!(report.gap_minus_pause_ms(), Some(52.0 - 30.0));
    }

    #[test]
    fn every_fault_is_named() {
        assert_eq!(sample().faults(true), Vec::<String>::new());
        let bad = MoveReport {
            connections: Connections { total: 8, survived: 7, on_direct_path: 6, ..Connections::default() },
            legacy: Legacy { total: 1, survived: 0 },
            bytes_wrong: 1,
            tunnels_left: 2,
            ..sample()
        };
        assert_eq!(bad.faults(true).len(), 5);
        assert_eq!(bad.faults(false).len(), 4);
    }
}
