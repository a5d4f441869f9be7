//! Several connections, each compressing for itself (multifd with zstd).

use crate::{
    Prediction, Situation,
    rounds::{self, Way},
};

/// What four threads compress per second, at least: zstd at its first level does 300 MB/s and more on one CPU.
const CPUS: f64 = 4.0 * 300e6;

struct Compressed {
    share: f64,
}

impl Way for Compressed {
    fn wire(&self, bytes: f64) -> f64 {
        Situation::stream(bytes) * self.share
    }

    fn rate(&self, rate: f64) -> f64 {
        rate.min(CPUS * self.share)
    }
}

pub(crate) fn predict(at: &Situation) -> Option<Prediction> {
    rounds::simulate(at, &mut Compressed { share: at.compressed.clamp(0.01, 1.0) })
}
