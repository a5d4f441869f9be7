//! Chance that repeats itself: the same seed, the same run.

use lsm_protocol::Millis;

/// splitmix64: tiny, and good enough to choose with.
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least `from`, less than `to`.
    pub fn between(&mut self, from: Millis, to: Millis) -> Millis {
        from + self.next() % (to - from)
    }

    /// So often in a thousand.
    pub fn in_thousand(&mut self, often: u64) -> bool {
        self.next() % 1_000 < often
    }

    pub fn of<T: Copy>(&mut self, choice: &[T]) -> T {
        choice[self.next() as usize % choice.len()]
    }
}
