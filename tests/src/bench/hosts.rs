//! Two hosts' services while many VMs move from one to the other at once: how long each step takes, and their memory.

use super::{Benchmark, Measure, Notes, Page, Point, page::spread};
use crate::{
    crowd::{Moved, run_crowd},
    shell::LabError,
};

pub(super) const BENCHMARK: Benchmark =
    Benchmark { name: "hosts", title: "Many VMs that move at once between two hosts", points, begin, show };

fn points(quick: bool) -> Vec<Point> {
    let counts: &[usize] = if quick { &[20] } else { &[1, 20, 200] };
    counts.iter().map(|count| Point { key: count.to_string(), times: if quick { 1 } else { 10 } }).collect()
}

fn begin() -> crate::shell::Result<Measure> {
    Ok(Box::new(|key| {
        let count = key.parse().map_err(|_| LabError::Other(format!("{key} is no number of VMs")))?;
        let Moved { steps, memory } = run_crowd(count)?;
        Ok(serde_json::json!({ "steps": steps, "memory": memory }))
    }))
}

#[derive(serde::Deserialize)]
struct Kept {
    steps: Vec<(String, Vec<f64>)>,
    memory: [u64; 2],
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(
        "The hosts' services, hooks, tunnels, filters and channels are real, in namespaces of one machine; the VMs are two \
         taps each and the agent's machine without a kernel, and libvirt's part is played. Milliseconds of each VM, of all runs together.",
    );
    let all: Vec<(String, Vec<Kept>)> =
        points(false).into_iter().map(|point| (point.key.clone(), notes.of(&point.key))).collect();
    let Some(first) = all.iter().find_map(|(_, runs)| runs.first()) else { return };
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (at, (name, _)) in first.steps.iter().enumerate() {
        let ms = |runs: &[Kept]| {
            let each = runs.iter().filter_map(|run| run.steps.get(at)).flat_map(|(_, ms)| ms);
            each.copied().collect::<Vec<f64>>()
        };
        let cells = all.iter().map(|(_, runs)| spread(&ms(runs), 0));
        rows.push([name.clone()].into_iter().chain(cells).collect());
    }
    for (at, host) in ["source", "destination"].into_iter().enumerate() {
        let mib = |runs: &[Kept]| runs.iter().map(|run| run.memory[at] as f64 / 1024.0).collect::<Vec<f64>>();
        let cells = all.iter().map(|(_, runs)| spread(&mib(runs), 1));
        rows.push([format!("most memory of the {host}'s service, MiB")].into_iter().chain(cells).collect());
    }
    let head = all.iter().map(|(count, runs)| {
        let vms = if count == "1" { "1 VM".into() } else { format!("{count} VMs") };
        format!("{vms}, {} times", runs.len())
    });
    let head: Vec<String> = [String::new()].into_iter().chain(head).collect();
    page.table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows);
}
