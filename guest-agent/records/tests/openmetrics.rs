//! What is written is OpenMetrics, by a reader of that format's rules (OpenMetrics 1.0.0, "Text format").

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::PermissionsExt as _,
};

use lsm_protocol::report::Sums;
use lsm_records::metrics::{Figures, Kept, Metrics};

/// A sample: its name, labels and value.
type Sample = (String, BTreeMap<String, String>, f64);

/// The samples, or the first rule that the text breaks.
fn read(text: &str) -> Result<Vec<Sample>, String> {
    let mut samples = Vec::new();
    let mut family: Option<(String, String)> = None;
    let mut seen = BTreeSet::new();
    let body = text.strip_suffix("# EOF\n").ok_or("no EOF at the end")?;
    for line in body.split_terminator('\n') {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "TYPE", name, kind] => {
                if !["counter", "gauge", "histogram"].contains(&kind) {
                    return Err(format!("{kind} is no type"));
                }
                if kind == "counter" && name.ends_with("_total") {
                    return Err(format!("the family of a counter does not end in _total: {name}"));
                }
                if !seen.insert(name.to_owned()) {
                    return Err(format!("{name} comes twice"));
                }
                family = Some((name.to_owned(), kind.to_owned()));
            }
            ["#", "UNIT", name, unit] => {
                if !name.ends_with(&format!("_{unit}")) {
                    return Err(format!("{name} does not end in its unit {unit}"));
                }
            }
            ["#", "HELP", name, _] => {
                if family.as_ref().is_none_or(|(of, _)| of != name) {
                    return Err(format!("help for {name} outside of it"));
                }
            }
            _ if line.starts_with('#') || line.is_empty() => {
                return Err(format!("neither metadata nor sample: {line}"));
            }
            _ => {
                let (of, kind) = family.as_ref().ok_or("a sample without a family")?;
                let sample = sample(line)?;
                let suffix = sample.0.strip_prefix(of.as_str()).ok_or(format!("{} is not of {of}", sample.0))?;
                let allowed: &[&str] = match kind.as_str() {
                    "counter" => &["_total"],
                    "gauge" => &[""],
                    _ => &["_bucket", "_count", "_sum"],
                };
                if !allowed.contains(&suffix) {
                    return Err(format!("a {kind} has no sample {}", sample.0));
                }
                samples.push(sample);
            }
        }
    }
    let names: BTreeSet<_> = samples.iter().map(|(name, labels, _)| (name, labels)).collect();
    if names.len() != samples.len() {
        return Err("the same sample twice".to_owned());
    }
    histograms(&samples)?;
    Ok(samples)
}

fn sample(line: &str) -> Result<Sample, String> {
    let bad = || format!("no sample: {line}");
    let name_end = line.find(['{', ' ']).ok_or_else(bad)?;
    let (name, mut rest) = line.split_at(name_end);
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':') {
        return Err(bad());
    }
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").ok_or_else(bad)?;
            let mut value = String::new();
            let mut letters = after.char_indices();
            let end = loop {
                match letters.next().ok_or_else(bad)? {
                    (_, '\\') => match letters.next().ok_or_else(bad)?.1 {
                        'n' => value.push('\n'),
                        c @ ('\\' | '"') => value.push(c),
                        _ => return Err(bad()),
                    },
                    (at, '"') => break at,
                    (_, c) => value.push(c),
                }
            };
            labels.insert(label.to_owned(), value);
            rest = &after[end + 1..];
            match rest.split_at_checked(1).ok_or_else(bad)? {
                (",", more) => rest = more,
                ("}", more) => {
                    rest = more;
                    break;
                }
                _ => return Err(bad()),
            }
        }
    }
    let value = rest.strip_prefix(' ').and_then(|value| value.parse().ok()).ok_or_else(bad)?;
    Ok((name.to_owned(), labels, value))
}

/// Buckets grow, and the last of them, +Inf, is the count.
fn histograms(samples: &[Sample]) -> Result<(), String> {
    for (name, _, count) in samples.iter().filter(|(name, _, _)| name.ends_with("_count")) {
        let of = name.trim_end_matches("_count");
        let edge =
            |text: &String| if text == "+Inf" { Ok(f64::INFINITY) } else { text.parse().map_err(|_| text.clone()) };
        let buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter(|(name, _, _)| *name == format!("{of}_bucket"))
            .map(|(_, labels, value)| Ok((edge(&labels["le"])?, *value)))
            .collect::<Result<_, String>>()?;
        if !buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1) {
            return Err(format!("the buckets of {of} do not grow: {buckets:?}"));
        }
        if buckets.last() != Some(&(f64::INFINITY, *count)) {
            return Err(format!("the last bucket of {of} is not all"));
        }
    }
    Ok(())
}

