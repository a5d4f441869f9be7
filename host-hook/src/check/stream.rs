//! Whether a migration's own stream takes all of `[stream] paths`.

use std::{fs, net::IpAddr, path::Path};

use lsm_protocol::finding::Finding;

use super::hook;
use crate::{
    service::DIRECTORY,
    stream::{self, card},
};

/// What `mptcpize` has a program load.
const WRAPPER: &str = "libmptcpwrap";
/// A running VM does not notice.
const UNDER_MPTCPIZE: &str = "install -D -m 644 /usr/share/doc/lsm-hook/examples/libvirtd-mptcp.conf \
     /etc/systemd/system/libvirtd.service.d/mptcp.conf && systemctl daemon-reload && systemctl restart libvirtd";

/// `proc`: the kernel's processes. `forced`: whether the service can have the kernel do it, or why not.
pub(super) fn stream(paths: &[IpAddr], proc: &Path, forced: impl FnOnce() -> Result<(), String>) -> Vec<Finding> {
    if paths.is_empty() {
        return Vec::new();
    }
    let mut findings: Vec<Finding> = paths.iter().map(|path| has(*path)).collect();
    if fs::read_to_string(proc.join("sys/net/mptcp/enabled")).is_ok_and(|enabled| enabled.trim() == "1") {
        findings.extend(speaks(proc, forced));
    } else {
        findings.push(Finding::bad(
            "stream",
            "this host's kernel speaks no Multipath TCP",
            "sysctl net.mptcp.enabled=1",
        ));
    }
    findings
}

/// As the service does it, for a moment.
pub(super) fn forced() -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(stream::force(DIRECTORY.as_ref())).map(drop)
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
fn speaks(proc: &Path, forced: impl FnOnce() -> Result<(), String>) -> Option<Finding> {
    let (daemon, process) = hook::daemon(proc)?;
    let wrapped = fs::read(process.join("environ")).is_ok_and(|environment| {
        environment
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy)
            .any(|one| one.strip_prefix("LD_PRELOAD=").is_some_and(|preload| preload.contains(WRAPPER)))
    });
    if wrapped {
        return Some(Finding::good("stream", format!("{daemon} and its QEMUs speak Multipath TCP (mptcpize)")));
    }
    let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    let unit = format!("{daemon}.service");
    let is_there = cgroup.trim_end().split('/').any(|part| part == unit);
    let forced = if is_there { forced() } else { Err(format!("it does not run as {unit}")) };
    Some(match forced {
        Ok(()) => {
            let found = format!("{daemon} and its QEMUs speak Multipath TCP while a VM is copied (BPF)");
            Finding::good("stream", found)
        }
        Err(why) => {
            let found = format!("{daemon} speaks plain TCP, a migration's stream takes one path: {why}");
            Finding::bad("stream", found, UNDER_MPTCPIZE)
        }
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
        let forced = || Err("no".to_owned());
        let verdicts = || stream(&paths, &proc, forced).iter().map(|finding| finding.verdict).collect::<Vec<_>>();
        let (good, bad) = (Verdict::Good, Verdict::Bad);
        assert_eq!(verdicts(), [good, bad, bad], "no Multipath TCP");
        fs::write(proc.join("sys/net/mptcp/enabled"), "1\n").unwrap();
        fs::write(proc.join("7/environ"), "A=1\0LD_PRELOAD=/usr/lib/other.so\0").unwrap();
        assert_eq!(verdicts(), [good, bad, bad], "another library");
        fs::write(proc.join("7/environ"), "A=1\0LD_PRELOAD=/usr/lib/mptcpize/libmptcpwrap.so.0\0").unwrap();
        assert_eq!(verdicts(), [good, bad, good]);
        assert!(stream(&[], &proc, forced).is_empty());
        fs::remove_dir_all(proc).unwrap();
    }

    #[test]
    fn which_way_is_said_and_why_not_the_other() {
        let proc = std::env::temp_dir().join(format!("lsm-check-speaks-{}", std::process::id()));
        fs::create_dir_all(proc.join("7")).unwrap();
        fs::write(proc.join("7/comm"), "libvirtd\n").unwrap();
        let said = |forced: Result<(), &str>| {
            let finding = speaks(&proc, || forced.map_err(str::to_owned)).unwrap();
            (finding.verdict == Verdict::Good, finding.found)
        };
        fs::write(proc.join("7/cgroup"), "0::/user.slice\n").unwrap();
        let (good, found) = said(Ok(()));
        assert!(!good && found.ends_with("it does not run as libvirtd.service"), "{found}");
        fs::write(proc.join("7/cgroup"), "0::/system.slice/libvirtd.service\n").unwrap();
        let (good, found) = said(Err("Linux 6.6 and later can"));
        assert!(!good && found.ends_with("takes one path: Linux 6.6 and later can"), "{found}");
        let (good, found) = said(Ok(()));
        assert!(good && found.ends_with("while a VM is copied (BPF)"), "{found}");
        fs::write(proc.join("7/environ"), "LD_PRELOAD=/usr/lib/mptcpize/libmptcpwrap.so.0\0").unwrap();
        assert!(said(Err("")).1.ends_with("(mptcpize)"));
        fs::remove_dir_all(proc).unwrap();
    }
}
