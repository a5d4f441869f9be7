//! What hosts and VM have that a migration touches, as text: whatever went wrong, it must be there again afterwards.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    shell::{LabError, Result, run, wait_for},
    stage::Stage,
};

/// On each host. Entries that a bridge has learnt come and go by themselves; those somebody made do not. Of processes,
/// those of the lab's own calls are left out, and virsh, which listens for events until libvirt-dbus does. That a bridge has
/// no carrier is said up to a second late.
const HOST: [(&str, &str); 10] = [
    ("interfaces", "ip -o link | sed 's/ state [A-Z]*//; s/NO-CARRIER,//'"),
    ("addresses", "ip -o addr"),
    ("rules", "ip rule"),
    ("routes", "ip route show table all"),
    ("bridge ports", "bridge -o -d link | sed 's/ state [A-Z]* / /'"),
    ("forwarding entries", "bridge fdb show | grep -E 'static|permanent|extern_learn'"),
    ("filters", "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'"),
    ("queues", "tc qdisc show | sed 's/ [0-9a-f]*: / /'"),
    ("files", "find /run/lsm ! -name moved.json | sort"),
    ("processes", "ps -eo comm= | grep -vE '^(sh|ps|grep|sort|sleep|nsenter|setpriv|virsh)$' | sort"),
];

/// In the VM. A vNIC that was up for the first time keeps the queueing discipline that the kernel gave it then. Which peers
/// can join is remembered on purpose.
const VM: [(&str, &str); 8] = [
    ("interfaces", "ip -o link | sed 's/ qdisc [^ ]*//'"),
    ("addresses", "ip -o addr"),
    ("rules", "ip rule"),
    ("routes", "ip route show table all"),
    ("endpoints and limits", "ip mptcp endpoint; ip mptcp limits"),
    (
        "kernel parameters",
        "cd /proc/sys/net; grep . ipv4/conf/*/rp_filter ipv4/conf/*/arp_ignore ipv4/conf/*/arp_announce ipv4/conf/*/arp_filter ipv4/ip_forward mptcp/*",
    ),
    ("files", "find /run/lsm ! -name peers.json | sort"),
    ("processes", "for p in /proc/[0-9]*; do readlink $p/exe; done | grep -E '/(lsm|lab)' | sort"),
];

/// Taken once, and compared later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot(Vec<(String, String)>);

impl Snapshot {
    /// Looks at both hosts and at the VM. Numbers that are given anew each time (of interfaces, of taps, of endpoints) are
    /// left out.
    ///
    /// # Errors
    /// The VM does not answer, or a host cannot run the commands.
    pub fn take(stage: &Stage) -> Result<Snapshot> {
        let mut seen = Vec::new();
        for site in &stage.sites {
            let taps = taps(&site.virsh(&["domiflist", &stage.guest.domain().name]).unwrap_or_default());
            for (what, command) in HOST {
                let text = run(site.command("sh").args(["-c", &format!("{command} || true")]))?;
                seen.push((format!("{what} of {}", site.name()), anonymous(&text, &taps)));
            }
        }
        let commands = VM.map(|(_, command)| format!("({command}); echo ====")).join("; ");
        let text = stage.guest.exec(&commands)?.stdout;
        for ((what, _), text) in VM.iter().zip(text.split("====\n")) {
            seen.push((format!("{what} of the VM"), anonymous(text, &BTreeMap::new())));
        }
        Ok(Snapshot(seen))
    }

    /// Line by line, what was there and is not (`-`), or is there now and was not (`+`).
    #[must_use]
    pub fn differences(&self, later: &Snapshot) -> Vec<String> {
        let mut found = Vec::new();
        for ((what, was), (_, is)) in self.0.iter().zip(&later.0) {
            found.extend(missing(was, is).map(|line| format!("{what}: - {line}")));
            found.extend(missing(is, was).map(|line| format!("{what}: + {line}")));
        }
        found
    }

