//! SEC'17, figure 14, and LSM-MPTCP: throughput and round trip before, during and after a move, at the papers' distances.

use std::time::Duration;

use super::{
    Benchmark, Measure, Notes, Page, Point,
    page::spread,
    plot::{Curve, Plot},
};
use crate::{
    demo::Mode,
    journeys::{Distances, Journeys, Seen},
    measure::median,
    shell::{LabError, Result},
};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "figure-14",
    title: "Throughput and round trip over a move (SEC'17, figure 14; LSM-MPTCP)",
    points,
    begin,
    show,
};

/// The VM goes from Montreal to each; the client is in San Jose.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Journey {
    SanJose,
    Dallas,
}

const JOURNEYS: [Journey; 2] = [Journey::SanJose, Journey::Dallas];
const MODES: [Mode; 3] = [Mode::PreJoin, Mode::PostJoin, Mode::TunnelOnly];
/// Half of it is the client's window.
const CLIENT_BUFFER: u32 = 64 << 10;

impl Journey {
    fn name(self) -> &'static str {
        match self {
            Journey::SanJose => "San Jose",
            Journey::Dallas => "Dallas",
        }
    }

    /// WonderProxy, "Miles per Millisecond" (2011): Fremont to New York 78 ms and to Dallas 44, Dallas to New York 38. It
    /// has neither San Jose nor Montreal; these are their nearest.
    fn distances(self) -> Distances {
        let [home, away, between] = match self {
            Journey::SanJose => [78_000, 500, 78_000],
            Journey::Dallas => [78_000, 44_000, 38_000],
        }
        .map(Duration::from_micros);
        Distances { home, away, between }
    }
}

fn key(journey: Journey, mode: Mode) -> String {
    format!("to {}, {}", journey.name(), mode.name())
}

fn all() -> impl Iterator<Item = (Journey, Mode)> {
    JOURNEYS.into_iter().flat_map(|journey| MODES.map(|mode| (journey, mode)))
}

fn points(quick: bool) -> Vec<Point> {
    let few = if quick { 1 } else { usize::MAX };
    all()
        .take(few)
        .map(|(journey, mode)| Point { key: key(journey, mode), times: if quick { 1 } else { 10 } })
        .collect()
}

fn begin() -> Result<Measure> {
    let mut journeys = Journeys::set()?;
    journeys.set_client_buffer(CLIENT_BUFFER)?;
    Ok(Box::new(move |wanted| {
        let found = all().find(|(journey, mode)| key(*journey, *mode) == wanted);
        let (journey, mode) = found.ok_or_else(|| LabError::Other(format!("no such journey: {wanted}")))?;
        journeys.set_distances(journey.distances())?;
        journeys.set_mode(mode)?;
        serde_json::to_value(journeys.away()?).map_err(|error| LabError::Other(error.to_string()))
    }))
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(&format!(
        "The VM goes from Montreal to San Jose or to Dallas, the client is in San Jose. Round trips: Montreal to San Jose \
         78 ms, Montreal to Dallas 38, Dallas to San Jose 44, as [published](https://wonderproxy.com/blog/miles-per-milisecond/) \
         for New York, Dallas and Fremont, the nearest cities there; 0.5 ms inside San Jose. All links 200 Mbit/s, 400 between the sites. One \
         connection over which the VM sends what the client's window allows (a buffer of {} KiB), another with a probe each \
         20 ms for the round trip as a program has it, without the first; the same as the client's TCP measures it (`ss`); and of that \
         the network's, from the client's card to the VM's and back, without the time that an emulated VM takes. *After* begins a second after the arrival. Tunnel only is what there \
         is without LSM's new address.",
        CLIENT_BUFFER >> 10
    ));
    let mut rows = Vec::new();
    for (journey, mode) in all() {
        let seen: Vec<Seen> = notes.of(&key(journey, mode));
        let tunnel: Vec<Seen> = notes.of(&key(journey, Mode::TunnelOnly));
        let of = |number: &dyn Fn(&Seen) -> f64| seen.iter().map(number).collect::<Vec<f64>>();
        let beside = |number: &dyn Fn(&Seen) -> f64| {
            let [ours, theirs] = [&seen, &tunnel].map(|seen| median(&seen.iter().map(number).collect::<Vec<f64>>()));
            Some(ours? / theirs?)
        };
        let times = beside(&|seen| seen.mbit[2]).map_or_else(String::new, |times| format!("{times:.1}"));
        let percent =
            |part: Option<f64>| part.map_or_else(String::new, |part| format!("{:+.1} %", 100.0 * (part - 1.0)));
        let change = percent(beside(&|seen| seen.rtt[1]));
        let looked_at = |rtts: fn(&Seen) -> Option<[f64; 2]>| {
            let of = |seen: &[Seen], at: usize| seen.iter().filter_map(rtts).map(|rtts| rtts[at]).collect::<Vec<f64>>();
            let change = median(&of(&seen, 1)).zip(median(&of(&tunnel, 1)));
            let change = percent(change.map(|(ours, theirs)| ours / theirs));
            [spread(&of(&seen, 0), 1), spread(&of(&seen, 1), 1), change]
        };
        let [tcp, network] = [looked_at(|seen| seen.tcp_rtt), looked_at(|seen| seen.network_rtt)];
        let mut row = vec![
            key(journey, mode),
            seen.len().to_string(),
            spread(&of(&|seen| seen.mbit[0]), 1),
            spread(&of(&|seen| seen.mbit[1]), 1),
            spread(&of(&|seen| seen.mbit[2]), 1),
            times,
            spread(&of(&|seen| seen.rtt[0]), 1),
            spread(&of(&|seen| seen.rtt[1]), 1),
            change,
        ];
        row.extend(tcp.into_iter().chain(network));
        row.push(spread(&of(&|seen| seen.pause), 0));
        rows.push(row);
    }
    let head = [
        "",
        "moves",
        "Mbit/s before",
        "during",
        "after",
        "times tunnel only",
        "round trip before, ms",
        "after",
        "to tunnel only",
        "TCP's round trip before, ms",
        "after",
        "to tunnel only",
        "the network's before, ms",
        "after",
        "to tunnel only",
        "pause, ms",
    ];
    page.table(&head, &rows);
    for journey in JOURNEYS {
        let curves = |series: fn(Seen) -> Vec<(f64, f64)>| {
            let of = |mode: Mode| Some(Curve { name: mode.name(), points: series(middle(notes, journey, mode)?) });
            MODES.into_iter().filter_map(of).collect::<Vec<Curve>>()
        };
        for (title, up, curves) in [
            ("Throughput", "Mbit/s", curves(|seen| seconds(seen.throughput))),
            ("Round trip", "ms", curves(|seen| seconds(seen.rtts))),
        ] {
            let title = format!("{title} over a move to {}, the median move of each mode", journey.name());
            page.plot(&Plot { title: &title, across: "seconds since the beginning of the move", up, curves });
        }
    }
}

/// The move with the middle throughput afterwards.
fn middle(notes: &Notes, journey: Journey, mode: Mode) -> Option<Seen> {
    let mut seen: Vec<Seen> = notes.of(&key(journey, mode));
    seen.sort_by(|a, b| a.mbit[2].total_cmp(&b.mbit[2]));
    let middle = seen.len() / 2;
    seen.into_iter().nth(middle)
}

/// From the beginning on: the axes begin at zero.
fn seconds(series: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    series.into_iter().filter(|(ms, _)| *ms >= 0.0).map(|(ms, value)| (ms / 1e3, value)).collect()
}