fn figures(outcome: &str, took: u64, pause: Option<u64>) -> Figures<'_> {
    let sums = Sums { moved: 8, legacy: 1, lost: 0, ..Sums::default() };
    let connections = (outcome == "settled").then_some(sums);
    Figures { role: "destination", outcome, took, pause, gap: pause, connections, ended: 1_700_000_000_500 }
}

#[test]
fn the_text_keeps_the_rules_and_says_what_happened() {
    let mut metrics = Metrics::default();
    assert_eq!(read(&metrics.text("lsm_host")).map(|s| s.len()), Ok(3 * 13 + 1), "before any move");
    metrics.take(&figures("settled", 4_000, Some(400)));
    metrics.take(&figures("settled", 700_000_000, Some(20_000)));
    metrics.take(&figures("re\"fused\\\n", 100, None));
    let samples = read(&metrics.text("lsm_host")).unwrap();
    let of = |name: &str, label: &str, value: &str| {
        let is = |(of, labels, _): &&Sample| {
            of == name && (label.is_empty() || labels.get(label).is_some_and(|v| v == value))
        };
        samples.iter().find(is).unwrap_or_else(|| panic!("{name} {label} {value} in {samples:?}")).2
    };
    assert_eq!(of("lsm_host_moves_total", "outcome", "settled"), 2.0);
    assert_eq!(of("lsm_host_moves_total", "outcome", "re\"fused\\\n"), 1.0);
    assert_eq!(of("lsm_host_connections_total", "became", "moved"), 16.0);
    assert_eq!(of("lsm_host_move_pause_seconds_bucket", "le", "0.25"), 0.0);
    assert_eq!(of("lsm_host_move_pause_seconds_bucket", "le", "0.5"), 1.0);
    assert_eq!(of("lsm_host_move_pause_seconds_bucket", "le", "10.0"), 1.0, "the other took longer");
    assert_eq!(of("lsm_host_move_pause_seconds_count", "", ""), 2.0);
    assert_eq!(of("lsm_host_move_pause_seconds_sum", "", ""), 20.4);
    assert_eq!(of("lsm_host_move_duration_seconds_count", "", ""), 3.0);
    assert_eq!(of("lsm_host_last_move_timestamp_seconds", "", ""), 1_700_000_000.5);
}

/// The reader itself: texts that break one rule each.
#[test]
fn broken_texts_are_noticed() {
    for (text, why) in [
        ("# TYPE a gauge\na 1\n", "EOF"),
        ("a 1\n# EOF\n", "without a family"),
        ("# TYPE a_total counter\na_total_total 1\n# EOF\n", "_total"),
        ("# TYPE a counter\na 1\n# EOF\n", "has no sample"),
        ("# TYPE a gauge\na{b=\"c} 1\n# EOF\n", "no sample"),
        ("# TYPE a gauge\na 1\na 2\n# EOF\n", "twice"),
        ("# TYPE a gauge\n# TYPE a gauge\n# EOF\n", "twice"),
        ("# TYPE a_seconds gauge\n# UNIT a_seconds bytes\n# EOF\n", "unit"),
        ("# TYPE a histogram\na_bucket{le=\"1\"} 2\na_bucket{le=\"+Inf\"} 1\na_count 1\n# EOF\n", "grow"),
        ("# TYPE a histogram\na_bucket{le=\"1\"} 1\na_count 1\n# EOF\n", "not all"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn the_numbers_outlive_the_program_and_are_off_without_a_collector() {
    let directory = std::env::temp_dir().join(format!("lsm-metrics-{}", std::process::id()));
    let collector = directory.join("textfile");
    std::fs::create_dir_all(&collector).unwrap();
    // As the units have it; the collector is another user.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    Kept::new(&directory, None, "lsm_host").take(&figures("settled", 1, None));
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1, "only what was there");
    for moves in 1..=3 {
        Kept::new(&directory, Some(&collector), "lsm_host").take(&figures("settled", 1, None));
        let text = std::fs::read_to_string(collector.join("lsm_host.prom")).unwrap();
        assert!(text.contains(&format!("lsm_host_move_duration_seconds_count {moves}\n")), "{text}");
        read(&text).unwrap();
    }
    assert_eq!(std::fs::read_dir(&collector).unwrap().count(), 1, "nothing half written is left");
    let mode = std::fs::metadata(collector.join("lsm_host.prom")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o644);
    std::fs::remove_dir_all(&directory).unwrap();
}
