//! SEC'17, figure 13: a VM with a disk that its hosts do not share, moved whole, as a difference to a base that both have,
//! and back with that; over one path and over two.

use std::collections::BTreeMap;

use super::{
    Benchmark, Notes, Page, Point,
    page::spread,
    plot::{Curve, Plot},
};
use crate::{
    disks::{self, DEVICE},
    measure::median,
    shell::{LabError, Result},
    site::{Site, Transport},
    stage::StageOptions,
    streams::{Hosts, Moved, StreamOptions},
};

pub(super) const BENCHMARK: Benchmark = Benchmark {
    name: "disk",
    title: "A disk that the hosts do not share (SEC'17, figure 13)",
    points,
    begin: || Ok(Box::new(|_| measure())),
    show,
};

const KEY: &str = "moves";
/// MiB of the base; of what the VM writes above it before it goes; of what it writes of the same anew before it comes back.
const BASE: usize = 128;
const ABOVE: usize = 32;
const AGAIN: usize = 16;
/// Of each path.
const MBIT: u32 = 200;

const KINDS: [(&str, &str); 3] = [
    ("whole", "`--copy-storage-all`"),
    ("difference", "`--copy-storage-inc`"),
    ("back", "`--copy-storage-inc`, the way back"),
];

fn points(quick: bool) -> Vec<Point> {
    vec![Point { key: KEY.into(), times: if quick { 1 } else { 10 } }]
}

/// Each kind with one path and with two, of the same VM.
fn measure() -> Result<serde_json::Value> {
    let (length, contents) = (BASE << 20, disks::noise(BASE << 20));
    let options = StreamOptions { stage: disks::with_disk(StageOptions::default()), ..StreamOptions::default() };
    let hosts = Hosts::set(&options, Transport::Multipath, |site: &Site| {
        disks::lay_base(site, &contents)?;
        disks::lay_overlay(site)
    })?;
    hosts.set_rate(MBIT)?;
    let write = |mib: usize| {
        hosts
            .stage
            .guest
            .must(&format!("dd if=/dev/urandom of={DEVICE} bs=1M count={mib} conv=notrunc,fsync"))
            .map(drop)
    };
    let [montreal, dallas] = ["montreal", "dallas"].map(|name| hosts.stage.site(name).clone());
    let mut found: BTreeMap<String, Moved> = BTreeMap::new();
    write(ABOVE)?;
    for paths in [1, 2] {
        hosts.set_second(paths == 2)?;
        disks::lay_overlay(&dallas)?;
        found.insert(format!("difference {paths}"), hosts.moved(&["--copy-storage-inc"])?);
        write(AGAIN)?;
        disks::lay_overlay(&montreal)?;
        found.insert(format!("back {paths}"), hosts.moved(&["--copy-storage-inc"])?);
    }
    // Whole, it has no base any more, so it goes back whole as well.
    for (paths, to) in [(1, &dallas), (2, &montreal)] {
        hosts.set_second(paths == 2)?;
        disks::lay_whole(to, length)?;
        found.insert(format!("whole {paths}"), hosts.moved(&["--copy-storage-all"])?);
    }
    serde_json::to_value(found).map_err(|error| LabError::Other(error.to_string()))
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(&format!(
        "A qcow2 disk above a base of {BASE} MiB of noise, of which the VM has written {ABOVE} MiB anew, and {AGAIN} MiB of \
         those once more before it comes back; some 90 MiB of memory travel with it. {MBIT} Mbit/s per path, round trip below \
         1 ms, libvirt under `mptcpize`; for one path the second network is down."
    ));
    let runs: Vec<BTreeMap<String, Moved>> = notes.of(KEY);
    let of = |kind: &str, paths: usize, number: fn(&Moved) -> f64| -> Vec<f64> {
        runs.iter().filter_map(|run| run.get(&format!("{kind} {paths}")).map(number)).collect()
    };
    let seconds = |moved: &Moved| moved.seconds;
    let mib = |moved: &Moved| moved.bytes.iter().sum::<u64>() as f64 / 1_048_576.0;
    let mut rows = Vec::new();
    for (kind, flags) in KINDS {
        let [one, two] = [1, 2].map(|paths| of(kind, paths, seconds));
        let ratio: Vec<f64> = one.iter().zip(&two).map(|(one, two)| one / two).collect();
        rows.push(vec![
            flags.to_owned(),
            runs.len().to_string(),
            spread(&of(kind, 2, mib), 0),
            spread(&one, 1),
            spread(&two, 1),
            spread(&ratio, 2),
        ]);
    }
    page.table(&["", "runs", "sent, MiB", "one path, s", "two paths, s", "times sooner"], &rows);
    let curve = |name, paths| {
        let points = (1..).map(f64::from).zip(KINDS);
        let points = points.filter_map(|(at, (kind, _))| Some((at, median(&of(kind, paths, seconds))?)));
        Curve { name, points: points.collect() }
    };
    page.plot(&Plot {
        title: "Time of a move with its disk",
        across: "1: whole, 2: difference, 3: back with the difference",
        up: "seconds",
        curves: vec![curve("one path", 1), curve("two paths", 2)],
    });
}
