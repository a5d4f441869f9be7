//! A forecast as the command lines and D-Bus show it: as JSON, or as lines.

use alloc::{
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Forecast, Sums};

/// A forecast in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub sums: Sums,
    /// The worst first.
    pub connections: Vec<Line>,
    /// UDP sockets bound to an address of a managed vNIC; `None` where the kernel cannot list them.
    pub udp: Option<Vec<SocketAddr>>,
}

/// One connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// `moves`, `moves, opened by the VM`, `may move`, `waits on the tunnel` or `local`.
    pub class: String,
    /// The reason or the evidence.
    pub why: String,
}

impl From<&Forecast> for Shown {
    fn from(forecast: &Forecast) -> Shown {
        let line = |c: &super::Foreseen| Line {
            local: c.local,
            remote: c.remote,
            class: c.fate.class().to_string(),
            why: c.fate.to_string(),
        };
        Shown {
            sums: forecast.sums,
            connections: forecast.connections.iter().map(line).collect(),
            udp: forecast.datagrams.clone(),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.sums)?;
        for Line { local, remote, class, why } in &self.connections {
            writeln!(f, "  {class:<24}{remote} to {local}: {why}")?;
        }
        match &self.udp {
            None => writeln!(f, "  UDP sockets are not known; try \"modprobe udp_diag\" in the VM"),
            Some(sockets) => sockets.iter().try_for_each(|socket| {
                writeln!(f, "  {:<24}UDP socket {socket}: bound to an address that is left", "waits on the tunnel")
            }),
        }
    }
}
