//! How long nothing came.

use std::collections::HashSet;

use super::Window;
use crate::traffic::{DatagramLog, Log, Nanos};

/// An interval in which nothing arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    pub from: Nanos,
    pub length: Nanos,
}

/// The longest interval between two of `times`, which must be in order, that touches the window. Where nothing comes any
/// more before `seen_until`, the end of the recording, that is the end of the interval.
pub fn longest_gap(times: impl IntoIterator<Item = Nanos>, window: Window, seen_until: Nanos) -> Option<Gap> {
    let mut longest: Option<Gap> = None;
    let mut last = None;
    let ended = window.until.min(seen_until);
    let mut note = |from: Nanos, until: Nanos| {
        if until >= window.from && from <= window.until {
            let gap = Gap { from, length: until.saturating_sub(from) };
            if longest.is_none_or(|known| known.length < gap.length) {
                longest = Some(gap);
            }
        }
    };
    for time in times {
        if let Some(last) = last {
            note(last, time);
        }
        last = Some(time);
    }
    if let Some(last) = last.filter(|last| *last < ended) {
        note(last, seen_until);
    }
    longest
}

/// Per MPTCP connection the longest gap in what the client received: number and gap. A connection that received
/// nothing at all has the whole window as its gap.
pub fn longest_gap_of_all(log: &Log, window: Window) -> Vec<(u16, Gap)> {
    log.multipath()
        .map(|connection| {
            let times = connection.arrivals.iter().map(|arrival| arrival.at);
            let nothing = Gap { from: window.from, length: window.until - window.from };
            (connection.id, longest_gap(times, window, log.until).unwrap_or(nothing))
        })
        .collect()
}

/// The longest gap in the answers to the datagrams.
pub fn datagram_gap(log: &Log, window: Window) -> Option<Gap> {
    longest_gap(log.datagrams.arrivals.iter().map(|(at, ..)| *at), window, log.until)
}

/// What became of the datagrams that were sent in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DatagramLoss {
    pub sent: u64,
    /// Never answered.
    pub lost: u64,
    /// Of these, how many answers are known to have been given, and lost on the way back.
    pub lost_to_client: u64,
    /// Answers that came more than once, or datagrams that were answered more than once.
    pub duplicated: u64,
}

/// Counts the datagrams sent in the window. Leave at least a round trip between its end and the log's, or those still
/// under way count as lost.
pub fn datagram_loss(log: &DatagramLog, window: Window) -> DatagramLoss {
    let sent: HashSet<u64> =
        log.sent.iter().filter(|(at, _)| window.holds(*at)).map(|(_, sequence)| *sequence).collect();
    let answers: Vec<(u64, u64)> = log
        .arrivals
        .iter()
        .filter(|(_, sequence, _)| sent.contains(sequence))
        .map(|(_, sequence, count)| (*sequence, *count))
        .collect();
    let answered: HashSet<u64> = answers.iter().map(|(sequence, _)| *sequence).collect();
    let counts: HashSet<u64> = answers.iter().map(|(_, count)| *count).collect();
    // The VM counts what it answers: a number that is missing between two that came was lost on the way back.
    let span = match (counts.iter().min(), counts.iter().max()) {
        (Some(first), Some(last)) => last - first + 1,
        _ => 0,
    };
    DatagramLoss {
        sent: sent.len() as u64,
        lost: (sent.len() - answered.len()) as u64,
        lost_to_client: span - counts.len() as u64,
        duplicated: (answers.len() - answered.len()) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { from: 100, until: 200 };

    #[test]
    fn gaps_that_touch_the_window_count_whole() {
        let gap = |times: &[Nanos]| longest_gap(times.iter().copied(), WINDOW, 300);
        assert_eq!(gap(&[0, 90, 150, 160, 290]), Some(Gap { from: 160, length: 130 }));
        assert_eq!(gap(&[0, 80, 90, 95, 99, 105, 110, 205, 300]), Some(Gap { from: 110, length: 95 }));
        assert_eq!(gap(&[10, 110]), Some(Gap { from: 110, length: 190 }), "a connection that died");
        assert_eq!(gap(&[150]), Some(Gap { from: 150, length: 150 }));
        assert_eq!(gap(&[]), None);
    }

    fn log() -> DatagramLog {
        DatagramLog {
            sent: (1..=10).map(|number| (100 + number * 10, number)).collect(),
            // 3 was lost on the way up, the answer to 5 (count 4) on the way down; 7 was answered twice.
            arrivals: [(1, 1), (2, 2), (4, 3), (6, 5), (7, 6), (7, 7), (8, 8), (9, 9), (10, 10)]
                .map(|(sequence, count)| (100 + sequence * 10 + 5, sequence, count))
                .to_vec(),
            wrong: 0,
        }
    }

    #[test]
    fn lost_and_repeated_datagrams_are_counted() {
        let all = Window { from: 0, until: 1_000 };
        let expected = DatagramLoss { sent: 10, lost: 2, lost_to_client: 1, duplicated: 1 };
        assert_eq!(datagram_loss(&log(), all), expected);
        let first_two = Window { from: 0, until: 120 };
        assert_eq!(datagram_loss(&log(), first_two), DatagramLoss { sent: 2, ..DatagramLoss::default() });
    }
}
