//! What a VM's memory holds: pages of zeroes cost a migration next to nothing, and what compresses well costs less. And how
//! much of it is another after a while: QEMU's own calculation looks at one page in 2 MiB, which is three of what a VM
//! writes in a second at 6 MiB/s.
//!
//! Nothing tells that but the memory itself. A few thousand of its pages are looked at, evenly spread, through QEMU's
//! `/proc/PID/mem`; what was never written (`/proc/PID/pagemap`) is not touched, and what was swapped out stays there.

use std::{
    fs::File,
    hash::{DefaultHasher, Hasher as _},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const PAGE: u64 = 4096;
/// Errs by 1 % at most, in two of three cases.
const SAMPLES: u64 = 4096;
/// One page in so many bytes is what QEMU looks at (migration/dirtyrate.h, `DIRTYRATE_DEFAULT_SAMPLE_PAGES` for each GiB).
const QEMU_S: u64 = 2 << 20;
/// A mapping that is this much larger than the memory is something else.
const SLACK: u64 = 64 << 20;

// Documentation/admin-guide/mm/pagemap.rst
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// What was seen.
pub(super) struct Seen {
    /// Bytes of pages that hold anything but zeroes.
    pub(super) data: f64,
    /// What is left of them when each is compressed by itself, at most.
    pub(super) compressed: f64,
}

/// That of a running VM.
pub(super) struct Memory {
    start: u64,
    pages: u64,
    pagemap: File,
    mem: File,
    path: PathBuf,
}

/// How its pages were at one moment.
pub(super) struct Prints(Vec<u64>);

impl Memory {
    /// `memory`: how much it has, in bytes.
    ///
    /// # Errors
    /// In words: what could not be looked at.
    pub(super) fn open(vm: &str, memory: u64) -> Result<Memory, String> {
        let pid_file = Path::new("/run/libvirt/qemu").join(format!("{vm}.pid"));
        let pid = std::fs::read_to_string(&pid_file).map_err(|error| cannot("read", &pid_file, &error))?;
        let process = Path::new("/proc").join(pid.trim());
        let maps = process.join("maps");
        let text = std::fs::read_to_string(&maps).map_err(|error| cannot("read", &maps, &error))?;
        let start = mapping(&text, memory)
            .ok_or_else(|| format!("QEMU of VM {vm} holds its memory in pieces, which are not told apart"))?;
        let open = |path: &Path| File::open(path).map_err(|error| cannot("open", path, &error));
        let path = process.join("mem");
        Ok(Memory { start, pages: memory / PAGE, pagemap: open(&process.join("pagemap"))?, mem: open(&path)?, path })
    }

    /// What it holds.
    ///
    /// # Errors
    /// In words: what could not be looked at.
    pub(super) fn look(&self) -> Result<Seen, String> {
        self.sample().map_err(|error| cannot("read", &self.path, &error))
    }

    /// # Errors
    /// In words: what could not be looked at.
    pub(super) fn prints(&self) -> Result<Prints, String> {
        let mut prints = Vec::new();
        let all = self.each(|found| {
            prints.push(match found {
                // A page of zeroes may be there or not: the kernel gathers pages into huge ones.
                Found::Nothing => 0,
                Found::Page(page) if is_empty(page) => 0,
                Found::Swapped => 1,
                Found::Page(page) => {
                    let mut hasher = DefaultHasher::new();
                    hasher.write(page);
                    hasher.finish()
                }
            });
        });
        all.map_err(|error| cannot("read", &self.path, &error)).map(|()| Prints(prints))
    }

    /// Bytes of pages that are not what they were.
    pub(super) fn changed(&self, before: &Prints, after: &Prints) -> f64 {
        let others = before.0.iter().zip(&after.0).filter(|(before, after)| before != after).count();
        others as f64 / before.0.len().max(1) as f64 * (self.pages * PAGE) as f64
    }

    /// The pages that are looked at, one after the other.
    fn each(&self, mut tell: impl FnMut(Found<'_>)) -> io::Result<()> {
        let samples = SAMPLES.min(self.pages);
        let mut page = [0; PAGE as usize];
        for index in 0..samples {
            let address = self.start + index * self.pages / samples * PAGE;
            let mut entry = [0; 8];
            self.pagemap.read_exact_at(&mut entry, address / PAGE * 8)?;
            let entry = u64::from_ne_bytes(entry);
            if entry & SWAPPED != 0 {
                tell(Found::Swapped);
            } else if entry & PRESENT != 0 {
                self.mem.read_exact_at(&mut page, address)?;
                tell(Found::Page(&page));
            } else {
                tell(Found::Nothing);
            }
        }
        Ok(())
    }

    fn sample(&self) -> io::Result<Seen> {
        let (mut samples, mut used, mut unseen, mut bits) = (0_u64, 0_u64, 0_u64, 0.0);
        self.each(|found| {
            samples += 1;
            match found {
                Found::Swapped => {
                    used += 1;
                    unseen += 1;
                }
                Found::Page(page) if !is_empty(page) => {
                    used += 1;
                    bits += entropy(page);
                }
                Found::Page(_) | Found::Nothing => {}
            }
        })?;
        let seen = used - unseen;
        Ok(Seen {
            data: used as f64 / samples.max(1) as f64 * (self.pages * PAGE) as f64,
            compressed: if seen == 0 { 1.0 } else { (bits / (seen as f64 * PAGE as f64 * 8.0)).clamp(0.01, 1.0) },
        })
    }
}

/// One of its pages.
enum Found<'a> {
    /// Never written.
    Nothing,
    Swapped,
    Page(&'a [u8]),
}

/// Whether more pages of so much memory are looked at here than by QEMU.
pub(super) fn is_finer(memory: u64) -> bool {
    memory / QEMU_S < SAMPLES
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {what} {}: {error}", path.display())
}

/// Where the one mapping starts that can be the VM's memory.
fn mapping(maps: &str, memory: u64) -> Option<u64> {
    let fitting = maps.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (rights.starts_with("rw") && (memory..memory + SLACK).contains(&(end - start))).then_some((end - start, start))
    });
    // QEMU's own heap may be as large; the memory is the one that fits best.
    fitting.min().map(|(_, start)| start)
}

