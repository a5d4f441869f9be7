//! What has been measured, on disk after each measurement: in the tree, so that the tables can be checked and a run goes on.

use std::{collections::BTreeMap, fs, path::PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::shell::{During as _, LabError, Result};

/// The measurements of one benchmark, by point.
#[derive(Debug)]
pub(super) struct Notes {
    path: PathBuf,
    values: BTreeMap<String, Vec<Value>>,
}

impl Notes {
    /// What an earlier run left; nothing, where it left nothing that can be read.
    pub(super) fn open(path: PathBuf) -> Notes {
        let text = fs::read_to_string(&path).unwrap_or_default();
        Notes { path, values: serde_json::from_str(&text).unwrap_or_default() }
    }

    pub(super) fn count(&self, key: &str) -> usize {
        self.values.get(key).map_or(0, Vec::len)
    }

    /// All measurements of a point that are of this kind.
    pub(super) fn of<T: DeserializeOwned>(&self, key: &str) -> Vec<T> {
        let values = self.values.get(key).into_iter().flatten();
        values.filter_map(|value| serde_json::from_value(value.clone()).ok()).collect()
    }

    pub(super) fn put(&mut self, key: &str, value: Value) -> Result<()> {
        self.values.entry(key.to_owned()).or_default().push(value);
        let text = serde_json::to_string(&self.values).map_err(|error| LabError::Other(error.to_string()))?;
        let partial = self.path.with_extension("partial");
        fs::write(&partial, text).during(|| format!("write {}", partial.display()))?;
        fs::rename(&partial, &self.path).during(|| format!("write {}", self.path.display()))
    }

    pub(super) fn forget(&mut self) -> Result<()> {
        self.values.clear();
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).during(|| format!("remove {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}
