//! What came of each move, a line of JSON each, in a file that several runs add to: a long run in pieces, and one table of
//! all of them.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::Outcome;
use crate::shell::{During as _, LabError, Result};

/// One move.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Which drawing it is of, and which move of that, counted from 1. A stage that could not be set has the number of the
    /// move that it was for, and does not count as that one.
    pub seed: u64,
    pub number: usize,
    /// Seconds since 1970.
    pub when: u64,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// The file, open for more.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    file: File,
    pub lines: Vec<Line>,
}

impl Record {
    /// Reads what earlier runs have left there, if any.
    ///
    /// # Errors
    /// It cannot be read or written, or a line is not one of ours.
    pub fn open(path: &Path) -> Result<Record> {
        let file =
            OpenOptions::new().create(true).append(true).open(path).during(|| format!("open {}", path.display()))?;
        let lines = Record::read(path)?;
        Ok(Record { path: path.into(), file, lines })
    }

    /// What is in the file.
    ///
    /// # Errors
    /// It cannot be read, or a line is not one of ours.
    pub fn read(path: &Path) -> Result<Vec<Line>> {
        let text = fs::read_to_string(path).during(|| format!("read {}", path.display()))?;
        let line = |(number, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| {
                LabError::Other(format!(
                    "{}, line {}: {error}; it is no record of tests/faults",
                    path.display(),
                    number + 1
                ))
            })
        };
        text.lines().enumerate().map(line).collect()
    }

    /// How many moves of this drawing have been made.
    #[must_use]
    pub fn made(&self, seed: u64) -> usize {
        self.lines
            .iter()
            .filter(|line| line.seed == seed && line.outcome.fault != "undisturbed")
            .map(|line| line.number)
            .max()
            .unwrap_or(0)
    }

    /// Adds one; on disk when this returns.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, seed: u64, number: usize, outcome: Outcome) -> Result<()> {
        let when = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let line = Line { seed, number, when, outcome };
        let text = serde_json::to_string(&line).map_err(|error| LabError::Other(error.to_string()))?;
        let written = writeln!(self.file, "{text}").and_then(|()| self.file.sync_data());
        written.during(|| format!("write {}", self.path.display()))?;
        self.lines.push(line);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{CATALOGUE, table};

    fn outcome(fault: &str) -> Outcome {
        let mut outcome = Outcome::unknown("a row", fault, "copying");
        (outcome.ended, outcome.connections) = ("settled".into(), 4);
        outcome
    }

    #[test]
    fn a_run_goes_on_where_the_last_one_ended_and_the_table_is_of_both() {
        let path = std::env::temp_dir().join(format!("lsm-record-{}", std::process::id()));
        let name = CATALOGUE[0].name;
        let mut first = Record::open(&path).unwrap();
        assert_eq!(first.made(1), 0);
        first.add(1, 1, outcome(name)).unwrap();
        first.add(1, 2, outcome(CATALOGUE[1].name)).unwrap();
        let error = LabError::Other("the VM answers nobody".into());
        first.add(1, 3, Outcome::of_the_stage("set-up", &error)).unwrap();
        drop(first);
        let mut second = Record::open(&path).unwrap();
        assert_eq!((second.made(1), second.made(2)), (2, 0), "the third was not made");
        second.add(1, 3, outcome(name)).unwrap();
        let lines = Record::open(&path).unwrap().lines;
        assert_eq!(lines, second.lines);
        let outcomes: Vec<Outcome> = lines.into_iter().map(|line| line.outcome).collect();
        let table = table(&outcomes);
        assert!(table.contains(&format!("{name} | 2 | 2 | 0 | 8 | 8 | 0 | 0 | - | 0 |")), "{table}");
        assert!(table.contains("no fault | undisturbed | 1 | 0 | 0 | 0 | 0 | 0 | 0 | - | 1 |"), "{table}");
        assert!(table.contains("**all** | 4 | 3 |"), "{table}");
        fs::write(&path, "{}\n").unwrap();
        assert!(Record::open(&path).unwrap_err().to_string().contains("line 1"));
        fs::remove_file(&path).unwrap();
    }
}
