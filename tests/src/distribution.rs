//! Debian 12 as people run it: systemd, D-Bus, udev, and an owner for the network cards. A read-only disk, made by
//! `tests/install`; what the lab puts onto it comes with the initramfs, and what the VM writes stays in its memory.

pub mod cloud_init;

use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use nix::mount::{MsFlags, mount};

use crate::shell::{During as _, LabError, Result};

/// Who gives the VM's network cards their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Networkd,
    /// By profiles that cloud-init writes.
    NetworkManager,
}

/// On the kernel's command line: the VM is a whole distribution.
pub const WORD: &str = "lab.distribution";
/// Beside it: the VM is what its disk makes of it, and writes to that.
pub const AS_IT_IS: &str = "lab.as-it-is";
/// What the lab puts onto it, inside the initramfs.
pub(crate) const ONTO: &str = "/onto";
/// Modules of the kernel that it needs.
pub(crate) const MODULES: [&str; 3] = ["virtio_blk", "ext4", "overlay"];

/// Services that a test needs not wait for: under emulation each takes a good part of a second.
const MASKED: [&str; 30] = [
    "ModemManager.service",
    "NetworkManager-dispatcher.service",
    "NetworkManager-wait-online.service",
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "ldconfig.service",
    "modprobe@.service",
    "polkit.service", // root needs no leave
    "serial-getty@ttyS0.service",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hostnamed.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-machine-id-commit.service",
    "systemd-networkd-wait-online.service",
    "systemd-pcrphase-sysinit.service",
    "systemd-pcrphase.service",
    "systemd-random-seed.service",
    "systemd-sysusers.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-update-utmp.service",
    "systemd-user-sessions.service",
];

/// Debian's own AppArmor profiles, under which nothing runs here: an emulated CPU takes seconds to compile them.
const UNUSED_PROFILES: [&str; 3] = ["lsb_release", "nvidia_modprobe", "sbin.dhclient"];

/// networkd asks for an address on every card, as Debian's cloud images have it; the package's file keeps it off the second.
const NETWORKD: &str = "[Match]\nName=eth*\n\n[Network]\nDHCP=yes\nLinkLocalAddressing=ipv6\n";
const NETWORKD_SPARE: &str = include_str!("../../packaging/guest/networkd-spare.network");
const NETWORK_MANAGER_SPARE: &str = include_str!("../../packaging/guest/NetworkManager.conf");
/// The spare vNIC in those files as they are shipped, and in the lab.
const SPARE: [&str; 2] = ["52:54:00:aa:00:02", "52:54:00:aa:01:02"];

/// The disk.
///
/// # Errors
/// `tests/install --tests` has not run.
pub fn disk() -> Result<PathBuf> {
    newest("distribution")
}

/// That of a host, with libvirt and QEMU.
///
/// # Errors
/// As of [`disk`].
pub fn host_disk() -> Result<PathBuf> {
    newest("host")
}

fn newest(kind: &str) -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("cache").join(kind);
    let entries =
        fs::read_dir(&directory).during(|| format!("read {}; run tests/install --tests", directory.display()))?;
    let disks = entries.flatten().filter(|entry| entry.path().extension().is_some_and(|e| e == "ext4"));
    // Another checkout that shares the cache may have made another.
    let newest = disks.max_by_key(|entry| entry.metadata().and_then(|data| data.modified()).ok());
    newest
        .map(|entry| entry.path())
        .ok_or_else(|| LabError::Other(format!("no disk in {}; run tests/install --tests", directory.display())))
}

