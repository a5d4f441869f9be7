//! Writes memory in the VM as a test wants it: `lab-writer MIB MIB_PER_SECOND`, over and over, a page after the other,
//! never the same twice.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

const PAGE: usize = 4096;
/// Between two portions: short beside the spans that dirty rates are measured over.
const TICK: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let &[mib, per_second] = &numbers[..] else {
        eprintln!("lab-writer: MIB MIB_PER_SECOND");
        return ExitCode::FAILURE;
    };
    // Nothing that compresses, nor pages of zeroes.
    let mut memory = vec![0_u64; (mib << 20) / 8];
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for word in &mut memory {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        *word = noise;
    }
    println!("lab-writer: ready");
    let (start, mut written) = (Instant::now(), 0_usize);
    let pages = memory.len() * 8 / PAGE;
    loop {
        let due = (start.elapsed().as_secs_f64() * (per_second << 20) as f64 / PAGE as f64) as usize;
        while written < due {
            // What the clock has jumped over, in a move, is not made up for.
            written = written.max(due.saturating_sub(pages));
            memory[written % pages * (PAGE / 8)] = written as u64;
            written += 1;
        }
        std::thread::sleep(TICK);
    }
}
