//! What `lsm-hook estimate` predicts of a move by pre-copy, beside the move.

use super::{
    Benchmark, Measure, Notes, Page, Point,
    plot::{Curve, Plot},
};
use crate::{
    measure::median,
    planning::{Compared, Load, compare, load, stage},
    shell::{LabError, Result},
};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "planning",
    title: "What `lsm-hook estimate` says before a move, and what the move takes",
    points,
    begin,
    show,
};

/// MiB/s.
const RATES: [u32; 3] = [10, 16, 28];
const LOADS: [Load; 5] = [
    Load { mib: 1, per_second: 0 },
    Load { mib: 64, per_second: 2 },
    Load { mib: 48, per_second: 6 },
    Load { mib: 16, per_second: 8 },
    Load { mib: 2, per_second: 100 },
];

fn key(load: Load, rate: u32) -> String {
    format!("{} MiB at {} MiB/s, moved at {rate} MiB/s", load.mib, load.per_second)
}

fn combinations() -> impl Iterator<Item = (Load, u32)> {
    LOADS.into_iter().flat_map(|load| RATES.map(|rate| (load, rate)))
}

fn points(quick: bool) -> Vec<Point> {
    let few = if quick { 3 } else { usize::MAX };
    combinations().take(few).map(|(load, rate)| Point { key: key(load, rate), times: 1 }).collect()
}

fn begin() -> Result<Measure> {
    let stage = stage()?;
    let mut loaded = None;
    Ok(Box::new(move |wanted| {
        let found = combinations().find(|(load, rate)| key(*load, *rate) == wanted);
        let (writes, rate) = found.ok_or_else(|| LabError::Other(format!("no such combination: {wanted}")))?;
        if loaded != Some(writes) {
            load(&stage, writes)?;
            loaded = Some(writes);
        }
        let compared = compare(&stage, rate)?;
        serde_json::to_value(compared).map_err(|error| LabError::Other(error.to_string()))
    }))
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(
        "A VM of 192 MiB in which a program writes so many MiB over and over, so many MiB of them each second; \
         `virsh migrate --live --bandwidth`.",
    );
    let (mut rows, mut off, mut points) = (Vec::new(), Vec::new(), Vec::new());
    for (load, rate) in combinations() {
        for one in notes.of::<Compared>(&key(load, rate)) {
            let Some(predicted) = one.predicted else {
                let sent = format!("{:.0}", one.bytes / 1_048_576.0);
                let (took, pause) = (format!("{:.1}", one.seconds), format!("{:.0}", one.pause * 1e3));
                let none = String::new;
                rows.push(vec![key(load, rate), "no end".into(), took, none(), none(), sent, none(), pause]);
                continue;
            };
            let error = 100.0 * (predicted / one.seconds - 1.0);
            off.push(error.abs());
            points.push((one.seconds, predicted));
            let ms = |seconds: f64| format!("{:.0}", seconds * 1e3);
            let mib = |bytes: f64| format!("{:.0}", bytes / 1_048_576.0);
            rows.push(vec![
                key(load, rate),
                format!("{predicted:.1}"),
                format!("{:.1}", one.seconds),
                format!("{error:+.0} %"),
                one.predicted_bytes.map(mib).unwrap_or_default(),
                mib(one.bytes),
                one.predicted_pause.map(ms).unwrap_or_default(),
                ms(one.pause),
            ]);
        }
    }
    let head =
        ["writes", "predicted, s", "took, s", "off", "predicted, MiB", "sent, MiB", "predicted pause, ms", "pause, ms"];
    page.table(&head, &rows);
    let most = off.iter().copied().fold(0.0, f64::max);
    page.say(&format!(
        "{} moves: off by {:.0} % in the median, by {most:.0} % at most.",
        off.len(),
        median(&off).unwrap_or(0.0)
    ));
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let longest = points.last().map_or(0.0, |point| point.0);
    page.plot(&Plot {
        title: "Predicted over measured",
        across: "took, seconds",
        up: "predicted, seconds",
        curves: vec![
            Curve { name: "pre-copy", points },
            Curve { name: "right", points: vec![(0.0, 0.0), (longest, longest)] },
        ],
    });
}
