//! Stands between libvirt and the real hook, and writes down how long each call took. Named `lsm` in qemu.d, like it.
//! Refuses the operation that `/etc/lsm/refuse` names (`started begin`, say), as another hook beside ours might.

use std::{
    fs,
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitCode},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let real = fs::read_to_string("/etc/lsm/real-hook").unwrap_or_default();
    let (at, start) = (SystemTime::now(), Instant::now());
    let status = Command::new(real.trim()).arg0("lsm").args(&arguments).status();
    let ms = start.elapsed().as_secs_f64() * 1_000.0;
    let word = |i: usize| arguments.get(i).map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
    let log = fs::OpenOptions::new().create(true).append(true).open("/var/log/libvirt/hook-calls.log");
    let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    if let Ok(mut log) = log {
        let _ = writeln!(
            log,
            "{}",
            serde_json::json!({"at": at, "operation": format!("{} {}", word(1), word(2)), "ms": ms})
        );
    }
    let refused = fs::read_to_string("/etc/lsm/refuse").unwrap_or_default();
    if refused.trim() == format!("{} {}", word(1), word(2)) {
        eprintln!("lab-hook: told to refuse {}", refused.trim());
        return ExitCode::FAILURE;
    }
    let code = status.map_or(1, |status| status.code().or(status.signal()).unwrap_or(1));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