fn is_empty(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// Bits that the bytes of a page need, each for itself: no compressor that also sees what repeats needs more.
fn entropy(page: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    page.iter().for_each(|byte| counts[usize::from(*byte)] += 1);
    let total = page.len() as f64;
    counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) * (total / f64::from(*count)).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_large_memory_qemu_sees_more() {
        assert!(is_finer(192 << 20) && is_finer(4 << 30));
        assert!(!is_finer(8 << 30) && !is_finer(64 << 30));
    }

    #[test]
    fn the_mapping_of_the_memory() {
        let maps = "7f0000000000-7f000c000000 rw-p 00000000 00:00 0\n\
                    7f1000000000-7f100c100000 rw-p 00000000 00:00 0 [heap]\n\
                    7f2000000000-7f200c000000 ---p 00000000 00:00 0\n7f3000000000-7f3000001000 r-xp 0 00:00 0 /bin/x\n";
        assert_eq!(mapping(maps, 192 << 20), Some(0x7f00_0000_0000));
        assert_eq!(mapping(maps, 256 << 20), None);
    }

    /// This process's own memory, as QEMU's is looked at.
    #[test]
    fn pages_of_zeroes_and_of_noise() {
        let pages = 1024_u64;
        let mut memory = vec![0_u8; (pages * PAGE) as usize + PAGE as usize];
        let start = (memory.as_ptr() as u64).next_multiple_of(PAGE);
        let offset = (start - memory.as_ptr() as u64) as usize;
        let mut noise = 1_u32;
        for byte in &mut memory[offset..offset + 256 * PAGE as usize] {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (noise >> 24) as u8;
        }
        let open = |name: &str| File::open(Path::new("/proc/self").join(name)).unwrap();
        let looked = Memory { start, pages, pagemap: open("pagemap"), mem: open("mem"), path: PathBuf::new() };
        let seen = looked.look().unwrap();
        assert_eq!(seen.data, 256.0 * PAGE as f64);
        assert!(seen.compressed > 0.95, "{}", seen.compressed);
        let before = looked.prints().unwrap();
        assert_eq!(looked.changed(&before, &looked.prints().unwrap()), 0.0);
        memory[offset..offset + 128 * PAGE as usize].fill(7);
        assert_eq!(looked.changed(&before, &looked.prints().unwrap()), 128.0 * PAGE as f64);
        memory[offset..offset + 256 * PAGE as usize].fill(7);
        assert!(looked.look().unwrap().compressed < 0.02);
    }
}
