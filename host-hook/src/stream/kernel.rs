//! The kernel's path manager for Multipath TCP, by `ip mptcp` (ip-mptcp.8), and TCP's windows.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use nix::ifaddrs::getifaddrs;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{MOST_PATHS, Role, StreamError};

/// How far TCP's windows may grow, in bytes: two paths of 1 Gbit/s and 150 ms hold 38 MB.
const WINDOW: u64 = 64 << 20;
/// Least, first and largest size of a socket's buffers, in bytes (tcp.7).
const WINDOWS: [&str; 2] = ["/proc/sys/net/ipv4/tcp_rmem", "/proc/sys/net/ipv4/tcp_wmem"];

/// One endpoint of the path manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) address: IpAddr,
    id: u8,
}

/// How many further paths a connection may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    accepted: usize,
    subflows: usize,
}

impl Limits {
    pub(super) fn at_least(self, paths: usize) -> Limits {
        let paths = paths.min(MOST_PATHS);
        Limits { accepted: self.accepted.max(paths), subflows: self.subflows.max(paths) }
    }
}

/// The card that has an address, if it is up.
pub fn card(address: IpAddr) -> Option<String> {
    let has = |one: &nix::ifaddrs::InterfaceAddress| {
        let own = one.address.as_ref();
        let v4 = own.and_then(|own| own.as_sockaddr_in()).map(|own| IpAddr::V4(own.ip()));
        let v6 = own.and_then(|own| own.as_sockaddr_in6()).map(|own| IpAddr::V6(own.ip()));
        v4.or(v6) == Some(address) && one.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP)
    };
    getifaddrs().ok()?.find(has).map(|one| one.interface_name)
}

pub(super) async fn endpoints() -> Result<Vec<Endpoint>, StreamError> {
    ip("endpoint show").await.map(|said| said.lines().filter_map(endpoint).collect())
}

/// `192.0.2.1 id 1 subflow dev eth1`.
fn endpoint(line: &str) -> Option<Endpoint> {
    let mut words = line.split_whitespace();
    let address = words.next()?.parse().ok()?;
    let id = words.skip_while(|word| *word != "id").nth(1)?.parse().ok()?;
    Some(Endpoint { address, id })
}

pub(super) async fn add(path: IpAddr, card: &str, role: Role) -> Result<(), StreamError> {
    let flag = match role {
        Role::Source => "subflow",
        Role::Destination => "signal",
    };
    ip(&format!("endpoint add {path} dev {card} {flag}")).await.map(drop)
}

/// Nothing, where there is none.
pub(super) async fn remove(path: IpAddr) -> Result<(), StreamError> {
    for Endpoint { id, .. } in endpoints().await?.into_iter().filter(|endpoint| endpoint.address == path) {
        ip(&format!("endpoint delete id {id}")).await?;
    }
    Ok(())
}

pub(super) async fn limits() -> Result<Limits, StreamError> {
    let said = ip("limits show").await?;
    read_limits(&said).ok_or(StreamError::Refused { asked: "limits show".to_owned(), said })
}

/// `add_addr_accepted 0 subflows 2`.
fn read_limits(said: &str) -> Option<Limits> {
    let number = |name: &str| said.split_whitespace().skip_while(|word| *word != name).nth(1)?.parse().ok();
    Some(Limits { accepted: number("add_addr_accepted")?, subflows: number("subflows")? })
}

pub(super) async fn limit(Limits { accepted, subflows }: Limits) -> Result<(), StreamError> {
    ip(&format!("limits set add_addr_accepted {accepted} subflows {subflows}")).await.map(drop)
}

/// Those that are smaller than [`WINDOW`]: the file, what it holds, and what it should.
pub(super) fn windows() -> Result<Vec<(PathBuf, String, String)>, StreamError> {
    let mut small = Vec::new();
    for file in WINDOWS.map(PathBuf::from) {
        let before = fs::read_to_string(&file).map_err(|error| StreamError::Read(file.clone(), error))?;
        if let Some(larger) = larger(&before) {
            small.push((file, before.trim().to_owned(), larger));
        }
    }
    Ok(small)
}

fn larger(sizes: &str) -> Option<String> {
    let [least, first, largest] = sizes.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
    (largest.parse::<u64>().ok()? < WINDOW).then(|| format!("{least} {first} {WINDOW}"))
}

/// Unless somebody else has changed it since.
pub(super) fn shrink(file: &Path, before: &str) -> Result<(), StreamError> {
    let now = fs::read_to_string(file).map_err(|error| StreamError::Read(file.to_owned(), error))?;
    let ours = larger(before).unwrap_or_default();
    if now.split_whitespace().eq(ours.split_whitespace()) { write(file, before) } else { Ok(()) }
}

pub(super) fn write(file: &Path, text: &str) -> Result<(), StreamError> {
    fs::write(file, text).map_err(|error| StreamError::Write(file.to_owned(), error))
}

async fn ip(asked: &str) -> Result<String, StreamError> {
    let mut ip = Command::new("ip");
    ip.arg("mptcp").args(asked.split(' ')).stdin(Stdio::null()).kill_on_drop(true);
    let output = ip.output().await.map_err(StreamError::Run)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(StreamError::Refused { asked: asked.to_owned(), said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ip_prints_is_read() {
        let line = "172.31.0.1 id 3 subflow backup dev second ";
        assert_eq!(endpoint(line), Some(Endpoint { address: "172.31.0.1".parse().unwrap(), id: 3 }));
        assert_eq!(endpoint("2001:db8::1 port 7 id 12 signal").map(|one| one.id), Some(12));
        assert_eq!(endpoint(""), None);
        let limits = read_limits("add_addr_accepted 0 subflows 2 \n");
        assert_eq!(limits, Some(Limits { accepted: 0, subflows: 2 }));
        assert_eq!(read_limits("subflows 2"), None);
    }

    #[test]
    fn limits_and_windows_only_grow() {
        let limits = Limits { accepted: 1, subflows: 5 };
        assert_eq!(limits.at_least(3), Limits { accepted: 3, subflows: 5 });
        assert_eq!(limits.at_least(100), Limits { accepted: 8, subflows: 8 });
        assert_eq!(larger("4096\t131072\t6291456\n").as_deref(), Some("4096 131072 67108864"));
        assert_eq!(larger("4096 131072 134217728"), None);
        assert_eq!(larger("4096"), None);
    }
}
