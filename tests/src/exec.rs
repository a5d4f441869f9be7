//! Commands for the VM over its port `org.lsm.lab.0`: what goes over the wire, and the VM's side of it.
//!
//! A request is `\x01lab ID LENGTH\n` and LENGTH bytes of shell command; an answer is
//! `\x01lab ID STATUS OUT ERR\n` and OUT plus ERR bytes of output. A migration may lose bytes in the middle of either:
//! both sides skip to the next `\x01`, the lab to its own id.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::shell::{During as _, LabError, Result};

/// The port's name.
pub const PORT: &str = "org.lsm.lab.0";

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status; 128 and more: a signal.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Numbers this process's: a VM may still answer what it was asked before, and by others.
static REQUESTS: AtomicU64 = AtomicU64::new(1);

/// The lab's end of it.
#[derive(Debug)]
pub(crate) struct Line {
    stream: UnixStream,
    received: Vec<u8>,
}

impl Line {
    /// On the port's socket on the host.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) fn connect(path: &Path) -> Result<Line> {
        let stream = UnixStream::connect(path).during(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).during(|| "set a time limit".into())?;
        Ok(Line { stream, received: Vec::new() })
    }

    /// Has the VM run a command.
    ///
    /// # Errors
    /// It does not answer in time; whether it has run it is unknown then.
    pub(crate) fn ask(&mut self, command: &str, deadline: Instant) -> Result<Outcome> {
        let id = u64::from(std::process::id()) << 32 | REQUESTS.fetch_add(1, Ordering::Relaxed);
        self.stream.write_all(&request(id, command)).during(|| "send a command to the VM".into())?;
        loop {
            if let Some(outcome) = answer(&mut self.received, id) {
                return Ok(outcome);
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(LabError::Other("the VM's port was closed".into())),
                Ok(length) => self.received.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() > deadline {
                        return Err(LabError::Other("no answer".into()));
                    }
                }
                Err(error) => return Err(error).during(|| "read from the VM".into()),
            }
        }
    }
}

/// Has the VM behind a port's socket run one command.
///
/// # Errors
/// Nobody listens there, or the VM does not answer in time.
pub fn ask(port: &Path, command: &str, limit: Duration) -> Result<Outcome> {
    Line::connect(port)?.ask(command, Instant::now() + limit)
}

/// A request as it goes over the wire.
fn request(id: u64, command: &str) -> Vec<u8> {
    format!("\x01lab {id} {}\n{command}", command.len()).into_bytes()
}

/// Takes the answer to request `id` from what was received, dropping what comes before it. `None`: not all there yet.
fn answer(received: &mut Vec<u8>, id: u64) -> Option<Outcome> {
    let start = format!("\x01lab {id} ").into_bytes();
    let at = received.windows(start.len()).position(|window| window == start)?;
    received.drain(..at);
    let line_end = received.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8_lossy(&received[start.len()..line_end]).into_owned();
    let mut numbers = line.split(' ').map(|number| number.parse::<i64>().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    let (status, out, err) = (next(), next() as usize, next() as usize);
    let body = received.get(line_end + 1..line_end + 1 + out + err)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let outcome = Outcome { status: status as i32, stdout: text(&body[..out]), stderr: text(&body[out..]) };
    received.drain(..line_end + 1 + out + err);
    Some(outcome)
}

/// Serves the port in the VM, for ever: one command after the other, each by `sh -c`.
///
/// # Errors
/// The port cannot be opened.
pub fn serve(port: &Path) -> io::Result<()> {
    let mut port = OpenOptions::new().read(true).write(true).open(port)?;
    let mut received = Vec::new();
    loop {
        if let Some((id, command)) = next_request(&mut received) {
            // An answer that no host takes is lost; the lab asks again.
            let _ = reply(&mut port, &id, &command);
            continue;
        }
        let mut chunk = [0; 4096];
        match port.read(&mut chunk) {
            // No host is connected: not the end, and a half request will not be completed.
            Ok(0) | Err(_) => {
                received.clear();
                wait_for_host(&port);
            }
            Ok(length) => received.extend_from_slice(&chunk[..length]),
        }
    }
}

/// The port is readable at once (POLLHUP) for as long as no host is there, so this looks now and then.
fn wait_for_host(port: &File) {
    loop {
        std::thread::sleep(Duration::from_millis(10));
        let mut polled = [PollFd::new(port.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut polled, PollTimeout::ZERO);
        if !polled[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
            return;
        }
    }
}

fn next_request(received: &mut Vec<u8>) -> Option<(String, String)> {
    let at = received.iter().position(|byte| *byte == 1)?;
    received.drain(..at);
    let line_end = received.iter().position(|byte| *byte == b'\n')?;
    let line = String::from_utf8_lossy(&received[1..line_end]).into_owned();
    let mut words = line.split(' ').skip(1);
    let (id, length) = (words.next()?.to_owned(), words.next()?.parse::<usize>().ok()?);
    let command = received.get(line_end + 1..line_end + 1 + length)?;
    let command = String::from_utf8_lossy(command).into_owned();
    received.drain(..line_end + 1 + length);
    Some((id, command))
}

fn reply(port: &mut File, id: &str, command: &str) -> io::Result<()> {
    use std::os::unix::process::ExitStatusExt as _;
    let output = Command::new("/bin/sh").args(["-c", command]).stdin(Stdio::null()).output()?;
    let status = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
    let mut answer = format!("\x01lab {id} {status} {} {}\n", output.stdout.len(), output.stderr.len()).into_bytes();
    answer.extend_from_slice(&output.stdout);
    answer.extend_from_slice(&output.stderr);
    port.write_all(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_found_behind_the_remains_of_another() {
        let mut received = b"lf a request".to_vec();
        received.extend(request(7, "echo \"a\nb\""));
        assert_eq!(next_request(&mut received), Some(("7".into(), "echo \"a\nb\"".into())));
        assert_eq!(next_request(&mut received), None);
        assert!(received.is_empty());
    }

    #[test]
    fn an_answer_is_whole_and_for_the_request_that_was_made() {
        let bytes = b"\x01lab 3 0 2 0\nok\x01lab 4 1 3 4\nouterr!";
        for length in 0..bytes.len() {
            assert_eq!(answer(&mut bytes[..length].to_vec(), 4), None, "{length} bytes");
        }
        let mut received = bytes.to_vec();
        let outcome = answer(&mut received, 4).unwrap();
        assert_eq!(outcome, Outcome { status: 1, stdout: "out".into(), stderr: "err!".into() });
        assert!(received.is_empty());
    }
}
