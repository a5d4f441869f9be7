//! Harney et al., figure 4: how long a stream of datagrams to the old address is silent over a move, over the delay
//! between the sites. Theirs, by Mobile IPv6 under Xen: 2.5 s and rising.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{
    Benchmark, Measure, Notes, Page, Point,
    page::spread,
    plot::{Curve, Plot},
};
use crate::{
    demo::{self, DemoOptions, Live, Mode},
    measure::median,
    shell::{LabError, Result},
    stage::StageOptions,
    topology::{SiteLinks, TopologyOptions},
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

#[derive(Serialize, Deserialize)]
struct Silence {
    gap_ms: Option<f64>,
    pause_ms: Option<f64>,
    lost: u64,
}

fn points(quick: bool) -> Vec<Point> {
    let delays = if quick { &DELAYS[..1] } else { &DELAYS[..] };
    delays.iter().map(|ms| Point { key: ms.to_string(), times: if quick { 1 } else { 10 } }).collect()
}

fn begin() -> Result<Measure> {
    Ok(Box::new(|key| {
        let added = key.parse().map_err(|_| LabError::Other(format!("{key} is no delay")))?;
        let site = |name: &str, client, wan| SiteLinks {
            name: name.into(),
            client_rtt: Duration::from_millis(client),
            wan_rtt: Duration::from_millis(wan),
        };
        let topology = TopologyOptions {
            sites: vec![site("montreal", added + 2, added), site("dallas", 2, 0)],
            ..TopologyOptions::default()
        };
        let options = DemoOptions {
            mode: Mode::PreJoin,
            switch: "auto".into(),
            moves: 1,
            connections: 3,
            period: Duration::from_millis(20),
            client_buffer: None,
            stage: StageOptions { topology, ..StageOptions::default() },
        };
        let outcome = demo::run(&options, &Live::new(false))?;
        if !outcome.faults.is_empty() {
            return Err(LabError::Other(outcome.faults.join("; ")));
        }
        let one = &outcome.demo.moves[0];
        let silence = Silence { gap_ms: one.udp_gap_ms, pause_ms: one.pause_ms, lost: one.udp_lost };
        serde_json::to_value(silence).map_err(|error| LabError::Other(error.to_string()))
    }))
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(
        "Datagrams of 210 bytes every 20 ms from the client to the VM's old address, which the tunnel carries home. The \
         delay is the round trip between the sites, and with 2 ms more that between the client and the site that is left.",
    );
    let (mut rows, mut gaps, mut pauses) = (Vec::new(), Vec::new(), Vec::new());
    for added in DELAYS {
        let runs: Vec<Silence> = notes.of(&added.to_string());
        let gap: Vec<f64> = runs.iter().filter_map(|one| one.gap_ms).collect();
        let pause: Vec<f64> = runs.iter().filter_map(|one| one.pause_ms).collect();
        let lost: u64 = runs.iter().map(|one| one.lost).sum();
        rows.push(vec![
            added.to_string(),
            runs.len().to_string(),
            spread(&gap, 0),
            spread(&pause, 0),
            lost.to_string(),
        ]);
        gaps.extend(median(&gap).map(|ms| (f64::from(added), ms)));
        pauses.extend(median(&pause).map(|ms| (f64::from(added), ms)));
    }
    page.table(&["delay, ms", "moves", "silence, ms", "pause of the VM, ms", "datagrams lost"], &rows);
    page.plot(&Plot {
        title: "Silence over delay",
        across: "delay, ms",
        up: "ms",
        curves: vec![Curve { name: "silence", points: gaps }, Curve { name: "pause of the VM", points: pauses }],
    });
}
