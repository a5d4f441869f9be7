//! The bytes that both ends know beforehand. A block of prime length, so that no power of two repeats it, indexed by
//! the position in the stream and shifted per connection and direction: checking is one comparison of memory, cheap
//! enough for an emulated guest to fill a link.

use std::sync::LazyLock;

/// The pattern repeats after this many bytes; prime.
const PERIOD: usize = 65_537;

/// Longest piece that [`at`] gives, in bytes.
pub(super) const LONGEST: usize = 65_536;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(PERIOD + LONGEST + 8);
    while block.len() < PERIOD {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        block.extend_from_slice(&word.to_le_bytes());
    }
    block.truncate(PERIOD);
    block.extend_from_within(..LONGEST);
    block
});

/// The `length` bytes at `position` of the stream that `key` names.
pub(super) fn at(key: u64, position: u64, length: usize) -> &'static [u8] {
    let start = (key % PERIOD as u64 + position % PERIOD as u64) as usize % PERIOD;
    &BLOCK[start..start + length]
}

/// How many of `bytes`, found at `position`, are not what the stream holds there.
pub(super) fn wrong(key: u64, position: u64, bytes: &[u8]) -> u64 {
    bytes
        .chunks(LONGEST)
        .enumerate()
        .map(|(index, piece)| {
            let expected = at(key, position + (index * LONGEST) as u64, piece.len());
            if piece == expected { 0 } else { piece.iter().zip(expected).filter(|(a, b)| a != b).count() as u64 }
        })
        .sum()
}

/// Spreads small numbers over all bits: neighbouring connections get unrelated streams.
pub(super) fn key(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_across_the_end_of_the_block() {
        let long = at(key(3), 65_000, 2_000);
        assert_eq!(at(key(3), 65_000, 700), &long[..700]);
        assert_eq!(at(key(3), 65_700, 1_300), &long[700..]);
    }

    #[test]
    fn a_wrong_byte_is_counted_once() {
        let mut bytes = [at(key(1), 10, LONGEST), at(key(1), 10 + LONGEST as u64, 100)].concat();
        assert_eq!(wrong(key(1), 10, &bytes), 0);
        bytes[65_600] ^= 1;
        assert_eq!(wrong(key(1), 10, &bytes), 1);
    }

    #[test]
    fn another_place_or_connection_looks_different() {
        let bytes = at(key(1), 1_000, 256);
        assert!(wrong(key(1), 1_001, bytes) > 200);
        assert!(wrong(key(1), 1_000 + (1 << 16), bytes) > 200);
        assert!(wrong(key(2), 1_000, bytes) > 200);
    }
}
