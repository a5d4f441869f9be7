//! Who else has a hand in a VM's network cards and MPTCP endpoints, seen in the files that they keep under /run; and how it
//! is settled who has which.

use std::{fs, path::Path, process::Command};

use lsm_protocol::{Mac, finding::Finding};
use nix::ifaddrs::getifaddrs;

use super::{client::network_manager, cloud_init::cloud_init};
use crate::record::Record;

/// A card that LSM manages.
#[derive(Clone, Copy)]
struct Card<'a> {
    name: &'a str,
    ifindex: u32,
    mac: &'a str,
    /// It carries no address: nobody is to ask for one before a move.
    spare: bool,
    /// NetworkManager asks for one, and has not got it.
    connecting: bool,
}

/// The managed vNICs are those that a host has named; before the first word of one, none.
pub(super) fn all(root: &Path, directory: &Path) -> Vec<Finding> {
    let managed = Record::open(directory).map(|record| record.managed).unwrap_or_default();
    let interfaces: Vec<_> = getifaddrs().into_iter().flatten().collect();
    let has_address = |name: &str| {
        let mut own = interfaces.iter().filter(|one| one.interface_name == name).filter_map(|one| one.address.as_ref());
        own.any(|address| {
            let v6 = address.as_sockaddr_in6().is_some_and(|v6| !v6.ip().is_unicast_link_local());
            v6 || address.as_sockaddr_in().is_some()
        })
    };
    let cards = interfaces.iter().filter_map(|one| {
        let link = one.address.as_ref()?.as_link_addr()?;
        let mac = Mac(link.addr()?);
        managed.contains(&mac).then(|| (one.interface_name.as_str(), link.ifindex() as u32, mac.to_string()))
    });
    let cards: Vec<_> = cards.collect();
    let runs = root.join("run/NetworkManager").is_dir();
    let devices = if runs { network_manager_s_devices() } else { String::new() };
    let cards: Vec<_> = cards
        .iter()
        .map(|(name, ifindex, mac)| Card {
            name,
            ifindex: *ifindex,
            mac,
            spare: !has_address(name),
            connecting: connecting(&devices, name),
        })
        .collect();
    let mut findings = owners(root, &cards);
    if runs {
        findings.push(network_manager(root));
    }
    findings
}

/// A line for each: its name, its state, its profile. In a file it has those alone that are up, and on a LAN where nobody
/// answers none ever is.
fn network_manager_s_devices() -> String {
    let told = Command::new("nmcli").args(["--terse", "--fields", "DEVICE,STATE,CONNECTION", "device"]).output();
    told.map(|told| String::from_utf8_lossy(&told.stdout).into_owned()).unwrap_or_default()
}

/// Other than for LSM.
fn connecting(devices: &str, card: &str) -> bool {
    devices
        .lines()
        .filter_map(|line| line.strip_prefix(card)?.strip_prefix(":connecting"))
        .any(|of| !of.contains(":lsm "))
}

