//! A client's machine: whether its connections follow a VM to another address. That is the kernel's doing; what keeps it
//! from it by default are limits of nothing at all.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lsm_protocol::finding::{Finding, Verdict};

use super::kernel;
use crate::{
    mptcp::{Limits, PathManager},
    path::chain,
    sysctl,
};

/// What `systemd/lsm-client.service` does at each boot.
const RAISE: &str = "ip mptcp limits set subflows 8 add_addr_accepted 8";
const UNIT: &str = "lsm-client.service";
const NETWORK_MANAGER_FILE: &str = "etc/NetworkManager/conf.d/90-lsm-client.conf";

/// Looks at the network namespace of the calling thread, and at the files of the system below `root`.
#[must_use]
pub fn client(root: &Path) -> Vec<Finding> {
    let mut findings = kernel();
    if findings.iter().any(|finding| finding.what == "kernel" && finding.verdict == Verdict::Bad) {
        return findings;
    }
    findings.push(path_manager(sysctl::get("net/mptcp/pm_type").as_deref().unwrap_or("0")));
    match PathManager::open().and_then(|mut manager| Ok((manager.limits()?, manager.endpoints()?))) {
        Ok((found, endpoints)) => {
            let own = endpoints.iter().filter(|endpoint| endpoint.flags.subflow).count();
            findings.push(limits(found, own));
        }
        Err(error) => findings.push(Finding::bad("limits", chain(&error), "ip mptcp limits show")),
    }
    if root.join("run/systemd/system").is_dir() {
        findings.push(at_boot(root));
    }
    if root.join("run/NetworkManager").is_dir() {
        findings.push(network_manager(root));
    }
    if root.join("run/systemd/netif").is_dir() {
        findings.push(Finding::good("networkd", "systemd-networkd leaves limits and endpoints alone"));
    }
    findings
}

fn path_manager(pm_type: &str) -> Finding {
    match pm_type {
        "0" => Finding::good("path manager", "the kernel's own"),
        other => Finding::warning(
            "path manager",
            format!("pm_type {other}: a program (mptcpd?) decides which addresses are joined, the limits do not count"),
            "sysctl -w net.mptcp.pm_type=0",
        ),
    }
}

/// `own`: endpoints from which the kernel opens subflows unasked, once per connection; they count as well.
fn limits(found: Limits, own: usize) -> Finding {
    let Limits { subflows, add_addr_accepted } = found;
    let shown = format!("subflows {subflows}, add_addr_accepted {add_addr_accepted}");
    let left = subflows.saturating_sub(own as u32);
    match (add_addr_accepted, left) {
        (0, _) => {
            Finding::bad("limits", format!("{shown}: announced addresses are not joined, no VM is followed"), RAISE)
        }
        (_, 0) if own == 0 => {
            Finding::bad("limits", format!("{shown}: no subflow may be added, no VM is followed"), RAISE)
        }
        (_, 0) => Finding::bad(
            "limits",
            format!("{shown}, and {own} endpoints of this machine use them up: nothing is left to follow a VM with"),
            RAISE,
        ),
        // While a VM moves a connection has both; some kernels count one that is gone for a while.
        (1, _) | (_, 1) => Finding::warning(
            "limits",
            format!("{shown}{}: enough for one move; more may not be followed", beside(own)),
            RAISE,
        ),
        _ => Finding::good("limits", format!("{shown}{}", beside(own))),
    }
}

fn beside(own: usize) -> String {
    if own == 0 { String::new() } else { format!(", endpoints of this machine {own}") }
}

/// Limits are the kernel's default again after a boot.
fn at_boot(root: &Path) -> Finding {
    let wants = fs::read_dir(root.join("etc/systemd/system")).into_iter().flatten().flatten();
    let enabled = wants.map(|entry| entry.path().join(UNIT)).any(|link| link.symlink_metadata().is_ok());
    if enabled {
        Finding::good("at boot", format!("{UNIT} raises the limits"))
    } else {
        let found = format!("{UNIT} is not enabled: unless something else raises the limits, they end with this boot");
        Finding::warning("at boot", found, format!("systemctl enable --now {UNIT}"))
    }
}

