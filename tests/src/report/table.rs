//! The table at the end of the demo: medians, and the spread where there were several moves.

use std::fmt::Write as _;

use super::{Demo, MoveReport};
use crate::measure::median;

const LABEL: usize = 44;

/// A table for the terminal, without colours, of lines that end in a line feed.
pub fn table(demo: &Demo) -> String {
    let moves = &demo.moves;
    let mut text = String::new();
    let count = match moves.len() {
        1 => "1 move".to_owned(),
        count => format!("{count} moves, medians (smallest to largest)"),
    };
    let _ = writeln!(text, "{}, {count}", demo.mode);
    let _ = writeln!(text, "{}", "-".repeat(LABEL + 32));
    for (label, value) in rows(moves) {
        let _ = writeln!(text, "{label:<LABEL$}{value}");
    }
    text
}

/// Several runs beside each other, as a table in Markdown: a column for each name.
pub fn comparison(title: &str, runs: &[(String, Demo)]) -> String {
    let mut text = String::new();
    let line = |text: &mut String, label: &str, cells: &[String]| {
        let _ = writeln!(text, "| {label} | {} |", cells.join(" | "));
    };
    line(&mut text, title, &runs.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
    let _ = writeln!(text, "|{}", "---|".repeat(runs.len() + 1));
    line(&mut text, "moves", &runs.iter().map(|(_, demo)| demo.moves.len().to_string()).collect::<Vec<_>>());
    let columns: Vec<_> = runs.iter().map(|(_, demo)| rows(&demo.moves)).collect();
    for (row, (label, _)) in columns.first().into_iter().flatten().enumerate() {
        line(&mut text, label, &columns.iter().map(|column| column[row].1.clone()).collect::<Vec<_>>());
    }
    text
}

/// Label and value of each line; also the page's.
pub(super) fn rows(moves: &[MoveReport]) -> Vec<(&'static str, String)> {
    let times = |value: fn(&MoveReport) -> Option<f64>| spread(moves.iter().map(value), "ms");
    let rates = |value: fn(&MoveReport) -> Option<f64>| spread(moves.iter().map(value), "Mbit/s");
    let counts = |value: fn(&MoveReport) -> u64, of: fn(&MoveReport) -> u64| {
        // The worst move is the one that matters.
        let worst = moves.iter().min_by_key(|report| value(report) as i64 - of(report) as i64);
        worst.map_or_else(String::new, |report| format!("{} of {}", value(report), of(report)))
    };
    let sum = |value: fn(&MoveReport) -> u64| moves.iter().map(value).sum::<u64>().to_string();
    vec![
        ("arrival to direct path, to the client", times(|report| report.arrival_to_direct_ms.to_client)),
        ("arrival to direct path, to the VM", times(|report| report.arrival_to_direct_ms.to_vm)),
        ("arrival to the VM's first frame", times(MoveReport::awake_ms)),
        ("arrival to the agent's flip", times(MoveReport::flip_ms)),
        ("longest gap minus pause", times(MoveReport::gap_minus_pause_ms)),
        ("its end after the arrival", times(MoveReport::all_again_ms)),
        ("its beginning after the stop", times(MoveReport::in_flight_ms)),
        ("longest gap", times(|report| report.longest_gap_ms)),
        ("pause of the VM", times(|report| report.pause_ms)),
        ("round trip before", times(|report| report.rtt_before_ms)),
        ("round trip after", times(|report| report.rtt_after_ms)),
        ("throughput before", rates(|report| report.mbit_before)),
        ("throughput after", rates(|report| report.mbit_after)),
        ("joined before arrival", counts(|report| report.connections.joined_before_arrival, total)),
        ("survived", counts(|report| report.connections.survived, total)),
        ("on the direct path", counts(|report| report.connections.on_direct_path, total)),
        ("plain TCP survived", counts(|report| report.legacy.survived, |report| report.legacy.total)),
        ("UDP gap", times(|report| report.udp_gap_ms)),
        ("UDP datagrams lost", sum(|report| report.udp_lost)),
        ("frames lost", sum(|report| report.frames_lost)),
        ("bytes wrong", sum(|report| report.bytes_wrong)),
        ("tunnels left", sum(|report| report.tunnels_left)),
    ]
}

fn total(report: &MoveReport) -> u64 {
    report.connections.total
}

/// Their median, and the smallest and largest of several.
pub(crate) fn spread(values: impl Iterator<Item = Option<f64>>, unit: &str) -> String {
    let all: Vec<Option<f64>> = values.collect();
    let known: Vec<f64> = all.iter().flatten().copied().collect();
    let Some(middle) = median(&known) else { return "never".to_owned() };
    let never = match all.len() - known.len() {
        0 => String::new(),
        count => format!(", {count} never"),
    };
    let smallest = known.iter().copied().fold(f64::INFINITY, f64::min);
    let largest = known.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if known.len() > 1 {
        format!("{} {unit} ({} to {}{never})", short(middle), short(smallest), short(largest))
    } else {
        format!("{} {unit}{never}", short(middle))
    }
}

/// Three digits are enough for everything here.
pub(super) fn short(value: f64) -> String {
    if value.abs() >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn one_move_shows_its_values_and_several_their_medians() {
        let one = table(&Demo { mode: "pre-join".into(), moves: vec![sample()] });
        assert!(one.contains("longest gap minus pause                     19.0 ms\n"), "{one}");
        let slower = MoveReport { longest_gap_ms: Some(450.0), ..sample() };
        let three = table(&Demo { mode: "pre-join".into(), moves: vec![sample(), slower, sample()] });
        assert!(three.contains("19.0 ms (19.0 to 43.0)"), "{three}");
    }

    #[test]
    fn runs_stand_beside_each_other() {
        let slower = MoveReport { longest_gap_ms: Some(450.0), ..sample() };
        let run = |name: &str, report| (name.to_owned(), Demo { mode: name.into(), moves: vec![report] });
        let text = comparison("to dallas", &[run("early", sample()), run("post-join", slower)]);
        assert!(text.starts_with("| to dallas | early | post-join |\n|---|---|---|\n| moves | 1 | 1 |\n"), "{text}");
        assert!(text.contains("| longest gap minus pause | 19.0 ms | 43.0 ms |\n"), "{text}");
    }

    #[test]
    fn what_never_happened_is_said() {
        let mut report = sample();
        report.arrival_to_direct_ms.to_client = None;
        let text = table(&Demo { mode: "tunnel-only".into(), moves: vec![report.clone()] });
        assert!(text.contains("to the client       never"), "{text}");
        let text = table(&Demo { mode: "post-join".into(), moves: vec![report, sample()] });
        assert!(text.contains("41.0 ms, 1 never"), "{text}");
    }

    #[test]
    fn the_worst_move_is_shown_for_counts() {
        let mut report = sample();
        report.connections.survived = 6;
        let text = table(&Demo { mode: "pre-join".into(), moves: vec![sample(), report] });
        assert!(text.contains("6 of 8"), "{text}");
    }
}
