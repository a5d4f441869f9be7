//! The old vNIC is not set down while QEMU may yet ask it to announce itself.
//!
//! For 0.8 s after a VM's arrival QEMU tells it to (five times, virtio's `VIRTIO_NET_S_ANNOUNCE`). Linux from 6.11 on then
//! waits for itself if the card is set down at the same moment: `virtnet_close` holds the lock over all network devices
//! and waits for the work that announces, which waits for that lock. Nothing of the network can be changed or even listed
//! in that VM any more (seen on 6.12.117; 6.1 has no such wait).

use std::time::Duration;

use tokio::time::Instant;

/// From the arrival on. Three times as long as QEMU speaks: a busy VM hears it late.
const ANNOUNCING: Duration = Duration::from_millis(2_500);

/// When the old path may be released.
pub(super) struct Release {
    /// The last arrival. An agent that has just started may have missed one.
    arrived: Instant,
    /// It was ordered, and is to be done then.
    due: Option<Instant>,
}

impl Release {
    pub(super) fn new() -> Release {
        Release { arrived: Instant::now(), due: None }
    }

    /// The VM runs on another host.
    pub(super) fn arrived(&mut self) {
        self.arrived = Instant::now();
    }

    /// Whether it is too early; [`Release::due`] then tells when it is not.
    pub(super) fn put_off(&mut self) -> bool {
        let quiet = self.arrived + ANNOUNCING;
        let early = Instant::now() < quiet;
        self.due = early.then_some(quiet);
        early
    }

    /// For ever, where nothing is put off.
    pub(super) fn due(&self) -> impl Future<Output = ()> + use<> {
        let due = self.due;
        async move {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        }
    }

    pub(super) fn done(&mut self) {
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_release_waits_until_the_card_is_not_asked_to_announce_itself() {
        let mut release = Release::new();
        release.arrived -= ANNOUNCING - Duration::from_millis(50);
        assert!(release.put_off(), "the agent may have missed an arrival");
        release.due().await;
        release.done();
        assert!(!release.put_off(), "long after the last arrival");
        release.arrived();
        assert!(release.put_off());
        assert_eq!(release.due, Some(release.arrived + ANNOUNCING));
        release.done();
        let never = tokio::time::timeout(Duration::from_millis(20), release.due()).await;
        assert!(never.is_err(), "nothing is put off any more");
    }
}