/// Looks at the files of the system below `root`.
fn owners(root: &Path, cards: &[Card<'_>]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = cards.iter().flat_map(|card| of_card(root, card)).collect();
    let spares: Vec<_> = cards.iter().filter(|card| card.spare).map(|card| (card.name, card.mac)).collect();
    findings.extend(cloud_init(root, &spares));
    if runs(root, "mptcpd") {
        findings.push(Finding::bad(
            "mptcpd",
            "it runs, and makes and deletes MPTCP endpoints of its own: connections lose subflows that LSM counts on",
            "systemctl disable --now mptcp",
        ));
    }
    findings
}

fn of_card(root: &Path, card: &Card<'_>) -> Option<Finding> {
    let Card { name, ifindex, mac, spare, connecting } = *card;
    let networkd = read(root, &format!("run/systemd/netif/links/{ifindex}"));
    let network_manager = read(root, &format!("run/NetworkManager/devices/{ifindex}"));
    let file = networkd.lines().find_map(|line| line.strip_prefix("NETWORK_FILE="));
    let profile = network_manager.lines().find_map(|line| line.strip_prefix("connection-uuid="));
    Some(match (file, profile) {
        // lsm-guest's own.
        (Some(file), _) if file.contains("/00-lsm-") => {
            Finding::good("vNIC", format!("{name}: systemd-networkd, for LSM"))
        }
        (_, Some(uuid)) if uuid.starts_with("6c736d00-") => {
            Finding::good("vNIC", format!("{name}: NetworkManager, for LSM"))
        }
        (Some(file), _) if spare => Finding::warning(
            "vNIC",
            format!(
                "{name} is spare, and systemd-networkd configures it by {file}: it asks for addresses where there is no LAN"
            ),
            format!(
                "printf '[Match]\\nMACAddress={mac}\\n[Link]\\nUnmanaged=yes\\n' >/etc/systemd/network/00-lsm-spare.network && networkctl reload"
            ),
        ),
        (_, profile) if spare && (profile.is_some() || connecting) => Finding::warning(
            "vNIC",
            format!(
                "{name} is spare, and NetworkManager has a profile for it: it asks for addresses where there is no LAN"
            ),
            format!(
                "printf '[main]\\nno-auto-default={mac}\\n' >/etc/NetworkManager/conf.d/90-lsm-spare.conf && systemctl reload NetworkManager && nmcli device disconnect {name}"
            ),
        ),
        (Some(file), _) => Finding::good("vNIC", format!("{name}: systemd-networkd, by {file}")),
        (_, Some(_)) => Finding::good("vNIC", format!("{name}: NetworkManager")),
        (None, None) if spare => Finding::good("vNIC", format!("{name} is spare, and nobody's")),
        (None, None) => Finding::good("vNIC", format!("{name}: nobody's; LSM asks for addresses itself")),
    })
}

fn read(root: &Path, file: &str) -> String {
    fs::read_to_string(root.join(file)).unwrap_or_default()
}

/// Whether a process of that name runs.
fn runs(root: &Path, name: &str) -> bool {
    let processes = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    processes
        .map(|entry| entry.path().join("comm"))
        .any(|comm| fs::read_to_string(comm).is_ok_and(|c| c.trim() == name))
}

#[cfg(test)]
mod tests {
    use lsm_protocol::finding::Verdict;

    use super::*;

    #[test]
    fn another_owner_of_a_spare_vnic_and_of_the_endpoints_is_named_with_its_cure() {
        let root = std::env::temp_dir().join(format!("lsm-owners-{}", std::process::id()));
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        let card = |spare| Card { name: "eth1", ifindex: 3, mac: "52:54:00:aa:00:02", spare, connecting: false };
        let look = |spare| owners(&root, &[card(spare)]);
        let one = |spare| look(spare).swap_remove(0);
        assert_eq!((one(true).verdict, one(false).verdict), (Verdict::Good, Verdict::Good));

        write(
            "run/systemd/netif/links/3",
            "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/50-all.network\n",
        );
        let found = one(true);
        assert_eq!(found.verdict, Verdict::Warning);
        assert!(found.found.contains("by /etc/systemd/network/50-all.network"), "{found:?}");
        assert!(found.fix.unwrap().contains("MACAddress=52:54:00:aa:00:02"));
        assert_eq!(one(false).verdict, Verdict::Good, "it carries the traffic");
        write("run/systemd/netif/links/3", "NETWORK_FILE=/run/systemd/network/00-lsm-525400aa0002.network\n");
        assert_eq!(one(true).verdict, Verdict::Good, "ours");

        write("run/systemd/netif/links/3", "");
        write("run/NetworkManager/devices/3", "[device]\nconnection-uuid=0c8b0e6b-4f2d-3f5b-9b8e-2f0a1b2c3d4e\n");
        assert!(one(true).fix.unwrap().contains("no-auto-default=52:54:00:aa:00:02"));
        write("run/NetworkManager/devices/3", "connection-uuid=6c736d00-0000-4000-8000-525400aa0002\n");
        assert_eq!(one(true).verdict, Verdict::Good, "ours");

        let devices = "eth1:connecting (getting IP configuration):Wired connection 2\neth10:connected:lsm x\n";
        assert!(connecting(devices, "eth1") && !connecting(devices, "eth10") && !connecting(devices, "eth"));
        assert!(!connecting("eth1:connecting (prepare):lsm 52\\:54\\:00\\:aa\\:00\\:02\n", "eth1"), "ours");
        write("run/NetworkManager/devices/3", "[device]\nmanaged=true\n");
        let asked = owners(&root, &[Card { connecting: true, ..card(true) }]).swap_remove(0);
        assert!(asked.found.contains("asks for addresses") && asked.verdict == Verdict::Warning);

        write("proc/77/comm", "mptcpd\n");
        let found = look(true).pop().unwrap();
        assert_eq!((found.what.as_str(), found.verdict), ("mptcpd", Verdict::Bad));
        fs::remove_dir_all(&root).unwrap();
    }
}
