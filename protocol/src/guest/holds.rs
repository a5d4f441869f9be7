//! Who in the VM holds moves back, and for how long. A hold is taken at any time and counts at each preparation until it
//! is released or its owner is gone, like a delay lock of systemd-logind. It is kept in the agent's memory alone: the
//! connection that it hangs on goes with the agent.

use alloc::{string::String, vec::Vec};
use core::fmt;

use super::HOLD;
use crate::Millis;

/// More at once is somebody's mistake.
pub const MOST: usize = 64;
/// Of a reason, in bytes: it stands in status and log.
pub const LONGEST: usize = 200;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub cookie: u32,
    /// Whose it is, as D-Bus knows it.
    pub owner: String,
    pub reason: String,
    /// How long it lasts, from the preparation's beginning or, taken later, from then.
    pub lasts: Millis,
    taken: Millis,
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, up to {} ms)", self.reason, self.owner, self.lasts)
    }
}

/// Why a hold is not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHold {
    #[error("no program may hold moves back in this VM: limit_ms under [hold] in guest.toml is 0")]
    Off,
    #[error("a hold of 0 ms holds nothing; moves can be held back up to {0} ms")]
    Empty(Millis),
    #[error("say in 1 to {LONGEST} bytes, without line breaks, what for: operators will ask")]
    Reason,
    #[error("{MOST} holds are taken already; \"lsm-guest status\" names them")]
    Full,
    #[error("you have no hold {0}; it may be released already")]
    Unknown(u32),
}

/// All of them.
#[derive(Clone, Debug)]
pub struct Holds {
    /// So long after its beginning, a preparation waits for nobody. [`HOLD`] at most; 0: nobody may hold.
    limit: Millis,
    held: Vec<Hold>,
    last: u32,
    /// When the last preparation began.
    begun: Millis,
}

impl Holds {
    pub fn new(limit: Millis) -> Holds {
        Holds { limit: limit.min(HOLD), held: Vec::new(), last: 0, begun: 0 }
    }

    /// How long a preparation can be held back.
    pub fn limit(&self) -> Millis {
        self.limit
    }

    /// A hold for `lasts`, or the limit if that is less.
    ///
    /// # Errors
    /// [`NoHold`] says why not.
    pub fn take(&mut self, now: Millis, owner: &str, reason: &str, lasts: Millis) -> Result<u32, NoHold> {
        if self.limit == 0 {
            return Err(NoHold::Off);
        }
        if lasts == 0 {
            return Err(NoHold::Empty(self.limit));
        }
        if reason.is_empty() || reason.len() > LONGEST || reason.contains(char::is_control) {
            return Err(NoHold::Reason);
        }
        if self.held.len() >= MOST {
            return Err(NoHold::Full);
        }
        self.last = self.last.wrapping_add(1).max(1);
        while self.held.iter().any(|hold| hold.cookie == self.last) {
            self.last = self.last.wrapping_add(1).max(1);
        }
        let cookie = self.last;
        let lasts = lasts.min(self.limit);
        self.held.push(Hold { cookie, owner: owner.into(), reason: reason.into(), lasts, taken: now });
        Ok(cookie)
    }

    /// # Errors
    /// The owner has none of that number.
    pub fn release(&mut self, owner: &str, cookie: u32) -> Result<Hold, NoHold> {
        let at = self.held.iter().position(|hold| hold.cookie == cookie && hold.owner == owner);
        at.map(|at| self.held.remove(at)).ok_or(NoHold::Unknown(cookie))
    }

    /// The owner's connection has ended. Whether it held anything.
    pub fn gone(&mut self, owner: &str) -> bool {
        let before = self.held.len();
        self.held.retain(|hold| hold.owner != owner);
        self.held.len() < before
    }

    /// A preparation begins: from now on all count.
    pub fn begin(&mut self, now: Millis) {
        self.begun = now;
    }

    /// Until when the preparation that began last is held back; in the past if it is not.
    pub fn until(&self) -> Millis {
        let last = self.held.iter().map(|hold| hold.taken.max(self.begun) + hold.lasts).max();
        last.map_or(0, |at| at.min(self.begun + self.limit))
    }

    /// Each, the oldest first.
    pub fn all(&self) -> &[Hold] {
        &self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_counts_from_the_preparation_or_from_its_taking() {
        let mut holds = Holds::new(HOLD);
        holds.begin(10_000);
        assert_eq!(holds.until(), 0);
        let early = holds.take(5_000, "a", "database", 700).unwrap();
        assert_eq!(holds.until(), 10_700);
        let late = holds.take(10_500, "b", "backup", 1_000).unwrap();
        assert_eq!(holds.until(), 11_500);
        assert_ne!(early, late);
        holds.release("b", late).unwrap();
        assert_eq!(holds.until(), 10_700);
        holds.begin(90_000);
        assert_eq!(holds.until(), 90_700, "it counts again at the next move");
        assert!(holds.gone("a") && !holds.gone("a"));
        assert_eq!(holds.until(), 0);
    }

    #[test]
    fn a_hold_is_its_owner_s_and_bounded() {
        let mut holds = Holds::new(HOLD);
        let cookie = holds.take(0, "a", "for ever", Millis::MAX).unwrap();
        assert_eq!(holds.until(), HOLD);
        assert_eq!(holds.release("b", cookie), Err(NoHold::Unknown(cookie)));
        assert_eq!(holds.take(0, "a", "nothing", 0), Err(NoHold::Empty(HOLD)));
        let long = "x".repeat(LONGEST + 1);
        for reason in ["", "two\nlines", long.as_str()] {
            assert_eq!(holds.take(0, "a", reason, 1), Err(NoHold::Reason));
        }
        holds.last = u32::MAX; // the counter begins anew, past what is still held
        for _ in 1..MOST {
            let fresh = holds.take(0, "a", "one of many", 1).unwrap();
            assert!(fresh != 0 && fresh != cookie);
        }
        assert_eq!(holds.take(0, "a", "too many", 1), Err(NoHold::Full));
        assert_eq!(holds.release("a", cookie).unwrap().reason, "for ever");
    }

    #[test]
    fn the_limit_is_the_configured_one_for_all_together() {
        let mut holds = Holds::new(1_500);
        holds.begin(10_000);
        holds.take(0, "a", "from the beginning", Millis::MAX).unwrap();
        assert_eq!((holds.until(), holds.all()[0].lasts), (11_500, 1_500));
        holds.take(11_000, "b", "later", 1_500).unwrap();
        assert_eq!(holds.until(), 11_500, "one after the other they would last longer");
        assert_eq!(Holds::new(Millis::MAX).limit(), HOLD);

        let mut nobody = Holds::new(0);
        assert_eq!(nobody.take(0, "a", "database", 700), Err(NoHold::Off));
        nobody.begin(10_000);
        assert_eq!(nobody.until(), 0);
    }
}
