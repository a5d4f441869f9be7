//! Netlink's bytes: requests are built, answers taken apart. Nothing that is received makes it panic or loop.
//!
//! Layout (linux/netlink.h): a header of 16 bytes {length u32, kind u16, flags u16, sequence u32, port u32}, a fixed part
//! that depends on the kind, then attributes {length u16, kind u16, value}, each starting on a multiple of four. All in
//! the machine's byte order.

use nix::libc;

use super::Cause;

/// Length of a netlink header in bytes.
pub const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// The top two bits of an attribute's kind are flags (nested, network byte order).
const KIND_MASK: u16 = 0x3fff;
const NESTED: u16 = 0x8000;

/// One request under construction.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// `NLM_F_REQUEST` is added to `flags`.
    pub fn new(kind: u16, flags: i32) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend_from_slice(&0u32.to_ne_bytes()); // length: when sealed
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&((flags | libc::NLM_F_REQUEST) as u16).to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]); // sequence: when sealed; port: the kernel's
        Message { bytes }
    }

    /// Appends a fixed part as it is.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Appends an attribute. The value must fit the attribute's 16-bit length.
    #[must_use]
    pub fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = ATTRIBUTE_HEADER + value.len();
        debug_assert!(length <= usize::from(u16::MAX));
        self.bytes.extend_from_slice(&(length as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value)
    }

    /// Appends an attribute that holds what `inner` appends.
    #[must_use]
    pub fn nest(self, kind: u16, inner: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        let mut message = inner(self.attribute(kind | NESTED, &[]));
        let length = (message.bytes.len() - start) as u16;
        message.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        message
    }

    pub(super) fn add_flags(&mut self, flags: i32) {
        if let Some(field) = self.bytes.get_mut(6..8) {
            let old = u16::from_ne_bytes([field[0], field[1]]);
            field.copy_from_slice(&(old | flags as u16).to_ne_bytes());
        }
    }

    /// The finished message.
    pub fn seal(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// One message as received; `payload` is what follows the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    pub payload: &'a [u8],
}

/// Splits what one receive call returned. A header that lies about its length gives one `Malformed` and ends it.
pub fn messages(bytes: &[u8]) -> impl Iterator<Item = Result<Received<'_>, Cause>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let whole = std::mem::take(&mut rest);
        let message = (|| {
            let length = usize::try_from(u32_at(whole, 0)?).ok()?;
            let payload = whole.get(HEADER..length)?;
            rest = whole.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some(Received { kind: u16_at(whole, 4)?, flags: u16_at(whole, 6)?, sequence: u32_at(whole, 8)?, payload })
        })();
        Some(message.ok_or(Cause::Malformed))
    })
}

/// The attributes in `bytes` as (kind, value); flag bits are taken off the kind. Ends at the first that does not fit.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & KIND_MASK;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of the first attribute of `kind` in `bytes`.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// The `N` bytes at `offset`.
pub fn bytes_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The 16-bit number in the machine's byte order at `offset`.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes_at(bytes, offset).map(u16::from_ne_bytes)
}

/// The 32-bit number in the machine's byte order at `offset`.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes_at(bytes, offset).map(u32::from_ne_bytes)
}

/// The 64-bit number in the machine's byte order at `offset`.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes_at(bytes, offset).map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        Message::new(0x1c, libc::NLM_F_ACK)
            .raw(&[1, 2, 3, 4])
            .attribute(7, &[9])
            .nest(8, |m| m.attribute(1, &5u32.to_ne_bytes()).nest(2, |m| m.attribute(3, b"abc")))
            .seal(42)
    }

    #[test]
    fn what_is_built_is_read_back() {
        let bytes = sample();
        let all: Vec<_> = messages(&bytes).collect::<Result<_, _>>().unwrap();
        let [message] = all[..] else { panic!("{all:?}") };
        assert_eq!((message.kind, message.sequence), (0x1c, 42));
        assert_eq!(i32::from(message.flags), libc::NLM_F_REQUEST | libc::NLM_F_ACK);
        assert_eq!(message.payload[..4], [1, 2, 3, 4]);
        let body = &message.payload[4..];
        assert_eq!(attribute(body, 7), Some(&[9][..]));
        let nest = attribute(body, 8).unwrap();
        assert_eq!(u32_at(attribute(nest, 1).unwrap(), 0), Some(5));
        assert_eq!(attribute(attribute(nest, 2).unwrap(), 3), Some(&b"abc"[..]));
    }

    #[test]
    fn unknown_attributes_are_skipped() {
        let bytes = Message::new(1, 0).attribute(4000, &[1; 33]).attribute(2, &[6]).seal(0);
        assert_eq!(attribute(&bytes[HEADER..], 2), Some(&[6][..]));
    }

    #[test]
    fn truncation_at_any_byte_ends_in_malformed_and_never_in_a_panic() {
        let bytes = sample();
        for length in 1..bytes.len() {
            let all: Vec<_> = messages(&bytes[..length]).collect();
            assert!(matches!(all[..], [Err(Cause::Malformed)]), "{length}: {all:?}");
            let _ = attributes(&bytes[length..]).count();
            let _ = attributes(bytes[HEADER + 4..].get(..length).unwrap_or_default()).count();
        }
    }

    #[test]
    fn every_length_field_may_lie() {
        for lie in [0u32, 1, 15, 16, 17, 0x7fff_ffff, u32::MAX] {
            let mut bytes = sample();
            bytes[..4].copy_from_slice(&lie.to_ne_bytes());
            assert!(messages(&bytes).take(1000).count() < 1000, "{lie}");
        }
        for lie in [0u16, 1, 3, 4, 5, u16::MAX] {
            let mut bytes = sample();
            bytes[HEADER + 4..HEADER + 6].copy_from_slice(&lie.to_ne_bytes());
            assert!(attributes(&bytes[HEADER + 4..]).take(1000).count() < 1000, "{lie}");
        }
    }
}