/// Files and links that make a VM of the lab of it. A link's contents are where it leads. `owner`: none where the disk was
/// made by somebody else, network and all.
pub(crate) fn onto(
    owner: Option<Owner>,
    services: &[(String, String)],
    units: &[(String, String)],
) -> Vec<(String, u32, Vec<u8>)> {
    let mut files: Vec<(String, u32, Vec<u8>)> = Vec::new();
    let mut file = |path: &str, permissions: u32, contents: &str| {
        files.push((format!("{ONTO}{path}"), permissions, contents.as_bytes().to_vec()));
    };
    for unit in MASKED {
        file(&format!("/etc/systemd/system/{unit}"), LINK, "/dev/null");
    }
    for profile in UNUSED_PROFILES {
        file(&format!("/etc/apparmor.d/disable/{profile}"), LINK, &format!("/etc/apparmor.d/{profile}"));
    }
    let mut wanted = vec!["lab-exec".to_owned()];
    match owner {
        Some(Owner::Networkd) => {
            wanted.push("systemd-networkd".into());
            file("/etc/systemd/system/NetworkManager.service", LINK, "/dev/null");
            file("/etc/systemd/network/50-cards.network", 0o644, NETWORKD);
            file("/etc/systemd/network/00-lsm-spare.network", 0o644, &NETWORKD_SPARE.replace(SPARE[0], SPARE[1]));
        }
        Some(Owner::NetworkManager) => {
            file("/etc/systemd/system/systemd-networkd.service", LINK, "/dev/null");
            file(&format!("/etc{}", cloud_init::GENERATOR), LINK, &format!("/lib{}", cloud_init::GENERATOR));
            for unit in cloud_init::MASKED {
                file(&format!("/etc/systemd/system/{unit}"), LINK, "/dev/null");
            }
            for (path, text) in cloud_init::FILES {
                file(path, 0o644, text);
            }
            let spare = NETWORK_MANAGER_SPARE.replace(SPARE[0], SPARE[1]);
            file("/etc/NetworkManager/conf.d/90-lsm.conf", 0o644, &spare);
        }
        // The recipe was given the lab's own root filesystem, which has both.
        None => file("/etc/systemd/system/NetworkManager.service", LINK, "/dev/null"),
    }
    let unit = |command: &str| {
        format!("[Unit]\nDefaultDependencies=no\n\n[Service]\nExecStart={command}\nStandardOutput=journal+console\n")
    };
    file("/etc/systemd/system/lab-exec.service", 0o644, &unit("/usr/lib/lab/init exec"));
    for (name, command) in services {
        wanted.push(name.clone());
        let log = format!("StandardOutput=append:/var/log/{name}.log\nStandardError=inherit\n");
        file(&format!("/etc/systemd/system/{name}.service"), 0o644, &format!("[Service]\nExecStart={command}\n{log}"));
    }
    for (name, text) in units {
        wanted.push(name.clone());
        file(&format!("/etc/systemd/system/{name}.service"), 0o644, text);
    }
    for name in wanted {
        let found = if name.starts_with("systemd-") { "/lib/systemd/system" } else { "/etc/systemd/system" };
        file(
            &format!("/etc/systemd/system/multi-user.target.wants/{name}.service"),
            LINK,
            &format!("{found}/{name}.service"),
        );
    }
    file("/etc/systemd/system/default.target", LINK, "/lib/systemd/system/multi-user.target");
    file("/etc/systemd/system.conf.d/lab.conf", 0o644, "[Manager]\nDefaultTimeoutStopSec=5s\nShowStatus=no\n");
    file("/etc/machine-id", 0o444, "0123456789abcdef0123456789abcdef\n");
    file("/etc/fstab", 0o644, "");
    files
}

/// In the list of files: a symbolic link.
pub(crate) const LINK: u32 = 0;

/// In the VM, as its first process: goes over to the distribution, for good. `as_it_is`: see [`AS_IT_IS`].
///
/// # Errors
/// The kernel's. Nothing else will do then.
pub fn enter(as_it_is: bool) -> io::Result<std::convert::Infallible> {
    let none = None::<&str>;
    fs::create_dir_all("/whole")?;
    if as_it_is {
        mount(Some("/dev/vda"), "/whole", Some("ext4"), MsFlags::MS_NOATIME, none)?;
    } else {
        lay_over()?;
    }
    for moved in ["/dev", "/proc", "/sys", "/run"] {
        mount(Some(moved), format!("/whole{moved}").as_str(), none, MsFlags::MS_MOVE, none)?;
    }
    std::env::set_current_dir("/whole")?;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none)?;
    nix::unistd::chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(nix::unistd::execv(c"/lib/systemd/systemd", &[CString::from(c"systemd")])?)
}

/// The disk as it was made, what the lab puts onto it, and memory for what is written.
fn lay_over() -> io::Result<()> {
    let none = None::<&str>;
    for directory in ["/disk", "/memory"] {
        fs::create_dir_all(directory)?;
    }
    mount(Some("/dev/vda"), "/disk", Some("ext4"), MsFlags::MS_RDONLY | MsFlags::MS_NOATIME, none)?;
    mount(Some("tmpfs"), "/memory", Some("tmpfs"), MsFlags::empty(), none)?;
    fs::create_dir("/memory/upper")?;
    fs::create_dir("/memory/work")?;
    let layers = Some("lowerdir=/disk,upperdir=/memory/upper,workdir=/memory/work");
    mount(Some("overlay"), "/whole", Some("overlay"), MsFlags::empty(), layers)?;
    copy(Path::new(ONTO), Path::new("/whole"))?;
    fs::create_dir_all("/whole/usr/lib/lab")?;
    fs::copy("/init", "/whole/usr/lib/lab/init").map(drop)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let (entry, kind) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        let to = to.join(entry.file_name().unwrap_or_default());
        if kind.is_dir() {
            fs::create_dir_all(&to)?;
            copy(&entry, &to)?;
        } else {
            let _ = fs::remove_file(&to); // a link of the distribution's is not to be followed
            if kind.is_symlink() {
                symlink(fs::read_link(&entry)?, &to)?;
            } else {
                fs::copy(&entry, &to)?;
                fs::set_permissions(&to, fs::Permissions::from_mode(entry.metadata()?.mode()))?;
            }
        }
    }
    Ok(())
}
