//! The two clocks of the measurements, in nanoseconds: monotonic while measuring, real time in what is handed over,
//! because packet times and QEMU's events are in real time.

use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC now.
pub(super) fn monotonic() -> u64 {
    now(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_REALTIME now.
pub(super) fn realtime() -> u64 {
    now(ClockId::CLOCK_REALTIME)
}

fn now(clock: ClockId) -> u64 {
    // These two clocks exist on every Linux; there is nothing to report.
    clock_gettime(clock).map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// What to add to a monotonic time to get the real one.
pub(super) fn offset() -> i64 {
    // The reading taken in the shortest time is the truest.
    (0..5)
        .map(|_| {
            let before = monotonic();
            let real = realtime();
            let after = monotonic();
            (after - before, real as i64 - (before / 2 + after / 2) as i64)
        })
        .min()
        .map_or(0, |(_, offset)| offset)
}
