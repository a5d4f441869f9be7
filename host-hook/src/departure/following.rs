//! How long a copy will go on, asked of libvirt again and again.

use std::{cell::Cell, rc::Rc, time::Duration};

use lsm_protocol::Uuid;
use tokio::sync::mpsc;

use crate::{libvirt, story};

/// How often it is asked for, where one VM leaves.
const FOLLOW: Duration = Duration::from_millis(100);
/// So many VMs are asked about at that pace over the bus. `virsh` is a process each time: one.
const AT_ONCE: u32 = 10;

/// How many copies are followed on this host.
pub type Followed = Rc<Cell<u32>>;

/// One of them, for as long as it lives.
struct One(Followed);

impl One {
    fn new(followed: Followed) -> One {
        followed.set(followed.get() + 1);
        One(followed)
    }

    fn pause(&self, is_cheap: bool) -> Duration {
        FOLLOW * self.0.get().div_ceil(if is_cheap { AT_ONCE } else { 1 })
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Tells how many milliseconds are left, until nobody wants to know. When many VMs leave at once, each is asked about less
/// often: what then is known too late for an early switch is a switch at the arrival.
pub(super) async fn follow(followed: Followed, vm: Uuid, progress: mpsc::UnboundedSender<u64>) {
    let one = One::new(followed);
    let (jobs, uuid) = (libvirt::Jobs::open(libvirt::Place::default()).await, vm.to_string());
    let (mut told, mut pace) = (String::new(), Pace::default());
    loop {
        tokio::time::sleep(one.pause(jobs.are_cheap())).await;
        match jobs.progress(&uuid).await {
            Ok(job) => {
                let left = job.as_ref().and_then(|job| pace.left(job));
                tracing::debug!(?job, left, "the copy's progress");
                if left.is_some_and(|left| progress.send(left).is_err()) {
                    return;
                }
            }
            Err(error) if story(&error) != told => {
                told = story(&error);
                tracing::warn!(error = told, "cannot follow the copy; an early flip may come too late");
            }
            Err(_) => {}
        }
    }
}

/// How fast the copy goes. What QEMU calls its rate is that of the bytes sent; memory that holds zeros is done at once,
/// and the remainder falls much faster there.
#[derive(Default)]
struct Pace {
    last: Option<(Duration, u64)>,
}

impl Pace {
    /// How long the copy will go on, in milliseconds; `None` before QEMU has measured anything.
    fn left(&mut self, job: &libvirt::Progress) -> Option<u64> {
        if job.data_total == 0 {
            return None;
        }
        let remaining = job.memory_remaining + job.disk_remaining;
        let seen = self.last.replace((job.elapsed, remaining)).and_then(|(then, before)| {
            let elapsed = job.elapsed.saturating_sub(then).as_millis() as u64;
            before.checked_sub(remaining)?.saturating_mul(1_000).checked_div(elapsed)
        });
        let rate = (job.memory_rate + job.disk_rate).max(seen.unwrap_or(0));
        if remaining == 0 { Some(0) } else { remaining.saturating_mul(1_000).checked_div(rate) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_copies_are_asked_about_no_more_often_than_a_few() {
        let followed = Followed::default();
        let one = One::new(followed.clone());
        assert_eq!([true, false].map(|cheap| one.pause(cheap)), [FOLLOW; 2]);
        let all: Vec<_> = (1..200).map(|_| One::new(followed.clone())).collect();
        assert_eq!([true, false].map(|cheap| one.pause(cheap)), [FOLLOW * 20, FOLLOW * 200]);
        drop(all);
        assert_eq!(one.pause(false), FOLLOW);
    }
}
