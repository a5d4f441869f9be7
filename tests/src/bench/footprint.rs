//! What the agent costs a VM that nothing moves in, beside QEMU's: by `tests/bench-footprint`.

use std::{path::Path, process::Command};

use serde::{Deserialize, Serialize};

use super::{Benchmark, Measure, Notes, Page, Point, page::spread};
use crate::shell::{LabError, Result, run};

pub(super) const BENCHMARK: Benchmark =
    Benchmark { name: "footprint", title: "The agent at rest, beside QEMU's", points, begin, show };

const KEY: &str = "at rest";
const SECONDS: u32 = 20;

/// Bytes and counts: of lsm-guest, of qemu-ga.
#[derive(Serialize, Deserialize)]
struct AtRest {
    seconds: u32,
    disk: [u64; 2],
    libraries: [u64; 2],
    resident: [u64; 2],
    own: [u64; 2],
    wakeups: [u64; 2],
}

fn points(quick: bool) -> Vec<Point> {
    vec![Point { key: KEY.into(), times: if quick { 1 } else { 10 } }]
}

fn begin() -> Result<Measure> {
    let mut built = false;
    Ok(Box::new(move |_| {
        let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("bench-footprint"));
        script.args(["--json", "--seconds", &SECONDS.to_string()]).args(built.then_some("--built"));
        let text = run(&mut script)?;
        built = true;
        let line = text.lines().last().unwrap_or_default();
        let found: AtRest =
            serde_json::from_str(line).map_err(|error| LabError::Other(format!("{error} in {text}")))?;
        serde_json::to_value(found).map_err(|error| LabError::Other(error.to_string()))
    }))
}

fn show(notes: &Notes, page: &mut Page) {
    let runs: Vec<AtRest> = notes.of(KEY);
    let Some(AtRest { seconds, .. }) = runs.last() else { return };
    page.say(
        "As the packages have them, each in a network of its own, with a socket for a channel that nobody is connected to, \
         ten seconds after its start. Both load what they load: shared libraries are in `resident` too.",
    );
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let wakeups = format!("wakeups in {seconds} s");
    let of = |at: usize, number: &dyn Fn(&AtRest) -> [u64; 2], digits: usize, scale: &dyn Fn(u64) -> f64| {
        spread(&runs.iter().map(|run| scale(number(run)[at])).collect::<Vec<f64>>(), digits)
    };
    let row = |name: &str, number: &dyn Fn(&AtRest) -> [u64; 2], digits: usize, scale: &dyn Fn(u64) -> f64| {
        vec![name.to_owned(), of(0, number, digits, scale), of(1, number, digits, scale)]
    };
    let rows = [
        row("on disk, MiB", &|run| run.disk, 2, &mib),
        row("and the libraries that it loads, MiB", &|run| run.libraries, 2, &mib),
        row("resident, MiB", &|run| run.resident, 2, &mib),
        row("of that its own alone, MiB", &|run| run.own, 2, &mib),
        row(&wakeups, &|run| run.wakeups, 0, &|count| count as f64),
    ];
    page.table(&["", "lsm-guest", "qemu-ga"], &rows);
    page.say(&format!("{} runs.", runs.len()));
}
