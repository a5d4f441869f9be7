//! The operator's executables in a directory: who may have written them, run one after the other in order of name, each
//! with a deadline.

mod fitness;
mod process;
mod unit;

use std::{fmt, net::IpAddr, path::Path, time::Duration};

use fitness::Script;
use serde::{Deserialize, Serialize};
pub use unit::{ask, serve};

/// A script that takes longer is killed, with all of its process group. Both configurations can say otherwise.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// The longest that they can say: scripts wait for each other, and a host's service does not end while one runs.
pub const LONGEST_DEADLINE: Duration = Duration::from_secs(600);

/// A deadline as it is configured, in seconds.
///
/// # Errors
/// What is wrong with it.
pub fn deadline(seconds: u64) -> Result<Duration, String> {
    let most = LONGEST_DEADLINE.as_secs();
    if !(1..=most).contains(&seconds) {
        return Err(format!("deadline_s must be from 1 to {most} seconds; the default is {}", DEADLINE.as_secs()));
    }
    Ok(Duration::from_secs(seconds))
}

/// What became of a script.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its exit status.
    Exited(i32),
    /// The signal that ended it.
    Killed(i32),
    /// It was killed at the deadline.
    TooSlow,
    /// It is not one that root alone can have written, or cannot be started: why.
    Refused(String),
}

/// A script that was run, or refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// The file's name in the directory; for a refused directory, its path.
    pub name: String,
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

impl Ran {
    /// It did what it was there for, as far as its exit status tells.
    pub fn is_good(&self) -> bool {
        self.outcome == Outcome::Exited(0)
    }

    fn log(&self, directory: &Path) {
        if self.is_good() {
            tracing::info!(directory = %directory.display(), "{self}");
        } else {
            tracing::warn!(directory = %directory.display(), "{self}");
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ran { name, outcome, ms } = self;
        match outcome {
            Outcome::Exited(status) => write!(f, "{name}: exit status {status} after {ms} ms"),
            Outcome::Killed(signal) => write!(f, "{name}: ended by signal {signal} after {ms} ms"),
            Outcome::TooSlow => write!(f, "{name}: killed after {ms} ms, with what it had started"),
            Outcome::Refused(why) => write!(f, "{name}: not run: {why}"),
        }
    }
}

/// The variables that tell of a move's addresses: one for each family that the VM has, and for scripts that know of one
/// address only, the first of them.
pub fn addresses(old: &[IpAddr], new: &[IpAddr]) -> Vec<(&'static str, String)> {
    let name = |names: [&'static str; 3], all: &[IpAddr]| {
        let [first, four, six] = names;
        let first = all.first().map(|at| (first, at.to_string()));
        let each = all.iter().map(|at| (if at.is_ipv4() { four } else { six }, at.to_string()));
        first.into_iter().chain(each).collect::<Vec<_>>()
    };
    [
        name(["LSM_OLD_ADDRESS", "LSM_OLD_ADDRESS4", "LSM_OLD_ADDRESS6"], old),
        name(["LSM_NEW_ADDRESS", "LSM_NEW_ADDRESS4", "LSM_NEW_ADDRESS6"], new),
    ]
    .concat()
}

/// Runs every script of a directory, with these variables and a `PATH` as its whole environment. A directory that does
/// not exist holds none. What goes wrong with one does not keep the next from being run; all of it is logged and told.
pub async fn run(directory: &Path, variables: &[(&str, String)], deadline: Duration) -> Vec<Ran> {
    let found = match fitness::scripts(directory) {
        Ok(found) => found,
        Err(why) => {
            let ran = Ran { name: directory.display().to_string(), outcome: Outcome::Refused(why), ms: 0 };
            ran.log(directory);
            return vec![ran];
        }
    };
    let mut all = Vec::new();
    for Script { path, fit } in found {
        let (outcome, took) = match fit {
            Ok(()) => process::run(&path, variables, deadline).await,
            Err(why) => (Outcome::Refused(why), Duration::ZERO),
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ran = Ran { name, outcome, ms: took.as_millis() as u64 };
        ran.log(directory);
        all.push(ran);
    }
    all
}
