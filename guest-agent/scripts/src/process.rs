//! One script as a process. The one file of this crate with unsafe code.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    libc,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{process::Command, time::timeout};

use crate::Outcome;

/// What a shell of root finds programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs it to its end, or to the deadline.
pub(crate) async fn run(
    script: &Path,
    variables: &[(&str, impl AsRef<OsStr>)],
    deadline: Duration,
) -> (Outcome, Duration) {
    let began = Instant::now();
    let outcome = match follow(script, variables, deadline).await {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Refused(format!("cannot be started: {error}")),
    };
    (outcome, began.elapsed())
}

async fn follow(script: &Path, variables: &[(&str, impl AsRef<OsStr>)], deadline: Duration) -> io::Result<Outcome> {
    use std::os::unix::process::ExitStatusExt;
    let mut command = Command::new(script);
    command.env_clear().env("PATH", PATH).envs(variables.iter().map(|(name, value)| (name, value)));
    // What it prints goes where our log goes.
    command.current_dir("/").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    // SAFETY: between fork and exec only async-signal-safe functions may be called; this one makes a single system call
    // with a pointer to its own stack.
    #[expect(unsafe_code, reason = "std can set everything of a child but its scheduling")]
    unsafe {
        command.pre_exec(leave_real_time)
    };
    let mut child = command.spawn()?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    if let Ok(ended) = timeout(deadline, child.wait()).await {
        let ended = ended?;
        return Ok(match (ended.code(), ended.signal()) {
            (Some(status), _) => Outcome::Exited(status),
            (None, signal) => Outcome::Killed(signal.unwrap_or_default()),
        });
    }
    match group.map_or(Ok(()), |group| killpg(group, Signal::SIGKILL)) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => return Err(error.into()),
    }
    child.wait().await?;
    Ok(Outcome::TooSlow)
}

/// The programs that run scripts have a real-time priority, for the moment of an arrival; a script with it could keep
/// the CPU from everybody. Where a sandbox forbids the call, its unit sets CPUSchedulingResetOnFork.
fn leave_real_time() -> io::Result<()> {
    // struct sched_param, as the kernel has it: the priority.
    let ordinary: libc::c_int = 0;
    // SAFETY: the pointer is to a parameter that outlives the call.
    #[expect(unsafe_code, reason = "nix has no sched_setscheduler, and musl's does nothing")]
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, &raw const ordinary)
    };
    Ok(())
}