/// It changes no limits. Since 1.40 it makes an endpoint of each address, with subflow, unless told otherwise: each adds a
/// subflow to a VM's address.
pub(super) fn network_manager(root: &Path) -> Finding {
    let directories = ["usr/lib/NetworkManager/conf.d", "run/NetworkManager/conf.d", "etc/NetworkManager/conf.d"];
    let read = |directory: &str| fs::read_dir(root.join(directory)).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = directories.into_iter().flat_map(read).collect();
    files.push(root.join("etc/NetworkManager/NetworkManager.conf"));
    let disabled = files.iter().filter_map(|file| fs::read_to_string(file).ok()).any(|text| {
        let setting = |line: &str| {
            line.strip_prefix("connection.mptcp-flags").map(|v| v.trim_start_matches([' ', '=']).to_owned())
        };
        text.lines()
            .filter_map(|line| setting(line.trim()))
            .any(|value| matches!(value.as_str(), "1" | "0x1" | "disabled"))
    });
    if disabled {
        Finding::good("NetworkManager", "makes no endpoints, and changes no limits")
    } else {
        let fix = format!(
            "printf '[connection-lsm-client]\\nconnection.mptcp-flags=1\\n' >/{NETWORK_MANAGER_FILE} && nmcli general reload conf"
        );
        let found =
            "makes an endpoint of each address (1.40 and later): each takes one of the subflows; it raises no limits";
        Finding::warning("NetworkManager", found, fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_judged_by_what_is_left() {
        let judge = |subflows, add_addr_accepted, own| limits(Limits { subflows, add_addr_accepted }, own);
        let verdict = |subflows, accepted, own| judge(subflows, accepted, own).verdict;
        // Linux' default.
        let default = judge(2, 0, 0);
        assert_eq!((default.verdict, default.fix.as_deref()), (Verdict::Bad, Some(RAISE)));
        assert!(default.found.starts_with("subflows 2, add_addr_accepted 0"), "{default:?}");
        assert_eq!(verdict(0, 8, 0), Verdict::Bad);
        assert_eq!(verdict(2, 8, 2), Verdict::Bad);
        assert_eq!(verdict(1, 8, 3), Verdict::Bad);
        assert_eq!(verdict(2, 1, 0), Verdict::Warning);
        assert_eq!(verdict(3, 8, 2), Verdict::Warning);
        assert_eq!(verdict(2, 2, 0), Verdict::Good);
        assert_eq!(verdict(8, 8, 2), Verdict::Good);
    }

    #[test]
    fn who_else_has_a_part_is_seen_in_the_files() {
        let root = std::env::temp_dir().join(format!("lsm-client-{}", std::process::id()));
        let make = |path: &str| fs::create_dir_all(root.join(path)).unwrap();
        let found = |what: &str| client(&root).into_iter().find(|finding| finding.what == what).map(|f| f.verdict);
        let all = ["at boot", "NetworkManager", "networkd"];
        make("etc");
        assert_eq!(all.map(found), [None; 3]);
        ["run/systemd/system", "run/NetworkManager", "run/systemd/netif"].into_iter().for_each(make);
        assert_eq!(all.map(found), [Some(Verdict::Warning), Some(Verdict::Warning), Some(Verdict::Good)]);
        make("etc/NetworkManager/conf.d");
        fs::write(root.join(NETWORK_MANAGER_FILE), include_str!("../../../packaging/client/NetworkManager.conf"))
            .unwrap();
        make("etc/systemd/system/network-pre.target.wants");
        std::os::unix::fs::symlink("/nowhere", root.join("etc/systemd/system/network-pre.target.wants").join(UNIT))
            .unwrap();
        assert_eq!(all.map(found), [Some(Verdict::Good); 3]);
        fs::write(root.join(NETWORK_MANAGER_FILE), "#connection.mptcp-flags=1\nconnection.mptcp-flags=0x22\n").unwrap();
        assert_eq!(found("NetworkManager"), Some(Verdict::Warning));
        fs::remove_dir_all(&root).unwrap();
    }
}
