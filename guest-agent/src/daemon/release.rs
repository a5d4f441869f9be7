//! The old addresses are given up as soon as nobody needs them; their vNIC is not set down while QEMU may yet ask it to
//! announce itself.
//!
//! After a VM's arrival QEMU tells it to five times (virtio's `VIRTIO_NET_S_ANNOUNCE`), each within 0.45 s of the VM's answer
//! to the last: for 0.8 s, or longer where the VM is slow. Linux from 6.11 on then
//! waits for itself if the card is set down at the same moment: `virtnet_close` holds the lock over all network devices
//! and waits for the work that announces, which waits for that lock. Nothing of the network can be changed or even listed
//! in that VM any more (seen on 6.12.117; 6.1 has no such wait). Each time is a configuration interrupt, which is counted.

use std::time::Duration;

use lsm_protocol::guest::Step;
use tokio::time::Instant;

use super::Daemon;
use crate::{endpoints, path};

/// From the arrival on. Three times as long as QEMU speaks: a busy VM hears it late.
const ANNOUNCING: Duration = Duration::from_millis(2_500);

/// Cards that have not been asked for so long are not asked any more.
const SILENCE: Duration = Duration::from_secs(1);

/// When the old path may be released, and its vNIC set down.
pub(super) struct Release {
    /// The last arrival. An agent that has just started may have missed one.
    arrived: Instant,
    /// Until then the withdrawn addresses answer: see [`crate::farewell`].
    answered: Instant,
    /// It was ordered, and is to be done then.
    due: Option<Instant>,
    /// How often virtio devices had been told something when that was counted last.
    told: Option<u64>,
}

impl Release {
    pub(super) fn new() -> Release {
        Release { arrived: Instant::now(), answered: Instant::now(), due: None, told: None }
    }

    /// The VM runs on another host.
    pub(super) fn arrived(&mut self) {
        self.arrived = Instant::now();
    }

    /// The old addresses are withdrawn, and are needed for so long yet.
    pub(super) fn withdrawn(&mut self, needed: Duration) {
        self.answered = Instant::now() + needed;
    }

    /// From then on a vNIC may be set down.
    pub(super) fn quiet(&self) -> Instant {
        self.arrived + ANNOUNCING
    }

    pub(super) fn is_quiet(&self) -> bool {
        Instant::now() >= self.quiet()
    }

    /// Whether virtio devices have been told something since the last look: then a vNIC stays up for another while.
    fn is_told(&mut self, told: Option<u64>) -> bool {
        let again = told.is_some() && told != self.told;
        self.told = told;
        if again {
            self.arrived = Instant::now() + SILENCE - ANNOUNCING;
        }
        again
    }

    /// Whether it is too early; [`Release::due`] then tells when it is not. `owned`: the vNIC is another program's, which
    /// may set it down when it is told to give it up.
    pub(super) fn put_off(&mut self, owned: bool) -> bool {
        let earliest = if owned { self.quiet().max(self.answered) } else { self.answered };
        let early = Instant::now() < earliest;
        self.due = early.then_some(earliest);
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

impl Daemon {
    /// Whether somebody needs the old path for a moment yet: it is released then.
    pub(super) fn release_is_put_off(&mut self) -> bool {
        match endpoints::has_late_comers(&mut self.kernel, &self.record) {
            Ok(false) => {}
            Ok(true) => {
                self.hold_farewell();
                if let Err(error) = endpoints::withdraw_from_late_comers(&mut self.kernel, &mut self.record) {
                    tracing::warn!(%error, "connections that were opened to the old address keep a subflow there");
                }
            }
            Err(error) => tracing::warn!(%error, "cannot see who has come to the old address since it was withdrawn"),
        }
        self.release.put_off(self.old_is_owned())
    }

    /// What [`Release`] has put off.
    pub(super) async fn release_old(&mut self) {
        self.release.done();
        let event = self.do_step(Step::ReleaseOld).await;
        self.feed(event).await;
    }

    /// The move is over; its old vNIC was left up, and is for longer where a card is asked to announce itself still.
    pub(super) async fn set_spare_down(&mut self) {
        let interrupts = std::fs::read_to_string("/proc/interrupts").ok();
        if self.release.is_told(interrupts.as_deref().and_then(configured)) {
            return;
        }
        if let Err(error) = path::set_spare_down(&mut self.kernel, &mut self.record).await {
            tracing::warn!(%error, "the spare vNIC stays up, without an address");
            self.record.left_up = None;
        }
        self.save();
    }
}

/// How often virtio devices' configuration interrupts have come, by `/proc/interrupts`; `None` where they have none of their
/// own.
fn configured(interrupts: &str) -> Option<u64> {
    let of_configuration = |line: &&str| {
        let name = line.split_whitespace().last().unwrap_or_default();
        name.starts_with("virtio") && name.ends_with("-config")
    };
    let mut lines = interrupts.lines().filter(of_configuration).peekable();
    lines.peek()?;
    // The interrupt's number and a colon, then a count for each processor, then what it is.
    Some(lines.flat_map(|line| line.split_whitespace().skip(1).map_while(|count| count.parse::<u64>().ok())).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vnic_that_another_program_owns_is_not_given_up_while_it_is_asked_to_announce_itself() {
        let mut release = Release::new();
        assert!(!release.put_off(false), "ours stays up for now");
        release.arrived -= ANNOUNCING - Duration::from_millis(50);
        assert!(release.put_off(true), "the agent may have missed an arrival");
        release.due().await;
        release.done();
        assert!(release.is_quiet() && !release.put_off(true), "long after the last arrival");
        release.arrived();
        assert!(!release.is_quiet() && release.put_off(true));
        assert_eq!(release.due, Some(release.quiet()));
        release.done();
        let never = tokio::time::timeout(Duration::from_millis(20), release.due()).await;
        assert!(never.is_err(), "nothing is put off any more");
    }

    #[tokio::test]
    async fn addresses_that_are_withdrawn_answer_for_a_while() {
        let mut release = Release::new();
        release.withdrawn(Duration::from_millis(50));
        assert!(release.put_off(false));
        release.due().await;
        assert!(!release.put_off(false));
    }

    #[tokio::test]
    async fn a_vnic_stays_up_while_cards_are_asked() {
        let mut release = Release::new();
        assert!(release.is_told(Some(7)) && !release.is_quiet(), "nobody has looked before");
        assert!(!release.is_told(Some(7)));
        assert!(release.is_told(Some(8)));
        let wait = release.quiet() - Instant::now();
        assert!(wait <= SILENCE && wait > SILENCE / 2, "{wait:?}");
        assert!(!release.is_told(None), "where nobody can say, time alone does");
    }

    #[test]
    fn configuration_interrupts_are_counted() {
        let table = "           CPU0       CPU1\n\
                     \x20 24:          3          4  PCI-MSIX-0000:01:00.0   0-edge      virtio1-config\n\
                     \x20 25:        100        200  PCI-MSIX-0000:01:00.0   1-edge      virtio1-input.0\n\
                     \x20 27:          5          0  PCI-MSIX-0000:02:00.0   0-edge      virtio2-config\n\
                     NMI:          0          0   Non-maskable interrupts\n";
        assert_eq!(configured(table), Some(12));
        assert_eq!(configured("  10:   77  IO-APIC  10-fasteoi   virtio0\n"), None);
    }
}
