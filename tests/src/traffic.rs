//! Traffic that knows every byte and every gap.
//!
//! `lsm-traffic serve` and `lsm-traffic open` are the VM's end, `lsm-traffic client` the client's, led by
//! [`ClientProcess`]. Each connection carries paced records both ways; every byte of them follows from its position, and
//! both ends check all of it. The client notes when it received what. At the end both ends compare their counts over
//! the connection itself.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

mod client_process;
mod clock;
mod control;
mod controller;
mod counters;
mod datagrams;
mod fault;
mod line;
mod log;
mod options;
mod pattern;
mod record;
mod responder;
mod sockets;
mod stream;
mod subflows;

pub use crate::shell::chain;
pub use client_process::ClientProcess;
pub use controller::client;
pub use counters::{Counters, counters};
pub use fault::{Fault, NoFault};
pub use log::{Arrival, Bulk, Connection, ConnectionLog, DatagramLog, End, Log, Nanos, Origin};
pub use options::ClientOptions;
pub use responder::{open, serve};
pub use subflows::{Subflow, subflows, token_of};

/// What can go wrong with the traffic itself, not with its connections: those failures are results.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    #[error("cannot listen on port {port}; is another traffic program running here?")]
    Listen { port: u16, source: io::Error },
    #[error("cannot connect to {to}; is the other traffic program running there?")]
    Connect { to: SocketAddr, source: io::Error },
    #[error("only {came} of {expected} connections were opened by the VM in time; was \"lsm-traffic open\" run there?")]
    NotOpened { expected: usize, came: usize },
    #[error("cannot wait for the sockets")]
    Poll(#[source] io::Error),
    #[error("cannot read commands from standard input")]
    Input(#[source] io::Error),
    #[error("cannot understand a command")]
    Command { source: serde_json::Error },
    #[error("cannot run {program}")]
    Spawn { program: String, source: io::Error },
    #[error("the traffic client is gone: {0}")]
    Gone(String),
    #[error("the traffic client was silent for {limit:?} while waiting until {awaited}")]
    Silent { awaited: &'static str, limit: Duration },
}
