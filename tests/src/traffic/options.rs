//! What the client is told, and how it goes over the command line.

use std::net::IpAddr;
use std::time::Duration;

/// What `lsm-traffic client` is told.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The VM.
    pub to: IpAddr,
    /// Its address of the other family, for every second connection.
    pub also: Option<IpAddr>,
    /// Its TCP port.
    pub tcp: u16,
    /// Its UDP port; none: no datagram stream.
    pub udp: Option<u16>,
    /// MPTCP connections to open; the first is also the probe and carries the bulk.
    pub connections: u16,
    /// Port on which the VM's connections are taken.
    pub listen: u16,
    /// How many of them.
    pub accept: u16,
    /// Plain TCP connections to open.
    pub plain: u16,
    /// Bytes per paced record.
    pub chunk: u16,
    /// Time between paced records, per connection and direction.
    pub period: Duration,
    /// Time between probes.
    pub probe: Duration,
    /// Time between datagrams.
    pub datagram: Duration,
}

impl ClientOptions {
    /// The demo's traffic to the VM at `to`.
    pub fn new(to: IpAddr) -> Self {
        Self {
            to,
            also: None,
            tcp: 5001,
            udp: Some(5002),
            connections: 6,
            listen: 5003,
            accept: 2,
            plain: 1,
            chunk: 200,
            period: Duration::from_millis(5),
            probe: Duration::from_millis(20),
            datagram: Duration::from_millis(20),
        }
    }

    /// The demo's traffic to a VM that has these addresses, both in use.
    ///
    /// # Panics
    /// It has none: the caller is wrong.
    pub fn to_all(addresses: &[IpAddr]) -> Self {
        Self { also: addresses.get(1).copied(), ..Self::new(addresses[0]) }
    }

    /// The same on the command line of `lsm-traffic client`.
    pub(super) fn arguments(&self) -> Vec<String> {
        let udp = self.udp.map(|port| format!("--udp={port}"));
        let rest = [
            format!("--to={}", self.to),
            format!("--tcp={}", self.tcp),
            format!("--connections={}", self.connections),
            format!("--listen={}", self.listen),
            format!("--accept={}", self.accept),
            format!("--plain={}", self.plain),
            format!("--chunk={}", self.chunk),
            format!("--period-us={}", self.period.as_micros()),
            format!("--probe-us={}", self.probe.as_micros()),
            format!("--datagram-us={}", self.datagram.as_micros()),
        ];
        let also = self.also.map(|address| format!("--also={address}"));
        rest.into_iter().chain(udp).chain(also).collect()
    }
}
