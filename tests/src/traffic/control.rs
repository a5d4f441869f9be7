//! What goes over the client's standard input and output: one JSON value per line.

use serde::{Deserialize, Serialize};

use super::log::{Bulk, Connection, Log};

/// From the parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Command {
    /// Begin the traffic; answered by `Started`.
    Start,
    /// Let the VM send as fast as it can for so many milliseconds; answered by `Bulk`.
    BulkMs(u64),
    /// Hand over what was seen since the last time; answered by `Log`.
    Log,
    /// End every connection in order; answered by `Stopped`, then the client exits.
    Stop,
}

/// To the parent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Event {
    /// The VM may open its connections now.
    Listening,
    /// All connections are there.
    Ready(Vec<Connection>),
    Started,
    Bulk(Bulk),
    Log(Log),
    Stopped(Log),
    /// A connection ended before its time. Not an answer: it comes whenever it happens.
    Failed {
        id: u16,
        why: String,
    },
    /// The client gives up.
    Error(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_short_lines() {
        let line = |command: Command| serde_json::to_string(&command).unwrap();
        assert_eq!(line(Command::Start), r#""start""#);
        assert_eq!(line(Command::BulkMs(2000)), r#"{"bulk_ms":2000}"#);
        assert_eq!(serde_json::from_str::<Command>(r#"{"bulk_ms":5}"#).unwrap(), Command::BulkMs(5));
    }
}
