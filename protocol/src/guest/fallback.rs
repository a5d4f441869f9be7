//! Back to the old path while the new one is dead at the new site, and to the new one again.
//!
//! ```text
//!            nobody gets anything through, for STUCK
//!   on the new path ------------------------------> on the old path
//!          ^                                               |
//!          +--- something got through on the new path -----+  not before `earliest`, ever later
//!          +--- the old path has saved nobody -------------+  UNSAVED: the clients are gone, not the path
//!          +--- it is time to try again -------------------+  AGAIN, ever more seldom
//! ```
//!
//! Kernels fall back by themselves, connection by connection, but not where the old subflow has seen losses too: while the
//! VM stood still it has. What TCP sends again and again on the dead path is the probe that finds it alive.

use serde::{Deserialize, Serialize};

use crate::{Millis, Side};

/// A kernel that falls back by itself does so within a second; this is twice that.
pub const STUCK: Millis = 2_000;
/// The first time the new path must have been left for so long; after each fall twice as long, up to [`MOST`].
pub const EARLIEST: Millis = 2_000;
/// By then the old path has carried something for those that were stuck, five times the back-off of a lost segment.
pub const UNSAVED: Millis = 5_000;
/// So long the path is trusted whose clients were gone; after each fall twice as long, up to [`MOST`].
pub const TRUSTED: Millis = 30_000;
/// A path on which nothing gets through is tried again after this; after each fall twice as long, up to [`MOST`].
pub const AGAIN: Millis = 60_000;
/// The longest of these.
pub const MOST: Millis = 5 * 60_000;

/// What became of the joined connections between the last two counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Those to which the new path carried data, or from which.
    pub carrying: u32,
    /// Those with data on the new path that nobody has acknowledged, none of it.
    pub stuck: u32,
    /// Of the stuck: those for which the old path carried data.
    pub saved: u32,
}

/// Which path is used, and what is known of the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fallback {
    /// When the new path is given up, unless something gets through until then.
    given_up: Option<Millis>,
    /// It is not given up before.
    trusted: Option<Millis>,
    fallen: Option<Fallen>,
    /// How often it was given up.
    falls: u8,
}

/// The old path is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Fallen {
    /// Until then it is, whatever gets through on the new one.
    earliest: Millis,
    /// After that the new one is tried again.
    until: Millis,
    /// Something got through on the new one.
    revived: bool,
    /// The old one carries data for those who were stuck.
    saved: bool,
}

impl Fallback {
    /// The path to prefer.
    pub fn side(&self) -> Side {
        if self.fallen.is_some() { Side::Old } else { Side::New }
    }

    /// The new path is given up, or will be unless something gets through: nobody may be left with it alone.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.given_up.is_some() || self.fallen.is_some()
    }

    /// After a count: whether the other path is to be preferred from now on.
    pub(super) fn judge(&mut self, now: Millis, progress: Progress) -> bool {
        let Progress { carrying, stuck, saved } = progress;
        let Some(fallen) = &mut self.fallen else {
            // One connection that gets something through shows that the path lives; the others' peers may be gone.
            if carrying > 0 || stuck == 0 {
                self.given_up = None;
                return false;
            }
            let given_up = *self.given_up.get_or_insert((now + STUCK).max(self.trusted.unwrap_or_default()));
            if now < given_up {
                return false;
            }
            self.falls = self.falls.saturating_add(1);
            let earliest = now + self.ever_longer(EARLIEST);
            self.fallen = Some(Fallen { earliest, until: now + UNSAVED, revived: false, saved: false });
            return true;
        };
        fallen.revived |= carrying > 0;
        if saved > 0 && !fallen.saved {
            fallen.saved = true;
            fallen.until = now + ever_longer(AGAIN, self.falls);
        }
        let Fallen { earliest, until, revived, saved } = *fallen;
        if !(revived && now >= earliest || now >= until) {
            return false;
        }
        self.rise();
        self.trusted = (!revived && !saved).then_some(now + self.ever_longer(TRUSTED));
        true
    }

    /// The new path is used, whatever is known of it. Says whether it was not.
    pub(super) fn rise(&mut self) -> bool {
        (self.given_up, self.trusted) = (None, None);
        self.fallen.take().is_some()
    }

    fn ever_longer(&self, first: Millis) -> Millis {
        ever_longer(first, self.falls)
    }
}

/// Twice as long each time.
fn ever_longer(first: Millis, times: u8) -> Millis {
    (first << times.saturating_sub(1).min(16)).min(MOST)
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use super::*;

    const DEAD: Progress = Progress { carrying: 0, stuck: 2, saved: 0 };
    const SAVED: Progress = Progress { saved: 1, ..DEAD };
    const ALIVE: Progress = Progress { carrying: 1, stuck: 1, saved: 0 };
    const IDLE: Progress = Progress { carrying: 0, stuck: 0, saved: 0 };

    /// Counts once a second, and gives the seconds at which the path changed.
    fn changes(
        fallback: &mut Fallback,
        seconds: core::ops::Range<u64>,
        saw: impl Fn(u64, Side) -> Progress,
    ) -> Vec<u64> {
        seconds.filter(|at| fallback.judge(at * 1_000, saw(*at, fallback.side()))).collect()
    }

    #[test]
    fn a_dead_path_is_given_up_when_nobody_got_anything_through_for_some_time() {
        let mut fallback = Fallback::default();
        assert_eq!(changes(&mut fallback, 0..2, |_, _| DEAD), vec![]);
        assert_eq!(changes(&mut fallback, 2..3, |_, _| ALIVE), vec![], "one gets on");
        assert_eq!(changes(&mut fallback, 3..5, |_, _| DEAD), vec![]);
        assert_eq!(changes(&mut fallback, 5..6, |_, _| IDLE), vec![], "nobody has anything to send");
        assert_eq!(changes(&mut fallback, 6..20, |_, side| if side == Side::Old { SAVED } else { DEAD }), vec![8]);
        assert_eq!(fallback.side(), Side::Old);
    }

    #[test]
    fn a_path_that_lives_again_is_used_again_and_one_that_comes_and_goes_ever_later() {
        let mut fallback = Fallback::default();
        // Every third second something gets through, if only what was sent again.
        let saw = |at: u64, side| match (at % 3, side) {
            (0, Side::Old) => ALIVE,
            (_, Side::Old) => SAVED,
            (_, Side::New) => DEAD,
        };
        let at = changes(&mut fallback, 0..10_000, saw);
        let away: Vec<u64> = at.chunks_exact(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(away[..5], [2, 4, 8, 16, 32], "{at:?}");
        assert!(away.iter().all(|away| away * 1_000 <= MOST + 3_000), "{away:?}");
        assert_eq!(away.last(), Some(&300));
    }

    #[test]
    fn for_a_client_that_is_gone_the_new_path_is_left_briefly_and_ever_more_seldom() {
        let mut fallback = Fallback::default();
        let at = changes(&mut fallback, 0..4_000, |_, _| DEAD);
        assert_eq!(at[..8], [2, 7, 37, 42, 102, 107, 227, 232]);
        let on_old: u64 = at.chunks_exact(2).map(|pair| pair[1] - pair[0]).sum();
        assert!(on_old < 100, "{on_old} of 4,000 s on the long way");
    }

    #[test]
    fn a_path_that_stays_dead_is_tried_ever_more_seldom() {
        let mut fallback = Fallback::default();
        let at = changes(&mut fallback, 0..4_000, |_, side| if side == Side::Old { SAVED } else { DEAD });
        assert_eq!(at[..6], [2, 63, 66, 187, 190, 431]);
        assert!(at.len() < 32, "{at:?}");
    }
}
