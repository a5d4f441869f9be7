//! SEC'17, figure 10: how long a move takes over the rate of a path, by TCP over one and by Multipath TCP over two.

use super::{
    Benchmark, Measure, Notes, Page, Point,
    page::spread,
    plot::{Curve, Plot},
};
use crate::{
    measure::median,
    shell::LabError,
    streams::{self, Both},
};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "stream",
    title: "The migration's stream over one path and over two (SEC'17, figure 10)",
    points,
    begin: || Ok(measure()),
    show,
};

/// Mbit/s of each path. More than the last, and the emulated QEMUs are the bottleneck.
const RATES: [u32; 4] = [50, 100, 200, 400];

fn points(quick: bool) -> Vec<Point> {
    let rates = if quick { &RATES[1..2] } else { &RATES[..] };
    rates.iter().map(|mbit| Point { key: mbit.to_string(), times: if quick { 1 } else { 10 } }).collect()
}

fn measure() -> Measure {
    Box::new(|key| {
        let mbit = key.parse().map_err(|_| LabError::Other(format!("{key} is no rate")))?;
        serde_json::to_value(streams::both(mbit)?).map_err(|error| LabError::Other(error.to_string()))
    })
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(
        "A VM of 192 MiB, some 160 of it in use, from one host to the other; both libvirts under `mptcpize` for the second \
         column. Each path is limited by a token bucket; round trip below 1 ms.",
    );
    let (mut rows, mut one, mut two) = (Vec::new(), Vec::new(), Vec::new());
    for mbit in RATES {
        let moves: Vec<Both> = notes.of(&mbit.to_string());
        let single: Vec<f64> = moves.iter().map(|both| both.one.seconds).collect();
        let double: Vec<f64> = moves.iter().map(|both| both.two.seconds).collect();
        let ratio: Vec<f64> = moves.iter().map(|both| both.one.seconds / both.two.seconds).collect();
        let share = |both: &Both| 100.0 * both.two.bytes[1] as f64 / both.two.bytes.iter().sum::<u64>().max(1) as f64;
        let shares: Vec<f64> = moves.iter().map(share).collect();
        rows.push(vec![
            mbit.to_string(),
            moves.len().to_string(),
            spread(&single, 1),
            spread(&double, 1),
            spread(&ratio, 2),
            spread(&shares, 0),
        ]);
        one.extend(median(&single).map(|seconds| (f64::from(mbit), seconds)));
        two.extend(median(&double).map(|seconds| (f64::from(mbit), seconds)));
    }
    let head = ["Mbit/s per path", "pairs", "one path, s", "two paths, s", "times sooner", "second path, %"];
    page.table(&head, &rows);
    page.plot(&Plot {
        title: "Time of a move over the rate of a path",
        across: "Mbit/s per path",
        up: "seconds",
        curves: vec![Curve { name: "TCP, one path", points: one }, Curve { name: "MPTCP, two paths", points: two }],
    });
}
