//! How many connections a move takes: one to ten thousand, between two vNICs of a namespace. Without a VM, so that what is
//! measured is the agent and the kernel, and not an emulated CPU.

use std::{
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Benchmark, Measure, Notes, Page, Point, page::spread};
use crate::{
    crossing::{A, B, Crossing, LIMIT},
    demo::timeline,
    measure::{Window, longest_gap_of_all, milliseconds},
    shell::{LabError, Result, wait_for},
    traffic::ClientProcess,
};

pub(super) const BENCHMARK: Benchmark =
    Benchmark { name: "connections", title: "How many connections move", points, begin, show };

const COUNTS: [u16; 4] = [1, 100, 1000, 10_000];
/// Of them, these carry traffic.
const ACTIVE: u16 = 100;
const PERIOD: Duration = Duration::from_millis(20);
/// Traffic before and after, for the gap.
const AROUND: Duration = Duration::from_millis(500);

#[derive(Serialize, Deserialize)]
struct Moved {
    /// Milliseconds until all had joined.
    joined: f64,
    /// From the order to switch until every one was on the new path.
    direct: f64,
    /// The longest time without data of any active one, around the switch.
    gap: f64,
    /// Of the agent, for the whole move, in milliseconds.
    cpu: f64,
    /// The most memory that it ever had, in KiB.
    memory: u64,
}

fn points(quick: bool) -> Vec<Point> {
    let counts = if quick { &COUNTS[..2] } else { &COUNTS[..] };
    counts.iter().map(|count| Point { key: count.to_string(), times: if quick { 1 } else { 10 } }).collect()
}

/// So many connections.
struct Crowd {
    crossing: Crossing,
    busy: ClientProcess,
    idle: Option<ClientProcess>,
    count: u16,
}

fn begin() -> Result<Measure> {
    // One crowd at a time: the kernel walks the connections of all namespaces.
    Ok(Box::new(|key| {
        serde_json::to_value(Crowd::gather(key)?.moved()?).map_err(|error| LabError::Other(error.to_string()))
    }))
}

impl Crowd {
    fn gather(key: &str) -> Result<Crowd> {
        let count: u16 = key.parse().map_err(|_| LabError::Other(format!("{key} is no number of connections")))?;
        let mut crossing = Crossing::set(key)?;
        let active = count.min(ACTIVE);
        let mut busy = crossing.traffic(&[], 5001, active, 0, PERIOD)?;
        let idle = if count > active {
            let mut idle = crossing.traffic(&[], 6001, count - active, 0, Duration::from_secs(3_600))?;
            idle.start().map_err(lab)?;
            Some(idle)
        } else {
            None
        };
        busy.start().map_err(lab)?;
        Ok(Crowd { crossing, busy, idle, count })
    }

    fn moved(mut self) -> Result<Moved> {
        let count = usize::from(self.count);
        let (before, _) = self.crossing.spent()?;
        let start = Instant::now();
        self.crossing.prepare_with(A, B, count, 0)?;
        let joined = start.elapsed();
        thread::sleep(AROUND);
        self.busy.take_log().map_err(lab)?;
        let (from, start) = (timeline::now(), Instant::now());
        self.crossing.ask("switch --settle")?;
        wait_for("all to have moved", LIMIT, || {
            let status = self.crossing.ask("status").ok()?;
            (status["moved"] == count || status["state"] == "idle").then_some(())
        })?;
        let direct = start.elapsed();
        thread::sleep(AROUND);
        let log = self.busy.take_log().map_err(lab)?;
        wait_for("the agent to settle", LIMIT, || {
            (self.crossing.ask("status").ok()?["state"] == "idle").then_some(())
        })?;
        let gaps = longest_gap_of_all(&log, Window { from, until: log.until });
        let (after, memory) = self.crossing.spent()?;
        // In good order: what a killed program leaves to the kernel, the next crowd pays for.
        for client in [Some(self.busy), self.idle].into_iter().flatten() {
            let ended = client.stop().map_err(lab)?;
            if let Some(broken) = ended.connections.iter().find(|connection| !connection.is_whole()) {
                return Err(LabError::Other(format!("connection {} is not whole: {:?}", broken.id, broken.failed)));
            }
        }
        let ms = |span: Duration| span.as_secs_f64() * 1e3;
        Ok(Moved {
            joined: ms(joined),
            direct: ms(direct),
            gap: gaps.iter().map(|(_, gap)| milliseconds(gap.length)).fold(0.0, f64::max),
            cpu: ms(after - before),
            memory,
        })
    }
}

fn lab(error: crate::traffic::TrafficError) -> LabError {
    LabError::Other(crate::traffic::chain(&error))
}

fn show(notes: &Notes, page: &mut Page) {
    page.say(&format!(
        "MPTCP connections of one client, of which up to {ACTIVE} carry a record every {} ms each way, move between two vNICs \
         of one namespace, on this machine's own kernel; there is no VM, nor a pause. The gap is the longest of all active \
         connections, and no shorter than the time between two records. CPU and memory are the agent's, for the whole move.",
        PERIOD.as_millis()
    ));
    let mut rows = Vec::new();
    for count in COUNTS {
        let moves: Vec<Moved> = notes.of(&count.to_string());
        let of = |number: fn(&Moved) -> f64| moves.iter().map(number).collect::<Vec<f64>>();
        rows.push(vec![
            count.to_string(),
            moves.len().to_string(),
            spread(&of(|moved| moved.joined), 0),
            spread(&of(|moved| moved.direct), 0),
            spread(&of(|moved| moved.gap), 0),
            spread(&of(|moved| moved.cpu), 0),
            spread(&of(|moved| moved.memory as f64 / 1024.0), 1),
        ]);
    }
    let head = [
        "connections",
        "moves",
        "all joined after, ms",
        "order to switch until all are on the new path, ms",
        "gap, ms",
        "CPU, ms",
        "most memory, MiB",
    ];
    page.table(&head, &rows);
}
