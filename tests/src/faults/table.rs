//! What was tried, in one table.

use std::collections::BTreeMap;

use super::{CATALOGUE, Outcome};

#[derive(Default)]
struct Line<'a> {
    row: &'a str,
    runs: usize,
    settled: usize,
    as_before: usize,
    connections: usize,
    lost: usize,
    wrong: u64,
    residue: usize,
    silent: Vec<u64>,
    violations: usize,
}

impl Line<'_> {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.settled += usize::from(outcome.ended == "settled");
        self.as_before += usize::from(outcome.ended == "as before");
        self.connections += outcome.connections;
        self.lost += outcome.lost;
        self.wrong += outcome.bytes_wrong;
        self.residue += outcome.residue.len();
        self.silent.extend(outcome.silent_ms);
        self.violations += usize::from(outcome.violation.is_some());
    }

    fn cells(&self) -> [String; 9] {
        let silent = self.silent.iter().max().map_or_else(|| "-".into(), u64::to_string);
        [
            self.runs.to_string(),
            self.settled.to_string(),
            self.as_before.to_string(),
            self.connections.to_string(),
            (self.connections - self.lost).to_string(),
            self.wrong.to_string(),
            self.residue.to_string(),
            silent,
            self.violations.to_string(),
        ]
    }
}

/// One line for each fault that was tried, in the order of the catalogue, then what else there is, and their sum.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    let mut lines = BTreeMap::<&str, Line>::new();
    let mut sum = Line::default();
    for outcome in outcomes {
        lines.entry(&outcome.fault).or_insert_with(|| Line { row: &outcome.row, ..Line::default() }).add(outcome);
        sum.add(outcome);
    }
    let mut text = String::from(
        "| row | fault | runs | settled | as before | connections before | after | bytes wrong | residue | silent ms | violations |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut write = |name: &str, line: &Line| {
        text.push_str(&format!("| {} | {name} | {} |\n", line.row, line.cells().join(" | ")));
    };
    for fault in CATALOGUE {
        if let Some(line) = lines.remove(fault.name) {
            write(fault.name, &line);
        }
    }
    // No fault, or one of an older record's that is called otherwise now.
    lines.iter().for_each(|(name, line)| write(name, line));
    text.push_str(&format!("| | **all** | {} |\n", sum.cells().join(" | ")));
    text
}
