//! Kernel parameters under /proc/sys, of the network namespace of the calling thread.

use std::{fs, io, path::PathBuf};

/// A parameter that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This kernel does not have it, or not yet (an interface's parameters come with the interface).
    #[error("this kernel has no {}", file.display())]
    Absent { file: PathBuf },
    #[error("cannot read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("cannot write {value:?} to {}", file.display())]
    Write { file: PathBuf, value: String, source: io::Error },
}

/// The value, without the newline. `name` is the path below /proc/sys, `net/mptcp/enabled` (with slashes: the names of
/// interfaces may hold dots).
pub fn get(name: &str) -> Result<String, Error> {
    let file = file(name)?;
    match fs::read_to_string(&file) {
        Ok(value) => Ok(value.trim_end_matches('\n').to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Absent { file }),
        Err(source) => Err(Error::Read { file, source }),
    }
}

/// Writes `value`; the kernel may refuse it or store another (a clamped number).
pub fn set(name: &str, value: &str) -> Result<(), Error> {
    let file = file(name)?;
    // Not fs::write: it would try to create what is not there, and the error would be another.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Absent { file }),
        Err(source) => Err(Error::Write { file, value: value.to_owned(), source }),
    }
}

/// Names may come from the other side of a wire: none leads out of /proc/sys.
fn file(name: &str) -> Result<PathBuf, Error> {
    let file = PathBuf::from(format!("/proc/sys/{name}"));
    if name.split('/').any(|part| part.is_empty() || part == "..") { Err(Error::Absent { file }) } else { Ok(file) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn present_absent_and_outside_are_told_apart() {
        assert_eq!(get("kernel/ostype").unwrap(), "Linux");
        for absent in ["net/no/such", "../version", "", "kernel//ostype", "/proc/version"] {
            assert!(matches!(get(absent), Err(Error::Absent { .. })), "{absent}");
            assert!(matches!(set(absent, "1"), Err(Error::Absent { .. })), "{absent}");
        }
        let error = set("kernel/ostype", "x").unwrap_err();
        assert_eq!(error.to_string(), "cannot write \"x\" to /proc/sys/kernel/ostype");
    }
}
