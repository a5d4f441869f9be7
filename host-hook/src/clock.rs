//! The machines' time, and when things happened.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lsm_protocol::{Millis, guest::Deadline};
use serde::{Deserialize, Serialize};

/// Milliseconds since boot: goes on through the service's restarts.
pub fn now() -> Millis {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000 + t.tv_nsec() as u64 / 1_000_000)
}

/// Waits for a machine's deadline; for ever where it has none.
pub async fn sleep_until(deadline: Option<Deadline>) {
    match deadline {
        Some(deadline) => tokio::time::sleep(Duration::from_millis(deadline.at.saturating_sub(now()))).await,
        None => std::future::pending().await,
    }
}

/// So long after a VM woke up, nothing is changed on this host that can wait. Each change of network devices holds the
/// kernel's one lock over all of them, which QEMU needs too as it starts the VM's taps: with a tunnel taken down at the
/// arrival, the VM's CPUs stood still for 14 ms more.
pub const WAKING: Duration = Duration::from_millis(500);

/// Work that waits until a VM has woken up.
#[derive(Default)]
pub struct Later(Option<tokio::time::Instant>);

impl Later {
    /// It is to be done, after [`WAKING`].
    pub fn put_off(&mut self) {
        self.0.get_or_insert_with(|| tokio::time::Instant::now() + WAKING);
    }

    /// Waits until it is to be done; for ever where it is not.
    pub async fn due(&self) {
        match self.0 {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Whether it was to be done. From here on it is not.
    pub fn take(&mut self) -> bool {
        self.0.take().is_some()
    }
}

/// When a migration entered each of its states.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps(pub Vec<Step>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
}

impl Steps {
    /// Of a migration that is asked for now.
    pub fn begun() -> Steps {
        let mut steps = Steps::default();
        steps.mark("asked");
        steps
    }

    pub fn mark(&mut self, name: &str) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.push(Step { name: name.to_owned(), at_unix_ms: at.as_millis() as u64 });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_put_off_is_due_in_time_and_once() {
        let mut later = Later::default();
        assert!(!later.take());
        later.put_off();
        let begun = tokio::time::Instant::now();
        later.due().await;
        assert!(begun.elapsed() >= WAKING - Duration::from_millis(10));
        assert!(later.take());
        assert!(!later.take());
        let never = tokio::time::timeout(Duration::from_millis(10), later.due()).await;
        assert!(never.is_err(), "nothing is due any more");
    }
}
