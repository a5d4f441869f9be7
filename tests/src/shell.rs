//! Programs the lab runs: short ones for their output, long ones under a guard that kills them.

use std::{
    io::{self, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::keeper;

/// What can go wrong in the lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program ended badly.
    #[error("{command}: {status}\n{stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it said (standard error, or output where that was empty).
        stderr: String,
    },
    /// A system call or file operation failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried, and on what.
        what: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A condition did not come true in time.
    #[error("waited {after:?} for {what}")]
    Timeout {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
    },
    /// Anything else, in words.
    #[error("{0}")]
    Other(String),
}

/// The lab's results.
pub type Result<T> = std::result::Result<T, LabError>;

/// Names the operation that an [`io::Error`] or an errno belongs to.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|source| LabError::Io { what: what(), source: source.into() })
    }
}

/// The command line, for messages.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// It could not be started, or its exit status is not 0 (the error holds its standard error).
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, "")
}

/// [`run`] with text for the program's standard input (small: it is written before output is read).
///
/// # Errors
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().during(|| format!("start {}", shown(command)))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input says so by its exit status.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().during(|| format!("wait for {}", shown(command)))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let stderr = if stderr.trim().is_empty() { stdout } else { stderr };
    Err(LabError::Failed { command: shown(command), status: output.status, stderr })
}

/// Waits until `condition` gives a value, looking every 2 ms at first and every 20 ms later.
///
/// # Errors
/// [`LabError::Timeout`] with `what` after `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        let elapsed = start.elapsed();
        if elapsed > limit {
            return Err(LabError::Timeout { what: what.into(), after: limit });
        }
        std::thread::sleep(Duration::from_millis(if elapsed < Duration::from_millis(100) { 2 } else { 20 }));
    }
}

/// A long-running program. Killed when dropped, and also when the lab's own process dies, however it dies.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `command` in a process group of its own, so that a Ctrl-C reaches the lab alone, which then ends the rest
    /// in order. Streams are as set in `command`; standard input is empty unless it was set by [`Process::start_piped`].
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(name: &str, command: &mut Command) -> Result<Process> {
        command.stdin(Stdio::null());
        Process::start_piped(name, command)
    }

    /// As [`Process::start`], with the standard input that `command` sets.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start_piped(name: &str, command: &mut Command) -> Result<Process> {
        let child = command.process_group(0).spawn().during(|| format!("start {}", shown(command)))?;
        keeper::keep("pid", &child.id().to_string());
        Ok(Process { name: name.into(), child, ended: None })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its piped streams are.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The program itself where this process is `nsenter` that waits for it in a site's process namespace.
    #[must_use]
    pub fn inner_pid(&self) -> u32 {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        children.split_whitespace().next().and_then(|pid| pid.parse().ok()).unwrap_or_else(|| self.pid())
    }

    /// Sends a signal to the program (the inner one, see [`Process::inner_pid`]).
    ///
    /// # Errors
    /// It has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.inner_pid().cast_signed()), signal).during(|| format!("send {signal} to {}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.forget(status);
        }
        self.ended.is_none()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`LabError::Timeout`] after `limit`; it runs on.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for(&what, limit, || if self.is_running() { None } else { self.ended })
    }

    /// Ends it with SIGTERM, with SIGKILL where that takes more than two seconds.
    pub fn stop(&mut self) {
        if self.is_running() && self.signal(Signal::SIGTERM).is_ok() && self.wait(Duration::from_secs(2)).is_ok() {
            return;
        }
        self.kill();
    }

    /// Kills it and waits until it is gone.
    pub fn kill(&mut self) {
        if !self.is_running() {
            return;
        }
        // nsenter first: its program dies with it (see `Site::command`).
        let _ = self.child.kill();
        let status = self.child.wait().unwrap_or_else(|_| ExitStatus::from_raw(9));
        self.forget(status);
    }

    fn forget(&mut self, status: ExitStatus) {
        keeper::forget("pid", &self.child.id().to_string());
        self.ended = Some(status);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// One of this crate's programs, built beside the running one.
///
/// # Errors
/// It is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let running = std::env::current_exe().during(|| "find the running program".into())?;
    let beside = running.ancestors().skip(1).take(2).map(|dir| dir.join(name));
    beside.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        LabError::Other(format!(
            "{name} is not beside {}; build it with \"cargo build -p lsm-tests\"",
            running.display()
        ))
    })
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
