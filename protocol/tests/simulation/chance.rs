//! Chance that repeats itself: the same seed, the same run. Or none: where every choice is tried, what is likely happens,
//! and at once.

use lsm_protocol::Millis;

/// splitmix64: tiny, and good enough to choose with.
#[derive(Clone, Debug)]
pub struct Chance(Option<u64>);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(Some(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// No chance at all.
    #[allow(dead_code, reason = "for the model, which has the rest of the simulation too")]
    pub fn none() -> Chance {
        Chance(None)
    }

    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    fn next(&mut self) -> Option<u64> {
        let state = self.0.as_mut()?;
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }

    /// At least `from`, less than `to`.
    pub fn between(&mut self, from: Millis, to: Millis) -> Millis {
        self.next().map_or(from, |number| from + number % (to - from))
    }

    /// So often in a thousand.
    pub fn in_thousand(&mut self, often: u64) -> bool {
        self.next().map_or(often > 500, |number| number % 1_000 < often)
    }

    pub fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.next().unwrap_or_default() as usize % choice.len()]
    }
}
