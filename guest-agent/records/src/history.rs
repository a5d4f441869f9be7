//! The reports of past moves, one file each, in a directory that outlives a reboot.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

/// Where both programs keep it, unless told otherwise.
pub const DIRECTORY: &str = "/var/lib/lsm/history";
/// A report is some 50 KiB at most. A larger file is not one of ours.
const LARGEST: u64 = 1 << 20;

/// The last moves.
#[derive(Clone, Debug)]
pub struct History {
    directory: PathBuf,
    most: usize,
}

impl History {
    /// Keeps at most so many reports.
    pub fn new(directory: &Path, most: usize) -> History {
        History { directory: directory.to_owned(), most }
    }

    /// Keeps a report, in place of an earlier one of the same name that began at the same time, and forgets the oldest.
    /// `began`: milliseconds since 1970.
    ///
    /// # Errors
    /// When it cannot be written. What was kept before stays.
    pub fn put(&self, began: u64, name: &str, report: &impl Serialize) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        // Names sort by time.
        let file = self.directory.join(format!("{began:014}-{name}.json"));
        crate::write(&file, &serde_json::to_vec_pretty(report)?, 0o600)?;
        let files = self.files()?;
        for old in files.iter().take(files.len().saturating_sub(self.most)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// All that can be read, the oldest first. What cannot is skipped, with a word in the log.
    pub fn all<T: DeserializeOwned>(&self) -> Vec<T> {
        let files = match self.files() {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, directory = %self.directory.display(), "cannot read the history of moves");
                return Vec::new();
            }
        };
        let skip = |file: &Path, error: &dyn std::fmt::Display| {
            tracing::warn!(%error, file = %file.display(), "cannot understand the report of a past move; skipping it");
        };
        files.iter().filter_map(|file| read(file).inspect_err(|error| skip(file, error)).ok()).collect()
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        let mut files: Vec<PathBuf> =
            paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
        files.sort();
        Ok(files)
    }
}

fn read<T: DeserializeOwned>(file: &Path) -> io::Result<T> {
    let mut text = Vec::new();
    fs::File::open(file)?.take(LARGEST).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_are_kept_and_what_cannot_be_read_is_skipped() {
        let directory = std::env::temp_dir().join(format!("lsm-history-{}/deep", std::process::id()));
        let history = History::new(&directory, 5);
        assert_eq!(history.all::<u64>(), [0; 0], "none yet");
        for n in 0..8 {
            history.put(n, "one", &n).unwrap();
        }
        assert_eq!(history.all::<u64>(), [3, 4, 5, 6, 7]);
        history.put(7, "one", &70).unwrap();
        assert_eq!(history.all::<u64>(), [3, 4, 5, 6, 70], "a later version of the same");
        fs::write(directory.join("00000000000006-one.json"), "half of").unwrap();
        fs::write(directory.join("00000000000009-one.new"), "9").unwrap();
        fs::create_dir(directory.join("00000000000005-x.json")).unwrap();
        fs::write(directory.join("99.json"), vec![b' '; 2 << 20]).unwrap();
        assert_eq!(history.all::<u64>(), [3, 4, 5, 70]);
        fs::remove_dir_all(directory.parent().unwrap()).unwrap();
    }

    #[test]
    fn where_nothing_can_be_written_the_error_says_it() {
        let history = History::new(Path::new("/proc/nowhere"), 5);
        assert!(history.put(1, "one", &1).is_err());
        assert_eq!(history.all::<u64>(), [0; 0]);
    }
}
