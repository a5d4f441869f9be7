//! The first frame in each direction, and which version follows.

use alloc::{string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

/// The versions this build speaks, newest first. A release supports its own and the one before.
pub const VERSIONS: &[u16] = &[1];

/// Who we are and what we speak. Its layout is frozen for good: every version begins with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Protocol versions, newest first.
    pub versions: Vec<u16>,
    /// Program and version, for the log: `lsm-guest 0.1.0`.
    pub software: String,
}

/// This side's program goes, and nothing else: the VM is where it was. On a virtio-serial port the end of a connection
/// would look like the arrival of the VM elsewhere. Nobody has to say it, or to understand it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye;

/// No version is common to both sides.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no common protocol version: this side speaks {}, {peer} speaks {}; update the older of the two",
    List(.ours), List(.theirs)
)]
pub struct NoCommonVersion {
    pub peer: String,
    pub ours: Vec<u16>,
    pub theirs: Vec<u16>,
}

struct List<'a>(&'a [u16]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, version) in self.0.iter().enumerate() {
            write!(f, "{}{version}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Hello {
    /// What this build says of itself.
    pub fn ours(software: &str) -> Hello {
        Hello { versions: VERSIONS.to_vec(), software: software.into() }
    }

    /// The newest version both sides speak.
    pub fn agree(&self, theirs: &Hello) -> Result<u16, NoCommonVersion> {
        self.versions.iter().copied().filter(|v| theirs.versions.contains(v)).max().ok_or_else(|| NoCommonVersion {
            peer: theirs.software.clone(),
            ours: self.versions.clone(),
            theirs: theirs.versions.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use super::*;

    #[test]
    fn the_newest_common_version_wins_and_a_refusal_names_both_lists() {
        let new = Hello { versions: vec![3, 2], software: "lsm-hook 0.3".into() };
        let old = Hello { versions: vec![2, 1], software: "lsm-guest 0.2".into() };
        let ancient = Hello { versions: vec![1], software: "lsm-guest 0.1".into() };
        assert_eq!(new.agree(&old), Ok(2));
        let text = new.agree(&ancient).unwrap_err().to_string();
        assert_eq!(
            text,
            "no common protocol version: this side speaks 3, 2, lsm-guest 0.1 speaks 1; update the older of the two"
        );
    }
}
