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

/// When a migration entered each of its states.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Steps(pub Vec<Step>);

/// One of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
}

impl Steps {
    pub fn mark(&mut self, name: &str) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.push(Step { name: name.to_owned(), at_unix_ms: at.as_millis() as u64 });
    }
}
