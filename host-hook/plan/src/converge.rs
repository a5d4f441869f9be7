//! Auto-converge: QEMU holds the VM's CPUs back, ever more, for as long as more than half of what it sends is written
//! again (migration/ram.c, `migration_trigger_throttle`).

use crate::{
    Prediction, Situation,
    rounds::{self, Round, Way},
};

// QEMU's defaults (migration/options.c).
const TRIGGER: f64 = 0.5;
const INITIAL: f64 = 0.20;
const INCREMENT: f64 = 0.10;
const MOST: f64 = 0.99;
/// A round shorter than this is not judged.
const PERIOD: f64 = 1.0;

#[derive(Default)]
struct Converge {
    /// Judged and found too much; the second time in a row counts.
    high: bool,
    held_back: f64,
    /// What came together since the last judgement.
    seconds: f64,
    written: f64,
    sent: f64,
}

impl Way for Converge {
    fn speed(&mut self, round: Round) -> f64 {
        self.seconds += round.seconds;
        self.written += round.written;
        self.sent += round.sent;
        if self.seconds >= PERIOD {
            let high = self.written > self.sent * TRIGGER;
            if high && self.high {
                let more = if self.held_back == 0.0 { INITIAL } else { INCREMENT };
                self.held_back = (self.held_back + more).min(MOST);
                self.high = false;
            } else {
                self.high = high;
            }
            (self.seconds, self.written, self.sent) = (0.0, 0.0, 0.0);
        }
        1.0 - self.held_back
    }
}

pub(crate) fn predict(at: &Situation) -> Option<Prediction> {
    rounds::simulate(at, &mut Converge::default())
}
