//! SEC'17, figures 9, 10 and 11: how long a move takes over the round trip, the rate of a path and the size of the VM, by
//! TCP over one path and by Multipath TCP over two.

use std::time::Duration;

use super::{
    Benchmark, Measure, Notes, Page, Point,
    page::spread,
    plot::{Curve, Plot},
};
use crate::{
    measure::median,
    shell::{LabError, Result},
    site::Transport,
    streams::{Both, Hosts, StreamOptions},
};

/// MiB of the VM that is moved at different rates, beside some 110 that travel anyway.
const FILLED: u32 = 320;
/// The same at different distances.
const FILLED_FAR: u32 = 160;

pub(super) const RATE: Benchmark = Benchmark {
    name: "stream",
    title: "The migration's stream over one path and over two: rate (SEC'17, figure 10)",
    points: |quick| points(if quick { &RATES[..1] } else { &RATES }, quick),
    begin: || {
        let hosts = hosts(false, FILLED, Transport::Plain)?;
        each(hosts, Hosts::set_rate)
    },
    show: |notes, page| {
        page.say(&format!(
            "A VM with {FILLED} MiB of noise in its memory goes from one host to the other by plain TCP over one path, and \
             back by Multipath TCP over two, or the other way round in turn. Each path is limited by a token bucket; round \
             trip below 1 ms. The copy is from QEMU's beginning to the VM's first instruction at the destination; what \
             `virsh migrate` takes more is the preparation and the end. At 1000 Mbit/s the emulating QEMUs are the bottleneck."
        ));
        show(&RATES, "Mbit/s per path", "the rate of a path", notes, page);
    },
};

/// Mbit/s of each path.
const RATES: [u32; 4] = [100, 200, 400, 1000];

pub(super) const DISTANCE: Benchmark = Benchmark {
    name: "figure-9",
    title: "The migration's stream over one path and over two: round trip (SEC'17, figure 9)",
    points: |quick| points(if quick { &DISTANCES[..1] } else { &DISTANCES }, quick),
    begin: || {
        let hosts = hosts(true, FILLED_FAR, Transport::Plain)?;
        hosts.set_rate(200)?;
        each(hosts, |hosts, ms| hosts.set_distance(Duration::from_millis(ms.into())))
    },
    show: |notes, page| {
        page.say(&format!(
            "The same with {FILLED_FAR} MiB of noise, at 200 Mbit/s per path, both paths with the same round trip."
        ));
        show(&DISTANCES, "round trip, ms", "the round trip", notes, page);
    },
};

/// Milliseconds.
const DISTANCES: [u32; 4] = [1, 10, 40, 80];

pub(super) const SIZE: Benchmark = Benchmark {
    name: "figure-11",
    title: "The migration's stream over one path and over two: size of the VM (SEC'17, figure 11)",
    points: |quick| points(if quick { &SIZES[..1] } else { &SIZES }, quick),
    begin: || {
        let mut first = [Transport::Plain, Transport::Multipath].into_iter().cycle();
        Ok(Box::new(move |key| {
            // Noise that a program has given back is noise yet, and sent.
            let mut hosts = hosts(false, number(key)?, first.next().unwrap_or(Transport::Plain))?;
            hosts.set_rate(400)?;
            serde_json::to_value(hosts.pair()?).map_err(|error| LabError::Other(error.to_string()))
        }))
    },
    show: |notes, page| {
        page.say(
            "A VM of its own for each pair, with so much noise in its memory, at 400 Mbit/s per path, round trip below 1 ms. How \
             large its memory is makes little difference: what it has not written is not sent.",
        );
        show(&SIZES, "MiB of noise", "what the VM's memory holds", notes, page);
    },
};

/// MiB.
const SIZES: [u32; 4] = [64, 128, 256, 512];

/// With a VM that has so many MiB of noise in its memory, and whose next move is by `first`.
fn hosts(distant: bool, filled: u32, first: Transport) -> Result<Hosts> {
    // A kernel keeps more for itself the more there is.
    let rest = if filled > FILLED { 192 } else { 128 };
    let options = StreamOptions { distant, memory_mib: filled + rest, ..StreamOptions::default() };
    let hosts = Hosts::set(&options, first, |_| Ok(()))?;
    hosts.fill(filled)?;
    Ok(hosts)
}

fn number(key: &str) -> Result<u32> {
    key.parse().map_err(|_| LabError::Other(format!("{key} is no number")))
}

fn points(values: &[u32], quick: bool) -> Vec<Point> {
    values.iter().map(|value| Point { key: value.to_string(), times: if quick { 1 } else { 10 } }).collect()
}

/// A pair of moves with each value.
fn each(mut hosts: Hosts, mut set: impl FnMut(&Hosts, u32) -> Result<()> + 'static) -> Result<Measure> {
    Ok(Box::new(move |key| {
        set(&hosts, number(key)?)?;
        serde_json::to_value(hosts.pair()?).map_err(|error| LabError::Other(error.to_string()))
    }))
}

fn show(values: &[u32], across: &'static str, over: &str, notes: &Notes, page: &mut Page) {
    let (mut rows, mut one, mut two) = (Vec::new(), Vec::new(), Vec::new());
    for value in values {
        let pairs: Vec<Both> = notes.of(&value.to_string());
        let of = |number: fn(&Both) -> f64| pairs.iter().map(number).collect::<Vec<f64>>();
        let [single, double] = [of(|both| both.one.copied), of(|both| both.two.copied)];
        let share = |both: &Both| 100.0 * both.two.bytes[1] as f64 / both.two.bytes.iter().sum::<u64>().max(1) as f64;
        rows.push(vec![
            value.to_string(),
            pairs.len().to_string(),
            spread(&single, 1),
            spread(&double, 1),
            spread(&of(|both| both.one.copied / both.two.copied), 2),
            spread(&of(|both| both.one.seconds / both.two.seconds), 2),
            spread(&of(share), 0),
        ]);
        one.extend(median(&single).map(|seconds| (f64::from(*value), seconds)));
        two.extend(median(&double).map(|seconds| (f64::from(*value), seconds)));
    }
    let head = [
        across,
        "pairs",
        "copy over one path, s",
        "over two, s",
        "times sooner",
        "times sooner with all of `virsh`",
        "second path, %",
    ];
    page.table(&head, &rows);
    page.plot(&Plot {
        title: &format!("Time of the copy over {over}"),
        across,
        up: "seconds",
        curves: vec![Curve { name: "TCP, one path", points: one }, Curve { name: "MPTCP, two paths", points: two }],
    });
}
