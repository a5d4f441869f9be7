//! What the agent needs of a kernel beyond Multipath TCP itself: built in, or as modules that can be loaded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use lsm_protocol::finding::Finding;

/// Counting connections; one of the two ways to the host; the network cards.
const NEEDED: [(&str, &str); 5] = [
    ("mptcp_diag", "connections cannot be counted"),
    ("tcp_diag", "connections cannot be counted"),
    ("inet_diag", "connections cannot be counted"),
    ("virtio_net", "no virtio network card"),
    ("virtio_console", "no channel org.lsm.guest.0 to the host"),
];
/// The other way; a kernel without it has the channel.
const VSOCK: &str = "vmw_vsock_virtio_transport";

/// The kernels below `root`, by release, with where their modules are.
pub(super) fn kernels(root: &Path) -> Vec<(String, PathBuf)> {
    let mut kernels: Vec<(String, PathBuf)> = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .flat_map(|directory| fs::read_dir(root.join(directory)).into_iter().flatten().flatten())
        .filter(|entry| entry.path().join("kernel").is_dir() || entry.path().join("modules.builtin").is_file())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect();
    kernels.sort();
    // On most systems /lib is a link to /usr/lib.
    kernels.dedup_by(|a, b| a.0 == b.0);
    kernels
}

/// One kernel's modules.
pub(super) fn modules(release: &str, directory: &Path) -> Finding {
    let what = "modules";
    let mut there = built_in(directory);
    gather(&directory.join("kernel"), &mut there);
    let has = |module: &str| there.iter().any(|name| name == module);
    let missing: Vec<_> = NEEDED.iter().filter(|(module, _)| !has(module)).collect();
    if let Some((_, without)) = missing.first() {
        let names = missing.iter().map(|(module, _)| *module).collect::<Vec<_>>().join(", ");
        // Ubuntu's name, and Fedora's.
        let fix = format!("apt install linux-modules-extra-{release} || dnf install kernel-modules-{release}");
        return Finding::bad(what, format!("Linux {release} lacks {names}: {without}"), fix);
    }
    let vsock = if has(VSOCK) { ", vsock" } else { ", no vsock: the host needs the channel org.lsm.guest.0" };
    Finding::good(what, format!("Linux {release} has what the agent loads{vsock}"))
}

/// `kernel/net/ipv4/tcp_diag.ko`, a line for each.
fn built_in(directory: &Path) -> Vec<String> {
    let list = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
    list.lines().filter_map(|line| name(line.rsplit('/').next()?)).collect()
}

fn gather(directory: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => gather(&entry.path(), into),
            _ => into.extend(name(&entry.file_name().to_string_lossy())),
        }
    }
}

/// `tcp-diag.ko.xz` is the module tcp_diag.
fn name(file: &str) -> Option<String> {
    file.split_once(".ko").map(|(name, _)| name.replace('-', "_"))
}
