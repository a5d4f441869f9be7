//! What a VM's memory holds: pages of zeroes cost a migration next to nothing, and what compresses well costs less.
//!
//! Nothing tells that but the memory itself. A few thousand of its pages are looked at, evenly spread, through QEMU's
//! `/proc/PID/mem`; what was never written (`/proc/PID/pagemap`) is not touched, and what was swapped out stays there.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const PAGE: u64 = 4096;
/// Errs by 1 % at most, in two of three cases.
const SAMPLES: u64 = 4096;
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

/// Looks at the memory of a running VM.
///
/// # Errors
/// In words: what could not be looked at.
pub(super) fn look(vm: &str, memory: u64) -> Result<Seen, String> {
    let pid_file = Path::new("/run/libvirt/qemu").join(format!("{vm}.pid"));
    let pid = std::fs::read_to_string(&pid_file).map_err(|error| cannot("read", &pid_file, &error))?;
    let process = Path::new("/proc").join(pid.trim());
    let maps = process.join("maps");
    let text = std::fs::read_to_string(&maps).map_err(|error| cannot("read", &maps, &error))?;
    let start = mapping(&text, memory)
        .ok_or_else(|| format!("QEMU of VM {vm} holds its memory in pieces, which are not told apart"))?;
    let open = |name: &str| {
        let path: PathBuf = process.join(name);
        File::open(&path).map_err(|error| cannot("open", &path, &error)).map(|file| (file, path))
    };
    let ((pagemap, _), (mem, mem_path)) = (open("pagemap")?, open("mem")?);
    sample(start, memory / PAGE, &pagemap, &mem).map_err(|error| cannot("read", &mem_path, &error))
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

fn sample(start: u64, pages: u64, pagemap: &File, mem: &File) -> io::Result<Seen> {
    let samples = SAMPLES.min(pages);
    let (mut used, mut unseen, mut bits) = (0_u64, 0_u64, 0.0);
    let mut page = [0; PAGE as usize];
    for index in 0..samples {
        let address = start + index * pages / samples * PAGE;
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, address / PAGE * 8)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & SWAPPED != 0 {
            used += 1;
            unseen += 1;
        } else if entry & PRESENT != 0 {
            mem.read_exact_at(&mut page, address)?;
            if page.iter().any(|byte| *byte != 0) {
                used += 1;
                bits += entropy(&page);
            }
        }
    }
    let seen = used - unseen;
    Ok(Seen {
        data: used as f64 / samples.max(1) as f64 * (pages * PAGE) as f64,
        compressed: if seen == 0 { 1.0 } else { (bits / (seen as f64 * PAGE as f64 * 8.0)).clamp(0.01, 1.0) },
    })
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
        let (pagemap, mem) = (File::open("/proc/self/pagemap").unwrap(), File::open("/proc/self/mem").unwrap());
        let seen = sample(start, pages, &pagemap, &mem).unwrap();
        assert_eq!(seen.data, 256.0 * PAGE as f64);
        assert!(seen.compressed > 0.95, "{}", seen.compressed);
        memory[offset..offset + 256 * PAGE as usize].fill(7);
        assert!(sample(start, pages, &pagemap, &mem).unwrap().compressed < 0.02);
    }
}
