//! The setting of the SEC'17 paper's figure 12: time over rate, pre-copy beside hot-skip.

use alloc::vec;

use crate::{Class, Situation, Writes};

/// A VM of 1 GiB that writes 97 Mbit/s of new differences. The frequencies of its pages are ours: a few written always,
/// a tenth often, a third now and then. What there is to save hangs on them (chosen to come near the paper's 20 % at
/// 100 Mbit/s), the shape of the figure does not.
#[must_use]
pub fn figure_12(mbit: f64) -> Situation {
    const MEMORY: f64 = 1024.0 * 1_048_576.0;
    let class = |share: f64, period| Class { bytes: MEMORY * share, period };
    Situation {
        memory: MEMORY,
        data: MEMORY,
        writes: Writes::new(vec![class(0.003, 1.0), class(0.035, 10.0), class(0.07, 30.0), class(0.3, 120.0)]),
        compressed: 1.0,
        disk: 0.0,
        rate: mbit * 125_000.0,
        round_trip: 0.0,
        downtime: 0.3,
    }
}
