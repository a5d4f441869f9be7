//! The kernel's random numbers.

use std::{fs::File, io, io::Read as _};

/// # Errors
/// There are none to be had.
pub fn random<const BYTES: usize>() -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
