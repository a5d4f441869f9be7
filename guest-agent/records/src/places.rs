//! Where the reports of moves go: the section `[reports]` of both configuration files.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::history;

/// What keeps the numbers from being written.
const OFF: &str = "off";

/// Both are directories.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Places {
    /// One file for each move.
    pub history: PathBuf,
    metrics: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places { history: history::DIRECTORY.into(), metrics: OFF.into() }
    }
}

impl Places {
    /// Where a collector looks for a text file with numbers, if one does.
    pub fn collector(&self) -> Option<&Path> {
        (self.metrics != Path::new(OFF)).then_some(&self.metrics)
    }

    /// # Errors
    /// What is wrong with it.
    pub fn checked(self) -> Result<Places, String> {
        let relative =
            [&self.history, &self.metrics].into_iter().find(|path| path.is_relative() && **path != Path::new(OFF));
        match relative {
            Some(path) => Err(format!("{} is not an absolute path of a directory", path.display())),
            None if self.history == Path::new(OFF) => Err("history cannot be off: give a directory".to_owned()),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbers_can_be_off() {
        let places = |history: &str, metrics: &str| Places { history: history.into(), metrics: metrics.into() };
        assert_eq!(Places::default().checked().unwrap().collector(), None);
        assert_eq!(places("/h", "/m").checked().unwrap().collector(), Some(Path::new("/m")));
        assert!(places("off", "off").checked().is_err());
        assert!(places("h", "off").checked().is_err());
        assert!(places("/h", "m").checked().is_err());
    }
}
