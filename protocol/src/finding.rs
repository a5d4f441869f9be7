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

/// All that was looked at, as a table that is as wide as it must be.
pub struct Table<'a>(pub &'a [Finding]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widest = self.0.iter().map(|finding| finding.what.chars().count()).max().unwrap_or(0);
        for Finding { what, verdict, found, fix } in self.0 {
            let word = match verdict {
                Verdict::Good => "good",
                Verdict::Warning => "warning",
                Verdict::Bad => "BAD",
            };
            writeln!(f, "{word:<9}{what:<widest$}  {found}")?;
            if let Some(fix) = fix {
                writeln!(f, "{:<9}{:<widest$}    {fix}", "", "fix:")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    #[test]
    fn what_was_found_stands_in_one_column() {
        let bad = Finding::bad("vNIC 52:54:00:aa:00:01 of the VM", "none", "ip link");
        let table = Table(&[Finding::good("hook", "there"), bad]).to_string();
        let column = |word: &str| table.lines().find_map(|line| line.find(word)).expect("it is in the table");
        assert_eq!(column("there"), column("none"));
        assert_eq!(column("ip link"), column("none") + 2);
    }
}
