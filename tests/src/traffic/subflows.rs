//! The kernel's own list of an end's subflows, read through `ss`: which TCP sockets belong to which MPTCP connection.

use std::io;
use std::net::SocketAddr;
use std::process::Command;

use super::TrafficError;
use super::log::Connection;

/// One TCP socket of the namespace.
#[derive(Debug, Clone, PartialEq)]
pub struct Subflow {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// Name of the MPTCP connection at this end; none: plain TCP, or fallen back to it.
    pub token: Option<u32>,
    /// Whether the other end asked for this subflow to be a backup, or this end did.
    pub backup: bool,
    /// TCP's smoothed round trip, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// All established TCP sockets where `command` runs. It must run `ss`, such as `ip netns exec client ss`.
///
/// # Errors
/// `ss` does not run or does not succeed.
pub fn subflows(mut command: Command) -> Result<Vec<Subflow>, TrafficError> {
    let name = format!("{command:?}");
    let output = command
        .args(["-tniHO", "state", "established"])
        .output()
        .and_then(|output| {
            if output.status.success() {
                Ok(output)
            } else {
                Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
            }
        })
        .map_err(|source| TrafficError::Spawn { program: name, source })?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect())
}

/// The subflows that belong to `connection`, found by the one that it began with; so the list must have been read
/// while that one lived, or `token` be known from then.
pub fn token_of(connection: &Connection, subflows: &[Subflow]) -> Option<u32> {
    subflows
        .iter()
        .find(|subflow| subflow.local == connection.local && subflow.remote == connection.remote)
        .and_then(|subflow| subflow.token)
}

fn parse(line: &str) -> Option<Subflow> {
    let mut words = line.split_whitespace().skip(2);
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    // tcp-ulp-mptcp flags:Mmec token:<remote>(id:0)/<local>(id:0) ...: iproute2 6.1 prints the remote token first,
    // flags b and B are a backup asked for by this end and by the other.
    let words: Vec<&str> = words.collect();
    let multipath = words.iter().position(|word| word.starts_with("tcp-ulp-mptcp"));
    let after = multipath.map_or(&words[..0], |at| &words[at..]);
    let token = after.iter().find_map(|word| word.strip_prefix("token:")).and_then(|tokens| {
        let (_, local) = tokens.split_once('/')?;
        u32::from_str_radix(local.split('(').next()?, 16).ok()
    });
    let flags = after.iter().find_map(|word| word.strip_prefix("flags:")).unwrap_or("");
    // rtt:0.614/0.31: smoothed, and its variation.
    let rtt = words.iter().find_map(|word| word.strip_prefix("rtt:"));
    let rtt_ms = rtt.and_then(|rtt| rtt.split('/').next()?.parse().ok());
    Some(Subflow { local, remote, token, backup: flags.contains(['b', 'B']), rtt_ms })
}

fn address(text: &str) -> Option<SocketAddr> {
    // An interface may follow the address: 10.0.0.1%eth0:80.
    let (host, port) = text.rsplit_once(':')?;
    let host = host.split('%').next()?;
    let address: SocketAddr = format!("{host}:{port}").parse().ok()?;
    Some(match address {
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().map_or(address, |v4| SocketAddr::new(v4.into(), v6.port())),
        SocketAddr::V4(_) => address,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ss_prints_is_read() {
        let line = "0 400 10.1.0.10:5001 10.9.0.2:40327 cubic rto:536 rtt:83.753/112.875 rcv_rtt:11.875 minrtt:2.729 \
                    tcp-ulp-mptcp flags:Jbec token:0000(id:0)/32835e95(id:11) seq:331ca26b";
        let known = parse(line).unwrap();
        assert_eq!((known.token, known.backup, known.rtt_ms), (Some(0x3283_5e95), true, Some(83.753)));
        let plain = parse("0 0 10.1.0.10%eth0:22 10.9.0.2:40000 cubic rto:200").unwrap();
        assert_eq!((plain.local, plain.token, plain.rtt_ms), (([10, 1, 0, 10], 22).into(), None, None));
    }
}
