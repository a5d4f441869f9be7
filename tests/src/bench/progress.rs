//! How far a benchmark is, and how long it still takes.

use std::{collections::HashMap, time::Duration};

use super::{Notes, Point};

/// Of one benchmark.
pub(super) struct Progress {
    name: &'static str,
    total: usize,
    /// Measurements that each point still wants.
    left: HashMap<String, usize>,
    /// How long each point's last one took.
    took: HashMap<String, Duration>,
}

const WIDTH: usize = 20;

impl Progress {
    pub(super) fn new(name: &'static str, points: &[Point], notes: &Notes) -> Progress {
        let missing = |point: &Point| point.times.saturating_sub(notes.count(&point.key));
        let left = points.iter().map(|point| (point.key.clone(), missing(point))).collect();
        Progress { name, total: points.iter().map(|point| point.times).sum(), left, took: HashMap::new() }
    }

    pub(super) fn done(&mut self, key: &str, took: Duration) {
        if let Some(left) = self.left.get_mut(key) {
            *left = left.saturating_sub(1);
        }
        self.took.insert(key.to_owned(), took);
    }

    /// A point that has not been measured yet takes as long as the others do on average.
    fn time_left(&self) -> Option<Duration> {
        let average = self.took.values().sum::<Duration>().checked_div(u32::try_from(self.took.len()).ok()?)?;
        let of = |(key, left): (&String, &usize)| {
            *self.took.get(key).unwrap_or(&average) * u32::try_from(*left).unwrap_or(0)
        };
        Some(self.left.iter().map(of).sum())
    }

    /// `stream [#####---------------] 10/40, 12 min left: 100 Mbit/s`
    pub(super) fn line(&self, what: &str) -> String {
        let done = self.total - self.left.values().sum::<usize>();
        let full = (WIDTH * done).checked_div(self.total).unwrap_or(WIDTH);
        let left = match self.time_left() {
            Some(left) if left > Duration::from_secs(90) => format!(", {:.0} min left", left.as_secs_f64() / 60.0),
            Some(left) if !left.is_zero() => format!(", {} s left", left.as_secs()),
            _ => String::new(),
        };
        let bar = "#".repeat(full) + &"-".repeat(WIDTH - full);
        format!("{} [{bar}] {done}/{}{left}: {what}", self.name, self.total)
    }
}
