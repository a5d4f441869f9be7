//! One thing that was looked at before a move, in the VM or on a host: both say it in the same words.

use alloc::string::String;
use core::fmt;

use serde::Serialize;

/// What was found, and the line that repairs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub what: String,
    pub verdict: Verdict,
    pub found: String,
    /// A command for a root shell.
    pub fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Good,
    /// It works, with less than could be, or for now.
    Warning,
    Bad,
}

impl Finding {
    pub fn good(what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { what: what.into(), verdict: Verdict::Good, found: found.into(), fix: None }
    }

    pub fn warning(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { what: what.into(), verdict: Verdict::Warning, found: found.into(), fix: Some(fix.into()) }
    }

    pub fn bad(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { what: what.into(), verdict: Verdict::Bad, found: found.into(), fix: Some(fix.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "warning",
            Verdict::Bad => "BAD",
        };
        write!(f, "{word:<9}{:<16}{}", self.what, self.found)?;
        match &self.fix {
            Some(fix) => write!(f, "\n{:<9}{:<16}  {fix}", "", "fix:"),
            None => Ok(()),
        }
    }
}
