//! The units' sandboxes: no looser than they were, and a reason in SECURITY.md for everything left open.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{collections::BTreeSet, path::PathBuf, process::Command};

use lsm_tests::needs;

/// What is counted against each unit, in tenths, by systemd 252; and its column in SECURITY.md.
const UNITS: [(&str, u32, usize); 2] = [("lsm-guest.service", 25, 2), ("lsm-hook.service", 27, 3)];

fn project(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn missing() -> Option<String> {
    let remedy = "tests/install installs it";
    let analyze = "/usr/bin/systemd-analyze";
    (!std::path::Path::new(analyze).exists()).then(|| format!("no {analyze}; {remedy}"))
}

fn analyze(unit: &str, arguments: &[&str]) -> std::process::Output {
    let mut analyze = Command::new("systemd-analyze");
    analyze.args(["--no-pager", "security", "--offline=yes"]).args(arguments);
    analyze.arg(project("systemd").join(unit)).output().unwrap()
}

/// What is counted against the unit, by name.
fn counted(unit: &str) -> BTreeSet<String> {
    let listed = analyze(unit, &["--json=short"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let listed = listed.as_array().unwrap().iter().filter(|entry| entry["exposure"].is_string());
    listed.map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

/// What SECURITY.md has a reason for, in the unit's column.
fn explained(column: usize) -> BTreeSet<String> {
    let text = std::fs::read_to_string(project("SECURITY.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let line = line.replace("\\|", "\u{0}");
        line.split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect::<Vec<_>>()
    });
    rows.filter(|row| row[column] == "x").map(|row| row[1].trim_matches('`').to_owned()).collect()
}

#[test]
fn exposure_stays_where_it_is_and_has_its_reasons() {
    if needs::lacking(missing()) {
        return;
    }
    for (unit, most, column) in UNITS {
        let threshold = analyze(unit, &[&format!("--threshold={most}")]);
        let said = String::from_utf8_lossy(&threshold.stdout);
        println!("{}", said.lines().last().unwrap_or_default());
        assert!(threshold.status.success(), "{unit} is more exposed than {most} tenths:\n{said}");
        assert_eq!(counted(unit), explained(column), "{unit}: what is counted, and what SECURITY.md explains");
    }
}
