//! Curves over time.

use super::{Window, median};
use crate::traffic::{Log, Nanos};

/// What the client received over all connections, in Mbit (10^6) per second, in steps of `step`: the step's beginning
/// and its rate.
pub fn throughput(log: &Log, window: Window, step: Nanos) -> Vec<(Nanos, f64)> {
    let step = step.max(1);
    let mut bytes = vec![0_u64; ((window.until - window.from) / step + 1) as usize];
    let arrivals = log.connections.iter().flat_map(|connection| &connection.arrivals);
    for arrival in arrivals.filter(|arrival| window.holds(arrival.at)) {
        bytes[((arrival.at - window.from) / step) as usize] += u64::from(arrival.bytes);
    }
    (0..).zip(bytes).map(|(index, bytes)| (window.from + index * step, bytes as f64 * 8_000.0 / step as f64)).collect()
}

/// Round trips of the probes sent in the window: when, and how many milliseconds.
pub fn rtt_series(log: &Log, window: Window) -> Vec<(Nanos, f64)> {
    log.rtt.iter().filter(|(at, _)| window.holds(*at)).map(|(at, rtt)| (*at, f64::from(*rtt) / 1_000.0)).collect()
}

/// Their median.
pub fn rtt_median_ms(log: &Log, window: Window) -> Option<f64> {
    median(&rtt_series(log, window).into_iter().map(|(_, rtt)| rtt).collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traffic::{Arrival, ConnectionLog, Origin};

    #[test]
    fn rates_and_round_trips() {
        let arrival = |at, bytes| Arrival { at, bytes, sent: 0, acknowledged: 0 };
        let connection = ConnectionLog {
            id: 1,
            origin: Origin::Client,
            local: ([10, 9, 0, 2], 1).into(),
            remote: ([10, 1, 0, 10], 2).into(),
            arrivals: vec![arrival(1_000, 125), arrival(1_500, 125), arrival(3_000, 125)],
            sent: 0,
            received: 0,
            wrong: 0,
            failed: None,
            end: None,
        };
        let log = Log {
            connections: vec![connection],
            rtt: vec![(900, 5_000), (1_000, 70_000), (2_000, 71_000), (3_000, 2_000)],
            ..Log::default()
        };
        let window = Window { from: 1_000, until: 3_000 };
        assert_eq!(throughput(&log, window, 1_000), vec![(1_000, 2_000.0), (2_000, 0.0), (3_000, 1_000.0)]);
        assert_eq!(rtt_median_ms(&log, window), Some(70.0));
        assert_eq!(rtt_median_ms(&log, Window { from: 0, until: 10 }), None);
    }
}
