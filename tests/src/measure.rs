//! What the recordings say: pure functions over captures and traffic logs. All times are nanoseconds of
//! CLOCK_REALTIME, all durations nanoseconds.

use crate::traffic::Nanos;

mod direct;
mod gaps;
mod loss;
mod network;
mod paths;
mod series;

pub use direct::{Move, to_client, to_vm};
pub use gaps::{DatagramLoss, Gap, datagram_gap, datagram_loss, longest_gap, longest_gap_of_all};
pub use loss::{Tap, lost_frames};
pub use network::network_rtt_ms;
pub use paths::{Flow, Usage, joins, on_direct, usage};
pub use series::{rtt_median_ms, rtt_series, throughput};

/// From and until, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: Nanos,
    pub until: Nanos,
}

impl Window {
    pub fn holds(self, at: Nanos) -> bool {
        (self.from..=self.until).contains(&at)
    }
}

/// Nanoseconds as milliseconds.
pub fn milliseconds(nanos: Nanos) -> f64 {
    nanos as f64 / 1e6
}

/// The middle value; of an even number of values, the mean of the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}

#[cfg(test)]
mod synthetic;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
