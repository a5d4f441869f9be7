//! Harney et al., figure 4: how long a stream of datagrams to the old address is silent over a move, over the delay
//! between the sites. Theirs, by Mobile IPv6 under Xen: 2.5 s and rising.

use std::time::Duration;

use super::{
    Benchmark, Measure, Notes, Page, Point,
    page::spread,
    plot::{Curve, Plot},
};
use crate::{
    journeys::{Distances, Journeys, Silence},
    measure::median,
    shell::{LabError, Result},
};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "harney",
    title: "A stream of datagrams over a move (Harney et al., figure 4)",
    points,
    begin,
    show,
};

/// Added to every way between client and far site, and between the sites, in milliseconds of round trip.
const DELAYS: [u32; 5] = [0, 50, 100, 200, 400];

fn points(quick: bool) -> Vec<Point> {
    let delays = if quick { &DELAYS[..1] } else { &DELAYS[..] };
    delays.iter().map(|ms| Point { key: ms.to_string(), times: if quick { 1 } else { 10 } }).collect()
}

fn begin() -> Result<Measure> {
    let journeys = Journeys::set()?;
    Ok(Box::new(move |key| {
        let added = key.parse().map_err(|_| LabError::Other(format!("{key} is no delay")))?;
        let [home, away, between] = [added + 2, 2, added].map(Duration::from_millis);
        journeys.set_distances(Distances { home, away, between })?;
        serde_json::to_value(journeys.datagrams()?).map_err(|error| LabError::Other(error.to_string()))
    }))
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(
        "Datagrams of 210 bytes every 20 ms from the client to the VM's old address, which the tunnel carries after it, and \
         an answer to each. The delay is the round trip between the sites, and with 2 ms more that between the client and one \
         of them; the VM goes there and back. Theirs were silent for 2.5 s and more. *First answer*: from the end of the pause to \
         the VM's first datagram, captured on its host: that time is the VM's own, emulated by a QEMU that has translated nothing \
         of it yet. What remains of the silence is the network's: the way through the tunnel, half the delay, and up to 20 ms \
         between two datagrams.",
    );
    let (mut rows, mut gaps, mut pauses) = (Vec::new(), Vec::new(), Vec::new());
    for added in DELAYS {
        let runs: Vec<Silence> = notes.of(&added.to_string());
        let gap: Vec<f64> = runs.iter().map(|one| one.gap_ms).collect();
        let pause: Vec<f64> = runs.iter().map(|one| one.pause_ms).collect();
        let answer: Vec<f64> = runs.iter().filter_map(|one| one.answer_ms).collect();
        let remains = |one: &Silence| Some(one.gap_ms - one.pause_ms - one.answer_ms?);
        let remains: Vec<f64> = runs.iter().filter_map(remains).collect();
        let lost: u64 = runs.iter().map(|one| one.lost).sum();
        rows.push(vec![
            added.to_string(),
            runs.len().to_string(),
            spread(&gap, 0),
            spread(&pause, 0),
            spread(&answer, 0),
            spread(&remains, 0),
            lost.to_string(),
        ]);
        gaps.extend(median(&gap).map(|ms| (f64::from(added), ms)));
        pauses.extend(median(&pause).map(|ms| (f64::from(added), ms)));
    }
    page.table(
        &[
            "delay, ms",
            "moves",
            "silence, ms",
            "pause of the VM, ms",
            "first answer, ms",
            "remains, ms",
            "datagrams lost",
        ],
        &rows,
    );
    page.plot(&Plot {
        title: "Silence over delay",
        across: "delay, ms",
        up: "ms",
        curves: vec![Curve { name: "silence", points: gaps }, Curve { name: "pause of the VM", points: pauses }],
    });
}
