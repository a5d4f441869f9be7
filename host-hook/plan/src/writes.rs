//! How a VM writes its memory, as far as a migration can feel it: how much of it is different after a while.
//!
//! libvirt's dirty rate says that for one span of time. Several spans give a curve that rises ever more slowly: pages
//! written often are all written early. The same curve is the sum of [`Class`]es of pages, each written once in its
//! period; from one the other follows.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

/// Pages that are each written once in `period`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Class {
    pub bytes: f64,
    pub period: f64,
}

/// The memory that is written at all; the most often written first.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Writes(Vec<Class>);

/// What was different after a VM had been watched for so long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watched {
    pub seconds: f64,
    pub bytes: f64,
}

impl Writes {
    /// Of these classes.
    #[must_use]
    pub fn new(mut classes: Vec<Class>) -> Writes {
        classes.retain(|class| class.bytes > 0.0 && class.period > 0.0);
        classes.sort_by(|a, b| a.period.total_cmp(&b.period));
        Writes(classes)
    }

    /// From a few spans, the shortest first. What the longest shows goes on until `memory` is reached.
    #[must_use]
    pub fn watched(spans: &[Watched], memory: f64) -> Writes {
        let mut slopes: Vec<(f64, f64)> = Vec::new(); // until when, bytes per second
        let (mut since, mut reached) = (0.0, 0.0);
        for span in spans {
            if span.seconds <= since {
                continue;
            }
            // Samples err; no curve of this kind falls, or rises faster the longer it is.
            let steepest = slopes.last().map_or(f64::MAX, |(_, slope)| *slope);
            let slope = ((span.bytes - reached) / (span.seconds - since)).max(0.0).min(steepest);
            reached += slope * (span.seconds - since);
            since = span.seconds;
            slopes.push((since, slope));
        }
        let mut classes = Vec::new();
        for pair in slopes.windows(2) {
            let [(period, slope), (_, next)] = pair else { continue };
            classes.push(Class { bytes: (slope - next) * period, period: *period });
        }
        if let Some((_, slope)) = slopes.last() {
            let bytes = memory - classes.iter().map(|class| class.bytes).sum::<f64>();
            classes.push(Class { bytes, period: bytes / slope.max(1e-9) });
        }
        Writes::new(classes)
    }

    /// What is different after so long.
    #[must_use]
    pub fn within(&self, seconds: f64) -> f64 {
        // Not `sum`, whose nothing is -0.
        self.0.iter().fold(0.0, |all, class| all + class.bytes * (seconds / class.period).min(1.0))
    }

    /// Bytes that begin to differ per second, from the first moment on.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.0.iter().fold(0.0, |all, class| all + class.bytes / class.period)
    }

    pub(crate) fn classes(&self) -> &[Class] {
        &self.0
    }
}
