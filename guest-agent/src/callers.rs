//! Calls by D-Bus that wait for the machine's answer about a migration.

use lsm_protocol::{FromGuest, MigrationId};
use tokio::sync::oneshot;

/// In the order they came.
#[derive(Debug, Default)]
pub(crate) struct Callers(Vec<(MigrationId, oneshot::Sender<FromGuest>)>);

impl Callers {
    /// Waits for an answer about a migration, after those who do so already.
    pub(crate) fn wait(&mut self, migration: MigrationId, answer: oneshot::Sender<FromGuest>) {
        self.0.retain(|(_, waiting)| !waiting.is_closed());
        self.0.push((migration, answer));
    }

    /// Answers whoever has waited longest and still does; the end of a migration is everybody's answer.
    pub(crate) fn answer(&mut self, migration: MigrationId, reply: &FromGuest) {
        let ends = matches!(reply, FromGuest::Settled { .. } | FromGuest::Aborted { .. });
        let (ours, mut others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.0).into_iter().partition(|(about, _)| *about == migration);
        let mut answered = false;
        for (about, waiting) in ours {
            if answered && !ends {
                others.push((about, waiting));
            } else {
                answered |= waiting.send(reply.clone()).is_ok();
            }
        }
        self.0 = others;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIGRATION: MigrationId = MigrationId([1; 16]);

    #[test]
    fn who_has_given_up_takes_nobody_s_answer() {
        let mut callers = Callers::default();
        let (gave_up, _) = oneshot::channel();
        let (first, mut first_hears) = oneshot::channel();
        let (other, mut other_hears) = oneshot::channel();
        let (second, mut second_hears) = oneshot::channel();
        callers.wait(MIGRATION, first);
        callers.wait(MigrationId([2; 16]), other);
        callers.wait(MIGRATION, second);
        callers.0.insert(0, (MIGRATION, gave_up));
        let aborted = FromGuest::Aborted { migration: MIGRATION };
        let refused = FromGuest::Refused { migration: MIGRATION, why: lsm_protocol::Refusal::NotPrepared };
        callers.answer(MIGRATION, &refused);
        assert_eq!(first_hears.try_recv(), Ok(refused));
        assert!(second_hears.try_recv().is_err(), "one answer, one caller");
        callers.answer(MIGRATION, &aborted);
        assert_eq!(second_hears.try_recv(), Ok(aborted));
        assert!(other_hears.try_recv().is_err());
        assert_eq!(callers.0.len(), 1);
    }
}