    /// Waits until everything is as it was. Differences that `tolerated` is part of do not count.
    ///
    /// # Errors
    /// It is not, after `limit`: with the differences.
    pub fn restored(&self, stage: &Stage, limit: Duration, tolerated: &str) -> Result<()> {
        let tolerated: Vec<&str> = Some(tolerated).filter(|words| !words.is_empty()).into_iter().collect();
        let left = self.left(stage, limit, &tolerated)?;
        if left.is_empty() {
            return Ok(());
        }
        Err(LabError::Other(format!("waited {limit:?} for everything to be as before:\n{}", left.join("\n"))))
    }

    /// What is not as it was, for as long as `limit`: without the differences that one of `explained` is part of.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn left(&self, stage: &Stage, limit: Duration, explained: &[&str]) -> Result<Vec<String>> {
        let mut left = Err(LabError::Other("nothing was looked at".into()));
        let _ = wait_for("everything to be as before", limit, || {
            left = Snapshot::take(stage).map(|now| {
                let differences = self.differences(&now).into_iter();
                differences.filter(|difference| !explained.iter().any(|words| difference.contains(words))).collect()
            });
            left.as_ref().is_ok_and(Vec::is_empty).then_some(())
        });
        left
    }
}

/// The lines that are in one text more often than in the other.
fn missing<'a>(from: &'a str, other: &'a str) -> impl Iterator<Item = &'a str> {
    let mut counts = BTreeMap::<&str, usize>::new();
    other.lines().for_each(|line| *counts.entry(line).or_default() += 1);
    from.lines().filter(move |line| match counts.get_mut(line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    })
}

/// Each tap by the last byte of its MAC, from `virsh domiflist`.
fn taps(listing: &str) -> BTreeMap<String, String> {
    let words = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let named =
        words.filter_map(|words| Some(((*words.first()?).to_owned(), format!("tap-{}", words.get(4)?.get(15..)?))));
    named.collect()
}

fn anonymous(text: &str, taps: &BTreeMap<String, String>) -> String {
    let line = |line: &str| {
        // "7: eth0@if8: <...>" and "7: eth0    inet ...": the kernel's number, and that of the other end.
        let line =
            line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok()).map_or(line, |(_, rest)| rest);
        let mut words: Vec<String> = Vec::new();
        for word in line.split(' ') {
            let ends = word.find(|letter: char| !letter.is_ascii_alphanumeric()).unwrap_or(word.len());
            let (name, rest) = word.split_at(ends);
            words.push(match (taps.get(name), word.split_once("@if"), words.last().map(String::as_str)) {
                (Some(tap), ..) => format!("{tap}{rest}"),
                (None, Some((name, _)), _) => format!("{name}@"),
                (None, None, Some("id")) => "*".into(),
                _ => word.into(),
            });
        }
        words.join(" ")
    };
    text.lines().map(|one| line(one) + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_given_anew_are_no_difference() {
        let listing = " vnet7   bridge   br-dallas   virtio   52:54:00:aa:01:02\n";
        let taps = taps(listing);
        assert_eq!(anonymous("12: vnet7: <UP> mtu 1500\n", &taps), "tap-02: <UP> mtu 1500\n");
        assert_eq!(anonymous("3: lan@if9: <UP>\n", &taps), "lan@ <UP>\n");
        assert_eq!(anonymous("52:54:00:aa:01:02 dev vnet7 static\n", &taps), "52:54:00:aa:01:02 dev tap-02 static\n");
        assert_eq!(anonymous("10.1.0.10 id 3 signal dev eth0\n", &taps), "10.1.0.10 id * signal dev eth0\n");
        assert_eq!(anonymous("13: vnet8: <UP>\n", &taps), "vnet8: <UP>\n", "a tap of no VM is a difference");
    }

    #[test]
    fn a_line_that_is_there_once_more_is_a_difference() {
        let of = |text: &str| Snapshot(vec![("processes".into(), text.into())]);
        assert_eq!(of("nft\n").differences(&of("nft\nnft\n")), ["processes: + nft"]);
        assert_eq!(of("a\nb\n").differences(&of("b\na\n")), Vec::<String>::new());
        assert_eq!(of("a\n").differences(&of("")), ["processes: - a"]);
    }
}
