//! The least that a migration must be able to keep.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::Counts;

/// How many connections must be able to move, or the migration is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Survival {
    /// At least so many.
    Number(u32),
    /// At least so many of a hundred of those that use a managed vNIC.
    Percent(u8),
}

impl Default for Survival {
    fn default() -> Self {
        Survival::ANY
    }
}

impl Survival {
    /// No condition.
    pub const ANY: Survival = Survival::Number(0);

    /// Whether `moving` of `all` connections are enough.
    pub fn met(self, moving: u64, all: u64) -> bool {
        match self {
            Survival::Number(number) => moving >= number.into(),
            Survival::Percent(share) => moving * 100 >= all * u64::from(share),
        }
    }

    /// Whether it is a condition at all.
    pub fn demands_any(self) -> bool {
        !self.met(0, 1)
    }

    /// [`Survival::met`], after the preparation.
    pub fn met_by(self, counts: Counts) -> bool {
        let Counts { joined, waiting, legacy, .. } = counts;
        self.met(joined.into(), u64::from(joined) + u64::from(waiting) + u64::from(legacy))
    }
}

impl fmt::Display for Survival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Survival::Number(number) => number.fmt(f),
            Survival::Percent(share) => write!(f, "{share}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn a_share_of_none_is_met_and_a_number_is_not() {
        assert!(Survival::Percent(100).met(0, 0) && Survival::ANY.met(0, 0) && !Survival::Number(1).met(0, 0));
        assert!(Survival::Percent(90).met(9, 10) && !Survival::Percent(91).met(9, 10));
        assert!(Survival::Percent(100).met(u32::MAX.into(), u32::MAX.into()));
        let counts = Counts { joined: 3, waiting: 1, legacy: 1, ..Counts::default() };
        assert!(Survival::Percent(60).met_by(counts) && !Survival::Percent(61).met_by(counts));
        assert!(!Survival::ANY.demands_any() && !Survival::Percent(0).demands_any());
        assert!(Survival::Number(1).demands_any() && Survival::Percent(1).demands_any());
        assert_eq!(format!("{} {}", Survival::Percent(95), Survival::Number(7)), "95% 7");
    }
}
