//! A migration's own connection that hangs. QEMU sends the last of a VM's memory under a lock that its monitor needs too:
//! where the network dies then, it waits for TCP to give up, a quarter of an hour, and neither libvirt nor the operator
//! can call the migration off (seen with QEMU 10.0). The kernel can: what writes to a connection that it ends is
//! told so, the migration has failed, and the VM runs on where it is.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use tokio::process::Command;

/// Where QEMU listens for migrations and disks, unless qemu.conf (`migration_port_min`, `migration_port_max`) has others.
const PORTS: &str = "( dport >= :49152 and dport <= :49215 )";

/// The ends of a connection: this host's, and the other's.
type Ends = (SocketAddr, SocketAddr);

/// Ends the connections to a host's migration ports that have had something to send for so long, of which nothing was
/// acknowledged. Returns the other ends.
///
/// # Errors
/// When `ss` (ss(8), iproute2) cannot be run or the kernel refuses.
pub async fn end(to: &[IpAddr], silent: Duration) -> io::Result<Vec<SocketAddr>> {
    let all = ss(&["--no-header", "--tcp", "--numeric", "--info", "--oneline", "state", "established", PORTS]).await?;
    let mut ended = Vec::new();
    for (here, there) in stalled(&all, to, silent) {
        ss(&["--kill", "--tcp", "--numeric", "src", &here.to_string(), "dst", &there.to_string()]).await?;
        ended.push(there);
    }
    Ok(ended)
}

async fn ss(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("ss").args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ss: {}", said.trim())))
}

/// Those of `ss`'s lines: `0 81 192.0.2.1:41000 192.0.2.2:49152 cubic ... lastack:33112 ...`. The second number is of bytes
/// that are sent or to be sent, and not acknowledged; times are in ms.
fn stalled(all: &str, to: &[IpAddr], silent: Duration) -> Vec<Ends> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let waiting: u64 = words.next()?.parse().ok()?;
        let ends = (words.next()?.parse().ok()?, words.next()?.parse::<SocketAddr>().ok()?);
        let acknowledged: u64 = line.split_whitespace().find_map(|word| word.strip_prefix("lastack:")?.parse().ok())?;
        let stalls = waiting > 0 && u128::from(acknowledged) >= silent.as_millis();
        (stalls && to.contains(&ends.1.ip().to_canonical())).then_some(ends)
    };
    all.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "\
0  3862 192.0.2.1:41000          192.0.2.2:49152         cubic rto:51072 backoff:8 lastsnd:204 lastack:33112 unacked:2
0  3862 192.0.2.1:41002          192.0.2.2:49153         cubic rto:204 lastsnd:204 lastack:12 unacked:2
0  0    192.0.2.1:41004          192.0.2.2:49154         cubic rto:204 lastsnd:40000 lastack:40000
0  10   [::ffff:192.0.2.1]:41006 [::ffff:192.0.2.2]:49155 cubic rto:204 lastack:33000 unacked:1
0  10   192.0.2.1:41008          192.0.2.3:49152         cubic rto:204 lastack:33000 unacked:1
0  10   [2001:db8::1]:41010      [2001:db8::2]:49152     cubic rto:204 lastack:33000 unacked:1
";

    #[test]
    fn what_hangs_is_told_from_what_rests_what_moves_and_what_is_somebody_else_s() {
        let found = |to: &[&str], ms| {
            let to: Vec<IpAddr> = to.iter().map(|address| address.parse().unwrap()).collect();
            let ends = stalled(LINES, &to, Duration::from_millis(ms));
            ends.into_iter().map(|(here, _)| here.port()).collect::<Vec<_>>()
        };
        assert_eq!(found(&["192.0.2.2"], 30_000), [41000, 41006]);
        assert_eq!(found(&["192.0.2.2"], 33_100), [41000]);
        assert_eq!(found(&["2001:db8::2"], 30_000), [41010]);
        assert_eq!(found(&["192.0.2.9"], 0), [0; 0]);
        assert!(stalled("Error: something else\n", &["192.0.2.2".parse().unwrap()], Duration::ZERO).is_empty());
    }
}
