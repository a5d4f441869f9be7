//! The SEC'17 paper's pre-copy (section 3.3.2): pages with the highest write frequency over a long time, a tenth of the
//! memory at most, are not sent while they will be written again anyway. The set that is passed over shrinks from round
//! to round, so that the last rounds send what would not fit into the pause.
//!
//! No QEMU does this: its dirty bitmap has no memory. The nearest that there is sends each page at most twice: post-copy.

use crate::{
    Prediction, Situation,
    rounds::{self, Way},
};

/// The paper's threshold: so much of the memory is hot.
const HOT: f64 = 0.10;
/// What is left of the set in the next round.
const SHRINK: f64 = 0.5;

struct HotSkip {
    hot: f64,
    /// A set that fits into the pause with room to spare has nothing to gain from shrinking.
    least: f64,
}

impl Way for HotSkip {
    fn passed_over(&mut self) -> f64 {
        let now = self.hot;
        if self.hot > self.least {
            self.hot *= SHRINK;
        }
        now
    }
}

pub(crate) fn predict(at: &Situation) -> Option<Prediction> {
    rounds::simulate(at, &mut HotSkip { hot: at.memory * HOT, least: at.rate * at.downtime / 2.0 })
}
