//! A VM that runs: whether it could be moved now.

use std::{fs, os::unix::net::UnixStream, path::Path, time::SystemTime};

use lsm_protocol::finding::Finding;
use nix::{
    libc,
    unistd::{AccessFlags, access},
};

use super::modules::{kernels, modules};
use crate::sysctl;

const ON_THE_HOST: &str = "lsm-hook adopt VM  # on the host; then shut the VM down and start it";
/// Nothing was built before: the clock was never set.
const PLAUSIBLE: u64 = 1_767_225_600; // 2026-01-01
const CLOCK: &str = "sys/devices/system/clocksource/clocksource0/current_clocksource";

/// `root` is `/`, but in tests; `directory` holds the agent's state.
pub(super) fn machine(root: &Path, directory: &Path) -> Vec<Finding> {
    let release = sysctl::get("kernel/osrelease").unwrap_or_default();
    let mut findings = Vec::new();
    findings.push(match kernels(root).into_iter().find(|(of, _)| *of == release) {
        Some((_, place)) => modules(&release, &place),
        None => Finding::warning(
            "modules",
            format!("/lib/modules/{release} is missing: only what is loaded or built in can be used"),
            "uname -r  # install this kernel's modules",
        ),
    });
    findings.push(cards(&root.join("sys/class/net")));
    findings.push(reverse_path());
    findings.push(transports(root));
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    findings.push(clock(since, fs::read_to_string(root.join(CLOCK)).unwrap_or_default().trim()));
    findings.push(match UnixStream::connect(directory.join("guest.sock")) {
        Ok(_) => Finding::good("agent", "runs"),
        Err(error) => Finding::bad("agent", format!("does not answer: {error}"), "systemctl enable --now lsm-guest"),
    });
    findings
}

/// Network cards, as opposed to what is made of software.
fn cards(devices: &Path) -> Finding {
    let what = "vNICs";
    let mut cards: Vec<String> = fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("device").exists())
        .filter(|entry| fs::read_to_string(entry.path().join("type")).is_ok_and(|kind| kind.trim() == ETHERNET))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    cards.sort();
    match cards.len() {
        0 => Finding::bad(what, "no network card", ON_THE_HOST),
        1 => Finding::bad(what, format!("{} alone: the next site's address needs a second", cards[0]), ON_THE_HOST),
        _ => Finding::good(what, cards.join(", ")),
    }
}

/// ARPHRD_ETHER.
const ETHERNET: &str = "1";

/// While it moves, replies come back by either vNIC: the agent loosens rp_filter of both, and puts it back.
fn reverse_path() -> Finding {
    let value = sysctl::get("net/ipv4/conf/all/rp_filter").unwrap_or_default();
    match access("/proc/sys/net/ipv4/conf/all/rp_filter", AccessFlags::W_OK) {
        Ok(()) => {
            Finding::good("rp_filter", format!("all = {value}; of the two vNICs the agent loosens it for a move"))
        }
        Err(error) => Finding::bad(
            "rp_filter",
            format!("cannot be loosened: /proc/sys is not to be written: {error}"),
            "mount -o remount,rw /proc/sys  # a container needs the host's leave",
        ),
    }
}

fn transports(root: &Path) -> Finding {
    let ports = fs::read_dir(root.join("sys/class/virtio-ports")).into_iter().flatten().flatten();
    let names = ports.filter_map(|port| fs::read_to_string(port.path().join("name")).ok());
    let channel = names.map(|name| name.trim().to_owned()).any(|name| name == "org.lsm.guest.0");
    // Exists with the first transport's module (af_vsock); only a CID says that the host gave a device.
    let vsock = root.join("dev/vsock").exists() && has_vsock_device(root);
    match (vsock, channel) {
        (true, true) => Finding::good("transport", "vsock, and the channel org.lsm.guest.0"),
        (true, false) => Finding::good("transport", "vsock"),
        (false, true) => Finding::good("transport", "the channel org.lsm.guest.0"),
        (false, false) => {
            let found = "neither a vsock device nor the channel org.lsm.guest.0: the host cannot reach the agent";
            Finding::bad("transport", found, ON_THE_HOST)
        }
    }
}

/// Virtio's device 19 (virtio specification, 5.10).
fn has_vsock_device(root: &Path) -> bool {
    let devices = fs::read_dir(root.join("sys/bus/virtio/devices")).into_iter().flatten().flatten();
    devices.filter_map(|device| fs::read_to_string(device.path().join("device")).ok()).any(|id| id.trim() == "0x0013")
}

fn clock(now: u64, source: &str) -> Finding {
    if now < PLAUSIBLE {
        let fix = "systemctl enable --now systemd-timesyncd  # or chrony";
        return Finding::bad("clock", "was never set", fix);
    }
    match (synchronized(), source) {
        (false, _) => Finding::warning(
            "clock",
            format!("{source}; nobody keeps it right: after a move it is off by as long as the VM was paused"),
            "systemctl enable --now systemd-timesyncd  # or chrony",
        ),
        (true, _) => Finding::good("clock", format!("{source}, kept right")),
    }
}

/// Whether something disciplines the kernel's clock (adjtimex(2)).
fn synchronized() -> bool {
    crate::raw::clock_state().is_ok_and(|state| state != libc::TIME_ERROR)
}

#[cfg(test)]
mod tests {
    use lsm_protocol::finding::Verdict;

    use super::*;

    #[test]
    fn cards_and_ways_to_the_host_are_counted() {
        let root = std::env::temp_dir().join(format!("lsm-machine-{}", std::process::id()));
        let make = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let devices = root.join("sys/class/net");
        make("sys/class/net/lo/type", "772\n");
        make("sys/class/net/br0/type", "1\n");
        assert!(cards(&devices).found.contains("no network card"));
        for (card, found) in [("enp1s0", "enp1s0 alone"), ("enp2s0", "enp1s0, enp2s0")] {
            make(&format!("sys/class/net/{card}/type"), "1\n");
            make(&format!("sys/class/net/{card}/device/vendor"), "");
            assert!(cards(&devices).found.contains(found), "{:?}", cards(&devices));
        }
        assert_eq!(transports(&root).verdict, Verdict::Bad);
        make("dev/vsock", "");
        assert_eq!(transports(&root).verdict, Verdict::Bad, "a module alone is no device");
        make("sys/bus/virtio/devices/virtio3/device", "0x0013\n");
        assert_eq!(transports(&root).found, "vsock");
        make("sys/class/virtio-ports/vport1p1/name", "org.qemu.guest_agent.0\n");
        assert_eq!(transports(&root).found, "vsock");
        make("sys/class/virtio-ports/vport1p2/name", "org.lsm.guest.0\n");
        assert!(transports(&root).found.ends_with("org.lsm.guest.0"));
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_clock_that_was_never_set_is_seen() {
        assert_eq!(clock(1_000, "tsc").verdict, Verdict::Bad);
        assert_ne!(clock(PLAUSIBLE, "kvm-clock").verdict, Verdict::Bad);
    }
}
