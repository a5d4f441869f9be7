//! `virsh`, asked once and waited for: for the operator's command line.

use std::{
    io::{self, Write},
    process::{Command, Stdio},
};

/// What virsh answers, or its complaint.
///
/// # Errors
/// In words, on one line.
pub fn virsh(arguments: &[&str]) -> Result<String, String> {
    run(arguments, None)
}

/// The same, with something to read for it.
///
/// # Errors
/// In words, on one line.
pub fn virsh_given(arguments: &[&str], input: &str) -> Result<String, String> {
    run(arguments, Some(input))
}

fn run(arguments: &[&str], input: Option<&str>) -> Result<String, String> {
    let mut command = Command::new("virsh");
    // A language of its own would make other words of the answers.
    command.args(["-q", "-c", "qemu:///system"]).args(arguments).env("LC_ALL", "C");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let cannot = |error: io::Error| format!("cannot run virsh: {error}; is the package libvirt-clients installed?");
    let mut child = command.spawn().map_err(cannot)?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        // virsh says itself why it does not read.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(cannot)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ").replace('\n', "; "))
}
