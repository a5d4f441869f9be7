//! The kernel's own description of its types (`/sys/kernel/btf/vmlinux`): which number a function has, and where a field
//! of a structure stands. Both differ from kernel to kernel.
//!
//! Layout: linux/btf.h. A header, then types one after the other, numbered from 1, then the names.

/// The file cannot be read this way.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Error {
    #[error("it is cut off or damaged")]
    Damaged,
    #[error("it holds a kind of type ({0}) that this version of LSM does not know")]
    Unknown(u8),
    #[error("it has no {0}")]
    Absent(String),
}

const MAGIC: u16 = 0xeb9f;

const KIND_ARRAY: u8 = 3;
const KIND_STRUCT: u8 = 4;
const KIND_UNION: u8 = 5;
const KIND_FUNC: u8 = 12;

/// Unions and structures without a name within one another; the kernel has two levels at most where we look.
const DEEPEST: u32 = 8;

/// The description, with the place of each type.
pub(crate) struct Btf<'a> {
    strings: &'a [u8],
    types: Vec<Type<'a>>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u8,
    /// Bit-field sizes stand in the upper byte of the members' offsets.
    bitfields: bool,
    name: u32,
    rest: &'a [u8],
}

impl<'a> Btf<'a> {
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, Error> {
        let u32_of = |at| u32_at(bytes, at);
        if bytes.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(Error::Damaged);
        }
        let body = bytes.get(u32_of(4)? as usize..).ok_or(Error::Damaged)?;
        let part = |at: usize| -> Result<&'a [u8], Error> {
            let (start, length) = (u32_of(at)? as usize, u32_of(at + 4)? as usize);
            start.checked_add(length).and_then(|end| body.get(start..end)).ok_or(Error::Damaged)
        };
        let (mut rest, strings) = (part(8)?, part(16)?);
        let mut types = Vec::new();
        while !rest.is_empty() {
            let (name, info) = (u32_at(rest, 0)?, u32_at(rest, 4)?);
            let (kind, count) = ((info >> 24 & 0x1f) as u8, (info & 0xffff) as usize);
            let length = 12 + trailer(kind, count)?;
            let (this, next) = rest.split_at_checked(length).ok_or(Error::Damaged)?;
            types.push(Type { kind, bitfields: info >> 31 == 1, name, rest: &this[12..] });
            rest = next;
        }
        Ok(Btf { strings, types })
    }

    /// The number of a function, as a BPF program that hooks it must give it.
    pub(crate) fn function(&self, name: &str) -> Result<u32, Error> {
        let at = self.types.iter().position(|t| t.kind == KIND_FUNC && self.is_named(t.name, name));
        // Numbers begin at 1: 0 is void.
        at.map(|at| at as u32 + 1).ok_or_else(|| Error::Absent(format!("function {name}")))
    }

    /// Where a field stands in a structure, in bytes. Fields of nameless structures within count as its own.
    pub(crate) fn offset(&self, structure: &str, field: &str) -> Result<i32, Error> {
        let absent = || Error::Absent(format!("field {field} in struct {structure}"));
        let mut candidates = self.types.iter().filter(|t| t.kind == KIND_STRUCT && self.is_named(t.name, structure));
        let bits = candidates.find_map(|t| self.bits(*t, field, DEEPEST)).ok_or_else(absent)?;
        i32::try_from(bits / 8).map_err(|_| absent())
    }

    fn bits(&self, within: Type<'a>, field: &str, deepest: u32) -> Option<u32> {
        within.rest.chunks_exact(12).find_map(|member| {
            let word = |at| u32_at(member, at).ok();
            let (name, kind, mut offset) = (word(0)?, word(4)?, word(8)?);
            if within.bitfields {
                offset &= 0x00ff_ffff;
            }
            if self.is_named(name, field) {
                return Some(offset);
            }
            let inner = self.types.get((kind as usize).checked_sub(1)?)?;
            let nameless = name == 0 && matches!(inner.kind, KIND_STRUCT | KIND_UNION) && deepest > 0;
            nameless.then(|| self.bits(*inner, field, deepest - 1)).flatten()?.checked_add(offset)
        })
    }

    fn is_named(&self, at: u32, name: &str) -> bool {
        let there = self.strings.get(at as usize..).unwrap_or_default();
        there.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Length of what follows a type's first 12 bytes.
fn trailer(kind: u8, count: usize) -> Result<usize, Error> {
    Ok(match kind {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        // integer, variable, declaration tag
        1 | 14 | 17 => 4,
        KIND_ARRAY => 12,
        // enumeration, prototype
        6 | 13 => 8 * count,
        // structure, union, data section, 64-bit enumeration
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * count,
        other => return Err(Error::Unknown(other)),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Error> {
    let word = bytes.get(at..).and_then(|from| from.first_chunk());
    word.map(|word| u32::from_ne_bytes(*word)).ok_or(Error::Damaged)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A description as the kernel writes it: `struct outer {int a; union {int b; struct {int c; int d;};}; int e:4;}` and
    /// two functions.
    pub(crate) fn sample() -> Vec<u8> {
        let names = b"\0int\0outer\0a\0b\0c\0d\0e\0first\0second\0";
        let name = |name: &str| {
            let wanted = format!("\0{name}\0");
            names.windows(wanted.len()).position(|w| w == wanted.as_bytes()).unwrap() as u32 + 1
        };
        let info = |kind: u32, count: u32| kind << 24 | count;
        let mut types: Vec<u32> = vec![name("int"), info(1, 0), 4, 32]; // 1
        types.extend([0, info(4, 2), 8, name("c"), 1, 0, name("d"), 1, 32]); // 2
        types.extend([0, info(5, 2), 8, name("b"), 1, 0, 0, 2, 0]); // 3
        let outer = [name("outer"), info(4, 3) | 1 << 31, 16];
        types.extend(outer.into_iter().chain([name("a"), 1, 0, 0, 3, 32, name("e"), 1, 4 << 24 | 96])); // 4
        types.extend([0, info(13, 0), 0]); // 5
        types.extend([name("first"), info(12, 1), 5]); // 6
        types.extend([name("second"), info(12, 1), 5]); // 7
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let mut bytes = [&MAGIC.to_ne_bytes()[..], &[1, 0]].concat();
        for word in [24, 0, types.len() as u32, types.len() as u32, names.len() as u32] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(types);
        bytes.extend(names);
        bytes
    }

    #[test]
    fn functions_and_fields_are_found() {
        let bytes = sample();
        let btf = Btf::read(&bytes).unwrap();
        assert_eq!((btf.function("first"), btf.function("second")), (Ok(6), Ok(7)));
        let offsets = ["a", "b", "c", "d", "e"].map(|field| btf.offset("outer", field).unwrap());
        assert_eq!(offsets, [0, 4, 4, 8, 12]);
        // Not part of a name, nor a name of another kind.
        for absent in ["firs", "outer", "int", ""] {
            assert_eq!(btf.function(absent), Err(Error::Absent(format!("function {absent}"))));
        }
        assert!(btf.offset("outer", "z").is_err() && btf.offset("int", "a").is_err());
    }

    #[test]
    fn what_is_cut_off_or_strange_is_refused() {
        let bytes = sample();
        for length in 0..bytes.len() {
            assert_eq!(Btf::read(&bytes[..length]).err(), Some(Error::Damaged), "{length} bytes");
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] = value;
                // Any answer will do.
                if let Ok(btf) = Btf::read(&bytes) {
                    let _ = (btf.function("second"), btf.offset("outer", "d"));
                }
            }
        }
        let mut strange = bytes.clone();
        strange[24 + 7] = 31;
        assert_eq!(Btf::read(&strange).err(), Some(Error::Unknown(31)));
    }
}
