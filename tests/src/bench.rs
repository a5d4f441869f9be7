//! `tests/bench`: what the papers ran, and what they did not. Each benchmark is a list of points, each measured several
//! times; what has been measured is kept, so that a run goes on where another was interrupted.

mod connections;
mod disk;
mod figure_12;
mod figure_14;
mod footprint;
mod harney;
mod hook_call;
mod hosts;
mod notes;
mod page;
mod planned;
mod plot;
mod progress;
mod stream;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::Value;

use self::{notes::Notes, page::Page, progress::Progress};
use crate::shell::{During as _, Result};

/// A thing to measure, and how often.
struct Point {
    key: String,
    times: usize,
}

/// Measures a point once.
type Measure = Box<dyn FnMut(&str) -> Result<Value>>;

/// One benchmark.
struct Benchmark {
    name: &'static str,
    title: &'static str,
    points: fn(quick: bool) -> Vec<Point>,
    /// Called when there is something to measure: what it builds serves all points.
    begin: fn() -> Result<Measure>,
    /// What the numbers say, as far as there are some.
    show: fn(&Notes, &mut Page),
}

/// The point under which it is written down what could not be measured, and why.
const FAILED: &str = "failed";
/// The same for the machine's load after each measurement.
const LOAD: &str = "load";
/// A run with so many failures is given up.
const MOST_FAILURES: usize = 3;

const ALL: [&Benchmark; 12] = [
    &stream::RATE,
    &stream::DISTANCE,
    &stream::SIZE,
    &figure_12::BENCHMARK,
    &figure_14::BENCHMARK,
    &disk::BENCHMARK,
    &planned::BENCHMARK,
    &harney::BENCHMARK,
    &hook_call::BENCHMARK,
    &footprint::BENCHMARK,
    &connections::BENCHMARK,
    &hosts::BENCHMARK,
];

/// What the operator of the bench wants.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    /// This one only.
    pub only: Option<String>,
    /// Few points, each once. Kept apart from what a whole run measures, and not published.
    pub quick: bool,
    /// Begin no measurement after this.
    pub until: Option<Instant>,
    /// Forget what was measured.
    pub fresh: bool,
    /// Where measurements are kept.
    pub kept: PathBuf,
    /// Where the page and its pictures go.
    pub results: PathBuf,
}

/// The names of all benchmarks.
#[must_use]
pub fn names() -> Vec<&'static str> {
    ALL.iter().map(|one| one.name).collect()
}

/// Measures what is missing and writes the page. `say` hears how far it is; a line that is `passing` is out of date with the
/// next.
///
/// # Errors
/// What could not be measured; the rest was, and is kept.
pub fn run(options: &BenchOptions, say: &mut dyn FnMut(&str, bool)) -> Result<()> {
    fs::create_dir_all(&options.kept).during(|| format!("make {}", options.kept.display()))?;
    let wanted = |one: &&&Benchmark| options.only.as_deref().is_none_or(|name| name == one.name);
    let mut failed = None;
    for one in ALL.iter().filter(wanted) {
        let mut notes = notes_of(one, options);
        if options.fresh {
            notes.forget()?;
        }
        if let Err(error) = measure(one, options, &mut notes, say) {
            say(&format!("{}: {}", one.name, crate::shell::chain(&error)), false);
            failed = Some(error);
        }
    }
    if !options.quick {
        write(options)?;
        say(&format!("wrote {}", options.results.join("RESULTS.md").display()), false);
    } else {
        for one in ALL.iter().filter(wanted) {
            let mut page = Page::new(one.name);
            (one.show)(&notes_of(one, options), &mut page);
            say(page.text(), false);
        }
    }
    failed.map_or(Ok(()), Err)
}

fn notes_of(one: &Benchmark, options: &BenchOptions) -> Notes {
    let kind = if options.quick { ".quick" } else { "" };
    Notes::open(options.kept.join(format!("{}{kind}.json", one.name)))
}

/// All points in turn, again and again: what the machine does meanwhile falls on each of them, and an interrupted run has
/// something of each.
fn measure(one: &Benchmark, options: &BenchOptions, notes: &mut Notes, say: &mut dyn FnMut(&str, bool)) -> Result<()> {
    let points = (one.points)(options.quick);
    let mut progress = Progress::new(one.name, &points, notes);
    let mut begun: Option<Measure> = None;
    let mut failures = 0;
    for round in 0..points.iter().map(|point| point.times).max().unwrap_or(0) {
        for point in points.iter().filter(|point| round < point.times) {
            if notes.count(&point.key) > round {
                continue;
            }
            if options.until.is_some_and(|until| Instant::now() > until) {
                say(&progress.line("the time is up; the next run goes on"), false);
                return Ok(());
            }
            say(&progress.line(&point.key), true);
            let measure = match &mut begun {
                Some(measure) => measure,
                None => begun.insert((one.begin)()?),
            };
            let start = Instant::now();
            match measure(&point.key) {
                Ok(value) => {
                    notes.put(&point.key, value)?;
                    notes.put(LOAD, load().into())?;
                }
                Err(error) => {
                    // The next one begins afresh.
                    begun = None;
                    let why = format!("{}: {}", point.key, crate::shell::chain(&error));
                    say(&progress.line(&why), false);
                    failures += 1;
                    notes.put(FAILED, why.chars().take(LONGEST).collect::<String>().into())?;
                    if failures == MOST_FAILURES {
                        return Err(error);
                    }
                }
            }
            progress.done(&point.key, start.elapsed());
        }
    }
    if begun.is_some() {
        say(&progress.line("done"), false);
    }
    Ok(())
}

fn write(options: &BenchOptions) -> Result<()> {
    let mut text = page::head();
    for one in ALL {
        let notes = notes_of(one, options);
        let mut page = Page::new(one.name);
        text.push_str(&format!("\n## {}\n\n", one.title));
        let points = (one.points)(false);
        let (measured, wanted) = points.iter().fold((0, 0), |(measured, wanted), point| {
            (measured + notes.count(&point.key).min(point.times), wanted + point.times)
        });
        if measured == 0 {
            text.push_str(&format!("Not yet run: `sudo tests/bench --only {}`.\n", one.name));
            continue;
        }
        if measured < wanted {
            text.push_str(&format!(
                "{measured} of {wanted} measurements made; `sudo tests/bench --only {}` makes the rest.\n\n",
                one.name
            ));
        }
        let failed: Vec<String> = notes.of(FAILED);
        if let Some(last) = failed.last() {
            let why = last.lines().next().unwrap_or_default();
            text.push_str(&format!(
                "{} more came to nothing and are not in these numbers; the last: {why}.\n\n",
                failed.len()
            ));
        }
        let loads: Vec<f64> = notes.of(LOAD);
        if loads.iter().any(|load| *load > BUSY) {
            let spread = page::spread(&loads, 1);
            text.push_str(&format!(
                "The machine had other work: its load was {spread} after {} of them.\n\n",
                loads.len()
            ));
        }
        (one.show)(&notes, &mut page);
        text.push_str(page.text());
        page.write_pictures(&options.results)?;
    }
    let path = options.results.join("RESULTS.md");
    fs::write(&path, text).during(|| format!("write {}", path.display()))
}

/// Of a failure, in characters; what is in no number needs no more.
const LONGEST: usize = 300;
/// More than the lab itself makes of it.
const BUSY: f64 = 4.0;

/// The machine's, over the last minute.
fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// Where a page's pictures are, beside it.
fn pictures(results: &Path) -> PathBuf {
    results.join("docs/results")
}

#[cfg(test)]
mod tests;
