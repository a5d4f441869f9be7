//! What hosts and VM have that a migration touches, as text: whatever went wrong, it must be there again afterwards.

use std::time::Duration;

use crate::{
    shell::{LabError, Result, run, wait_for},
    stage::Stage,
};

/// On each host. Entries that a bridge has learnt come and go by themselves; those somebody made do not.
const HOST: [(&str, &str); 6] = [
    ("interfaces", "ip -o link"),
    ("bridge ports", "bridge -o -d link"),
    ("forwarding entries", "bridge fdb show | grep -E 'static|permanent'"),
    ("filters", "nft list ruleset"),
    ("queues", "tc qdisc show"),
    ("migrations on disk", "ls /run/lsm/migrations"),
];

/// In the VM. A vNIC that was up for the first time keeps the queueing discipline that the kernel gave it then.
const VM: [(&str, &str); 6] = [
    ("interfaces", "ip -o link | sed 's/ qdisc [^ ]*//'"),
    ("addresses", "ip -o addr"),
    ("rules", "ip rule"),
    ("routes", "ip route show table all"),
    ("endpoints and limits", "ip mptcp endpoint; ip mptcp limits"),
    (
        "kernel parameters",
        "cd /proc/sys/net; grep . ipv4/conf/*/rp_filter ipv4/conf/*/arp_ignore ipv4/conf/*/arp_announce ipv4/ip_forward mptcp/*",
    ),
];

/// Taken once, and compared later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<(String, String)>);

impl Snapshot {
    /// Looks at both hosts and at the VM.
    ///
    /// # Errors
    /// The VM does not answer, or a host cannot run the commands.
    pub fn take(stage: &Stage) -> Result<Snapshot> {
        let mut seen = Vec::new();
        for site in &stage.sites {
            for (what, command) in HOST {
                let text = run(site.command("sh").args(["-c", &format!("{command} || true")]))?;
                seen.push((format!("{what} of {}", site.name()), text));
            }
        }
        let commands = VM.map(|(_, command)| format!("({command}); echo ====")).join("; ");
        let text = stage.guest.exec(&commands)?.stdout;
        for ((what, _), text) in VM.iter().zip(text.split("====\n")) {
            seen.push((format!("{what} of the VM"), text.to_owned()));
        }
        Ok(Snapshot(seen))
    }

    /// Line by line, what was there and is not (`-`), or is there now and was not (`+`).
    #[must_use]
    pub fn differences(&self, later: &Snapshot) -> Vec<String> {
        let mut found = Vec::new();
        for ((what, was), (_, is)) in self.0.iter().zip(&later.0) {
            let missing = |from: &str, other: &str, sign: char| -> Vec<String> {
                let lines = from.lines().filter(|line| !other.lines().any(|known| known == *line));
                lines.map(|line| format!("{what}: {sign} {line}")).collect()
            };
            found.extend(missing(was, is, '-'));
            found.extend(missing(is, was, '+'));
        }
        found
    }

    /// Waits until everything is as it was. Differences that `tolerated` is part of do not count.
    ///
    /// # Errors
    /// It is not, after `limit`: with the differences.
    pub fn restored(&self, stage: &Stage, limit: Duration, tolerated: &str) -> Result<()> {
        let mut left = Vec::new();
        let as_before = wait_for("everything to be as before", limit, || {
            left = self.differences(&Snapshot::take(stage).ok()?);
            left.retain(|difference| tolerated.is_empty() || !difference.contains(tolerated));
            left.is_empty().then_some(())
        });
        as_before.map_err(|error| LabError::Other(format!("{error}:\n{}", left.join("\n"))))
    }
}
