//! Numbers of all moves so far, for a monitoring system: a text file that the textfile collector of Prometheus'
//! node_exporter picks up. They are kept beside the history: counters never fall, and the history forgets.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use lsm_protocol::report::Sums;
use serde::{Deserialize, Serialize};

use crate::openmetrics::Exposition;

/// Upper edges of the buckets for times from the pause of a VM on this machine to a download from far away.
const SHORT: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The same for a whole move, which may wait hours for the last legacy connection.
const LONG: [f64; 10] = [1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0, 604_800.0];

/// A move that is over, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct Figures<'a> {
    /// Whose part in it: `guest`, `source` or `destination`.
    pub role: &'a str,
    pub outcome: &'a str,
    /// From its beginning to its end, in milliseconds.
    pub took: u64,
    pub pause: Option<u64>,
    pub gap: Option<u64>,
    pub connections: Option<Sums>,
    /// When it ended, in milliseconds since 1970.
    pub ended: u64,
}

/// Of all moves so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    moves: BTreeMap<String, u64>,
    connections: BTreeMap<String, u64>,
    took: Histogram,
    pause: Histogram,
    gap: Histogram,
    last: u64,
}

/// Times in seconds. Beyond the last edge they are only counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Histogram {
    /// How many were no larger than the edge of that number, and larger than the one before.
    within: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    fn take(&mut self, milliseconds: u64, edges: &[f64]) {
        let seconds = milliseconds as f64 / 1_000.0;
        self.within.resize(edges.len(), 0);
        if let Some(place) = edges.iter().position(|edge| seconds <= *edge) {
            self.within[place] += 1;
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn show(&self, name: &str, edges: &[f64], to: &mut Exposition) {
        let mut below = 0;
        for (i, edge) in edges.iter().enumerate() {
            below += self.within.get(i).copied().unwrap_or_default();
            to.sample(&format!("{name}_bucket"), &[("le", &format!("{edge:?}"))], below as f64);
        }
        to.sample(&format!("{name}_bucket"), &[("le", "+Inf")], self.count as f64);
        to.sample(&format!("{name}_count"), &[], self.count as f64);
        to.sample(&format!("{name}_sum"), &[], self.sum);
    }
}

impl Metrics {
    /// One more move.
    pub fn take(&mut self, of: &Figures) {
        *self.moves.entry(format!("{} {}", of.role, of.outcome)).or_default() += 1;
        self.took.take(of.took, &LONG);
        if let Some(pause) = of.pause {
            self.pause.take(pause, &SHORT);
        }
        if let Some(gap) = of.gap {
            self.gap.take(gap, &SHORT);
        }
        if let Some(Sums { moved, moved_late, ended, stayed, legacy, cut, lost, kept }) = of.connections {
            for (class, number) in [
                ("moved", moved),
                ("moved_late", moved_late),
                ("ended", ended),
                ("stayed", stayed),
                ("legacy", legacy),
                ("cut", cut),
                ("lost", lost),
                ("kept", kept),
            ] {
                *self.connections.entry(class.to_owned()).or_default() += u64::from(number);
            }
        }
        self.last = of.ended;
    }

    /// As OpenMetrics text. `prefix`: the program's, like `lsm_host`.
    pub fn text(&self, prefix: &str) -> String {
        let mut to = Exposition::default();
        let name = |rest: &str| format!("{prefix}_{rest}");
        to.family(
            &name("moves"),
            "counter",
            "Migrations that are over, by this machine's part in them and by outcome.",
        );
        for (key, number) in &self.moves {
            let (role, outcome) = key.split_once(' ').unwrap_or((key, ""));
            to.sample(&name("moves_total"), &[("role", role), ("outcome", outcome)], *number as f64);
        }
        to.family(&name("connections"), "counter", "Connections of the VMs that moved, by what became of them.");
        for (class, number) in &self.connections {
            to.sample(&name("connections_total"), &[("became", class)], *number as f64);
        }
        let histograms = [
            (
                "move_duration_seconds",
                &self.took,
                LONG,
                "From the beginning of a migration until its old path was left.",
            ),
            ("move_pause_seconds", &self.pause, SHORT, "How long libvirt says that the VM stood."),
            (
                "move_gap_seconds",
                &self.gap,
                SHORT,
                "The longest that a busy connection can have had no data, by the VM's clock.",
            ),
        ];
        for (rest, histogram, edges, help) in histograms {
            to.family(&name(rest), "histogram", help);
            histogram.show(&name(rest), &edges, &mut to);
        }
        to.family(&name("last_move_timestamp_seconds"), "gauge", "When the last migration was over.");
        to.sample(&name("last_move_timestamp_seconds"), &[], self.last as f64 / 1_000.0);
        to.finish()
    }
}

/// The numbers on disk: beside the history, and as a text where a collector looks for it.
#[derive(Clone, Debug)]
pub struct Kept {
    state: PathBuf,
    text: Option<PathBuf>,
    prefix: &'static str,
}

impl Kept {
    /// `directory`: the history's; `collector`: where the text goes, if anywhere.
    pub fn new(directory: &Path, collector: Option<&Path>, prefix: &'static str) -> Kept {
        Kept {
            state: directory.join("metrics.state"),
            text: collector.map(|directory| directory.join(format!("{prefix}.prom"))),
            prefix,
        }
    }

    /// Adds a move, and writes both. Without a collector nothing is kept.
    pub fn take(&self, of: &Figures) {
        let Some(text) = &self.text else { return };
        let mut metrics: Metrics = match fs::read(&self.state) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(%error, file = %self.state.display(), "cannot understand the numbers of past moves; counting anew");
                Metrics::default()
            }),
            Err(_) => Metrics::default(), // the first; or written anew below, and the error is of that
        };
        metrics.take(of);
        let written = || -> io::Result<()> {
            crate::write(&self.state, &serde_json::to_vec(&metrics)?, 0o600)?;
            crate::write(text, metrics.text(self.prefix).as_bytes(), 0o644)
        };
        if let Err(error) = written() {
            tracing::warn!(%error, file = %text.display(), "cannot write the numbers of past moves");
        }
    }
}
