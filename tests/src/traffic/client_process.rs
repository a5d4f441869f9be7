//! The traffic client as a child process: it runs in the client's namespace, its parent leads it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::TrafficError;
use super::control::{self, Event};
use super::log::{Bulk, Connection, Log};
use super::options::ClientOptions;

/// Longest wait for an answer that takes no time by itself.
const ANSWER: Duration = Duration::from_secs(30);

/// A running traffic client. Dropped, it is killed.
#[derive(Debug)]
pub struct ClientProcess {
    child: Child,
    input: ChildStdin,
    events: Receiver<Event>,
    failures: Vec<(u16, String)>,
}

impl ClientProcess {
    /// Starts `command`, which must run the `lsm-traffic` program where the traffic shall come from, such as
    /// `ip netns exec client chrt -f 10 lsm-traffic`: a real-time priority keeps the emulators of a small machine out
    /// of the times. Returns when the VM may open its connections to [`ClientOptions::listen`].
    ///
    /// # Errors
    /// The program does not start, or cannot listen.
    pub fn spawn(mut command: Command, options: &ClientOptions) -> Result<Self, TrafficError> {
        let name = format!("{:?}", command.get_program());
        let mut child = command
            .arg("client")
            .args(options.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|source| TrafficError::Spawn { program: name, source })?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(TrafficError::Gone("it has no standard input or output".to_owned()));
        };
        let (sender, events) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line)
                    .unwrap_or_else(|error| Event::Error(format!("cannot read its line \"{line:.200}\": {error}")));
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        let mut client = Self { child, input, events, failures: Vec::new() };
        client.wait("it listens", ANSWER, |event| matches!(event, Event::Listening).then_some(()))?;
        Ok(client)
    }

    /// Waits until every connection is there, those of the VM included.
    ///
    /// # Errors
    /// One could not be opened, or the VM's did not come within `limit`.
    pub fn ready(&mut self, limit: Duration) -> Result<Vec<Connection>, TrafficError> {
        self.wait("all connections are there", limit, |event| match event {
            Event::Ready(connections) => Some(connections),
            _ => None,
        })
    }

    /// Starts the traffic on all connections.
    ///
    /// # Errors
    /// The client is gone.
    pub fn start(&mut self) -> Result<(), TrafficError> {
        self.send(control::Command::Start)?;
        self.wait("traffic started", ANSWER, |event| matches!(event, Event::Started).then_some(()))
    }

    /// Lets the VM send as fast as it can on the first connection for `length`, and waits for the end.
    ///
    /// # Errors
    /// The client is gone, or nothing came within `length` and half a minute.
    pub fn bulk(&mut self, length: Duration) -> Result<Bulk, TrafficError> {
        self.begin_bulk(length)?;
        self.end_bulk(length)
    }

    /// The same without waiting.
    ///
    /// # Errors
    /// The client is gone.
    pub fn begin_bulk(&mut self, length: Duration) -> Result<(), TrafficError> {
        self.send(control::Command::BulkMs(length.as_millis() as u64))
    }

    /// Waits for the end of what [`ClientProcess::begin_bulk`] began.
    ///
    /// # Errors
    /// As [`ClientProcess::bulk`].
    pub fn end_bulk(&mut self, length: Duration) -> Result<Bulk, TrafficError> {
        self.wait("the bulk transfer ended", length + ANSWER, |event| match event {
            Event::Bulk(bulk) => Some(bulk),
            _ => None,
        })
    }

    /// What was seen since the start, or since the last call.
    ///
    /// # Errors
    /// The client is gone.
    pub fn take_log(&mut self) -> Result<Log, TrafficError> {
        self.send(control::Command::Log)?;
        self.wait("the log", ANSWER, |event| match event {
            Event::Log(log) => Some(log),
            _ => None,
        })
    }

    /// Ends all connections in order and gives the last part of the log, with the VM's counts in it.
    ///
    /// # Errors
    /// The client is gone.
    pub fn stop(mut self) -> Result<Log, TrafficError> {
        self.send(control::Command::Stop)?;
        let log = self.wait("the connections ended", ANSWER, |event| match event {
            Event::Stopped(log) => Some(log),
            _ => None,
        })?;
        let _ = self.child.wait();
        Ok(log)
    }

    /// Connections that ended too early so far: number and reason.
    pub fn failures(&mut self) -> &[(u16, String)] {
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
        &self.failures
    }

    fn send(&mut self, command: control::Command) -> Result<(), TrafficError> {
        let line = serde_json::to_string(&command).map_err(|source| TrafficError::Command { source })?;
        writeln!(self.input, "{line}").map_err(|error| TrafficError::Gone(error.to_string()))
    }

    fn note(&mut self, event: Event) {
        if let Event::Failed { id, why } = event {
            self.failures.push((id, why));
        }
    }

    fn wait<T>(
        &mut self,
        awaited: &'static str,
        limit: Duration,
        mut wanted: impl FnMut(Event) -> Option<T>,
    ) -> Result<T, TrafficError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Error(why)) => return Err(TrafficError::Gone(why)),
                Ok(failed @ Event::Failed { .. }) => self.note(failed),
                Ok(event) => {
                    if let Some(answer) = wanted(event) {
                        return Ok(answer);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Err(TrafficError::Silent { awaited, limit }),
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                    return Err(TrafficError::Gone(status));
                }
            }
        }
    }
}

impl Drop for ClientProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
