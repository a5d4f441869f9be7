//! Whether a migration's own stream takes all of `[stream] paths`.

use std::{fs, net::IpAddr, path::Path};

use lsm_protocol::finding::Finding;

use super::hook;
use crate::stream::card;

/// What `mptcpize` has a program load.
const WRAPPER: &str = "libmptcpwrap";
/// A running VM does not notice.
const UNDER_MPTCPIZE: &str = "install -D -m 644 /usr/share/doc/lsm-hook/examples/libvirtd-mptcp.conf \
     /etc/systemd/system/libvirtd.service.d/mptcp.conf && systemctl daemon-reload && systemctl restart libvirtd";

/// `proc`: the kernel's processes.
pub(super) fn stream(paths: &[IpAddr], proc: &Path) -> Vec<Finding> {
    if paths.is_empty() {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = paths.iter().map(|path| has(*path)).collect();
    if fs::read_to_string(proc.join("sys/net/mptcp/enabled")).is_ok_and(|enabled| enabled.trim() == "1") {
        findings.extend(wrapped(proc));
    } else {
        findings.push(Finding::bad(
            "stream",
            "this host's kernel speaks no Multipath TCP",
            "sysctl net.mptcp.enabled=1",
        ));
    }
    findings
}

fn has(path: IpAddr) -> Finding {
    match card(path) {
        Some(card) => Finding::good("stream", format!("takes {path} ({card})")),
        None => {
            let fix = "ip -brief address  # set the card up, or correct [stream] paths in host.toml";
            Finding::bad("stream", format!("no card that is up has {path}"), fix)
        }
    }
}

/// Nothing to say where libvirt does not run: another finding tells.
fn wrapped(proc: &Path) -> Option<Finding> {
    let (daemon, process) = hook::daemon(proc)?;
    let loads = fs::read(process.join("environ")).is_ok_and(|environment| {
        environment
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .any(|one| one.strip_prefix("LD_PRELOAD=").is_some_and(|preload| preload.contains(WRAPPER)))
    });
    Some(if loads {
        Finding::good("stream", format!("{daemon} and its QEMUs speak Multipath TCP (mptcpize)"))
    } else {
        let found = format!("{daemon} speaks plain TCP: a migration's stream takes one path");
        Finding::bad("stream", found, UNDER_MPTCPIZE)
    })
}

#[cfg(test)]
mod tests {
    use lsm_protocol::finding::Verdict;

    use super::*;

    #[test]
    fn plain_tcp_and_missing_cards_are_seen() {
        let proc = std::env::temp_dir().join(format!("lsm-check-stream-{}", std::process::id()));
        fs::create_dir_all(proc.join("sys/net/mptcp")).unwrap();
        fs::create_dir_all(proc.join("7")).unwrap();
        fs::write(proc.join("7/comm"), "libvirtd\n").unwrap();
        let paths = ["127.0.0.1".parse().unwrap(), "192.0.2.77".parse().unwrap()];
        let verdicts = || stream(&paths, &proc).iter().map(|finding| finding.verdict).collect::<Vec<_>>();
        let (good, bad) = (Verdict::Good, Verdict::Bad);
        assert_eq!(verdicts(), [good, bad, bad], "no Multipath TCP");
        fs::write(proc.join("sys/net/mptcp/enabled"), "1\n").unwrap();
        fs::write(proc.join("7/environ"), "A=1\0LD_PRELOAD=/usr/lib/other.so\0").unwrap();
        assert_eq!(verdicts(), [good, bad, bad], "another library");
        fs::write(proc.join("7/environ"), "A=1\0LD_PRELOAD=/usr/lib/mptcpize/libmptcpwrap.so.0\0").unwrap();
        assert_eq!(verdicts(), [good, bad, good]);
        assert!(stream(&[], &proc).is_empty());
        fs::remove_dir_all(proc).unwrap();
    }
}
