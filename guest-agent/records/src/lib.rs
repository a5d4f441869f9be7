//! What both programs leave for others to read: the reports of past moves, numbers for a monitoring system, and lines in
//! the journal.

pub mod history;
pub mod journal;
pub mod metrics;
mod openmetrics;
pub mod places;

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

/// Writes a file whole or not at all. What is written beside it first has another ending: nobody reads it half done.
fn write(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let fresh = file.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut out = options.write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
    out.set_permissions(fs::Permissions::from_mode(mode))?; // whatever the umask is
    io::Write::write_all(&mut out, bytes)?;
    fs::rename(fresh, file)
}
