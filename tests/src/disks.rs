//! A VM's disk that its hosts do not share: a qcow2 file of each host's own, by itself or above a base that all have.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    shell::{During as _, Result, run},
    site::Site,
    stage::StageOptions,
};

/// On each host.
const DIRECTORY: &str = "/var/lib/libvirt/images";
const DISK: &str = "disk.qcow2";
const BASE: &str = "base.qcow2";
/// In the VM.
pub const DEVICE: &str = "/dev/vda";

/// With a disk in the VM.
#[must_use]
pub fn with_disk(stage: StageOptions) -> StageOptions {
    let devices = format!(
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{DIRECTORY}/{DISK}'/>\
         <target dev='vda' bus='virtio'/></disk>"
    );
    StageOptions { modules: vec!["virtio_blk".into()], devices, ..stage }
}

/// Bytes that do not compress, the same for the same length.
#[must_use]
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(length).collect()
}

/// Lays the base down on a host. Its overlays have its size.
///
/// # Errors
/// `qemu-img` failed.
pub fn lay_base(site: &Site, contents: &[u8]) -> Result<()> {
    let directory = site.inside(DIRECTORY);
    fs::create_dir_all(&directory).during(|| format!("make {}", directory.display()))?;
    let raw = directory.join("raw");
    fs::write(&raw, contents).during(|| format!("write {}", raw.display()))?;
    image(site, &["convert", "-O", "qcow2", "raw", BASE])?;
    fs::remove_file(&raw).during(|| format!("remove {}", raw.display()))
}

/// Puts an empty overlay over the base in the disk's place.
///
/// # Errors
/// `qemu-img` failed.
pub fn lay_overlay(site: &Site) -> Result<()> {
    let _ = fs::remove_file(file(site));
    image(site, &["create", "-f", "qcow2", "-b", BASE, "-F", "qcow2", DISK])
}

/// Puts an empty file of so many bytes in the disk's place.
///
/// # Errors
/// `qemu-img` failed.
pub fn lay_whole(site: &Site, length: usize) -> Result<()> {
    let _ = fs::remove_file(file(site));
    image(site, &["create", "-f", "qcow2", DISK, &length.to_string()])
}

/// Gives the host's directory for disks so few bytes of room, with nothing in it. Undone by [`give_room`].
///
/// # Errors
/// `mount` failed.
pub fn take_room(site: &Site, bytes: usize) -> Result<()> {
    let size = format!("size={bytes}");
    run(site.command("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs", DIRECTORY])).map(drop)
}

/// See [`take_room`].
///
/// # Errors
/// `umount` failed.
pub fn give_room(site: &Site) -> Result<()> {
    run(site.command("umount").arg(DIRECTORY)).map(drop)
}

/// What the disk there holds, from outside of the VM.
///
/// # Errors
/// `qemu-img` failed.
pub fn contents(site: &Site) -> Result<Vec<u8>> {
    let raw = site.inside(DIRECTORY).join("raw");
    // The VM has it open.
    image(site, &["convert", "--force-share", "-O", "raw", DISK, "raw"])?;
    let contents = fs::read(&raw).during(|| format!("read {}", raw.display()))?;
    fs::remove_file(&raw).during(|| format!("remove {}", raw.display()))?;
    Ok(contents)
}

/// As `md5sum` in the VM has it.
///
/// # Errors
/// `md5sum` failed here.
pub fn checksum(contents: &[u8], scratch: &Path) -> Result<String> {
    let file = scratch.join("expected");
    fs::write(&file, contents).during(|| format!("write {}", file.display()))?;
    let sum = run(Command::new("md5sum").arg(&file))?;
    fs::remove_file(&file).during(|| format!("remove {}", file.display()))?;
    Ok(sum.split_whitespace().next().unwrap_or_default().to_owned())
}

fn file(site: &Site) -> PathBuf {
    site.inside(DIRECTORY).join(DISK)
}

fn image(site: &Site, arguments: &[&str]) -> Result<()> {
    let mut command = site.command("env");
    run(command.args(["--chdir", DIRECTORY, "qemu-img"]).args(arguments)).map(drop)
}
