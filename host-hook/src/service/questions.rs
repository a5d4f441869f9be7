//! How much a peer may ask about VMs of which it has no move yet: where one runs (`Locate`), and how its connections stand
//! (`Foresee`), for which the guest counts them. It could be their next host, so it is answered; but not without end.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use lsm_protocol::Uuid;

/// What a peer may ask at once. It takes three questions a VM at most (where, and its connections before and after they
/// were invited), so that a host can be drained of 300 VMs in one moment.
const AT_ONCE: f64 = 1_000.0;
/// What comes back to it in a second.
const PER_SECOND: f64 = 10.0;
/// Forecasts of one VM in a [`MINUTE`]: some tries of a move.
const OF_A_VM: u32 = 20;
const MINUTE: Duration = Duration::from_secs(60);

/// What peers have asked.
#[derive(Default)]
pub(super) struct Questions(HashMap<String, Asker>);

struct Asker {
    left: f64,
    at: Instant,
    /// Forecasts since the beginning of this minute.
    minute: Instant,
    forecasts: HashMap<Uuid, u32>,
    /// When the log was last told of questions that were not answered, and how many there have been since.
    told: Option<Instant>,
    untold: u32,
}

impl Questions {
    /// Whether a peer may know where a VM runs.
    pub(super) fn may_locate(&mut self, peer: &str, now: Instant) -> bool {
        self.asker(peer, now).may(peer, now, None)
    }

    /// Whether a peer may know how a VM's connections stand.
    pub(super) fn may_foresee(&mut self, peer: &str, vm: Uuid, now: Instant) -> bool {
        self.asker(peer, now).may(peer, now, Some(vm))
    }

    fn asker(&mut self, peer: &str, now: Instant) -> &mut Asker {
        self.0.entry(peer.to_owned()).or_insert_with(|| Asker {
            left: AT_ONCE,
            at: now,
            minute: now,
            forecasts: HashMap::new(),
            told: None,
            untold: 0,
        })
    }
}

impl Asker {
    fn may(&mut self, peer: &str, now: Instant, forecast: Option<Uuid>) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.left, self.at) = ((self.left + since * PER_SECOND).min(AT_ONCE), now);
        if now.saturating_duration_since(self.minute) >= MINUTE {
            self.minute = now;
            self.forecasts.clear();
        }
        // Asked often enough already; it costs the peer a question all the same.
        let rare = forecast.is_none_or(|vm| self.forecasts.get(&vm).is_none_or(|times| *times < OF_A_VM));
        let some = self.left >= 1.0;
        if some {
            self.left -= 1.0;
        }
        if some && rare {
            forecast.into_iter().for_each(|vm| *self.forecasts.entry(vm).or_default() += 1);
            return true;
        }
        self.untold += 1;
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= MINUTE) {
            tracing::warn!(
                peer,
                unanswered = self.untold,
                "a peer asks for VMs, or for the connections of one, more often than moves need; it gets no answer"
            );
            (self.told, self.untold) = (Some(now), 0);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(number: usize) -> Uuid {
        Uuid((number as u128).to_be_bytes())
    }

    #[test]
    fn a_host_is_drained_of_two_hundred_vms_in_one_moment() {
        let (mut questions, now) = (Questions::default(), Instant::now());
        let each = |number: usize| {
            questions.may_locate("dallas", now)
                && questions.may_foresee("dallas", vm(number), now)
                && questions.may_foresee("dallas", vm(number), now)
        };
        assert!((0..200).all(each));
    }

    #[test]
    fn who_goes_on_asking_is_answered_ten_times_a_second_and_others_at_once() {
        let (mut questions, begun) = (Questions::default(), Instant::now());
        let answered = |questions: &mut Questions, at: Instant, times: usize| {
            (0..times).filter(|_| questions.may_locate("dallas", at)).count()
        };
        assert_eq!(answered(&mut questions, begun, 5_000), 1_000);
        assert!(!questions.may_foresee("dallas", vm(1), begun));
        assert!(questions.may_locate("montreal", begun));
        assert_eq!(answered(&mut questions, begun + Duration::from_secs(2), 100), 20);
        assert_eq!(answered(&mut questions, begun + 10 * MINUTE, 5_000), 1_000, "rested");
        assert_eq!(questions.0["dallas"].untold, 3_999, "the log was told of all before, once a minute");
    }

    #[test]
    fn one_vm_s_connections_are_counted_for_a_peer_some_times_a_minute() {
        let (mut questions, begun) = (Questions::default(), Instant::now());
        let times = |questions: &mut Questions, of: Uuid, at: Instant| {
            (0..100).filter(|_| questions.may_foresee("dallas", of, at)).count()
        };
        assert_eq!(times(&mut questions, vm(1), begun), 20);
        assert_eq!(times(&mut questions, vm(2), begun), 20);
        assert_eq!(times(&mut questions, vm(1), begun + MINUTE), 20);
    }
}
