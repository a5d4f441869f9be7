//! Whether KVM is there and really runs a kernel.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::{image::Image, shell::run};

/// Boots the image's kernel under KVM for at most 4 seconds and looks for its first line. Some machines offer a
/// `/dev/kvm` on which no ordinary guest starts. Asked once per boot of the machine.
#[must_use]
pub fn kvm_works(image: &Image) -> bool {
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("cache/kvm");
    let remembered = fs::read_to_string(&known).unwrap_or_default();
    if let Some(answer) = remembered.strip_prefix(boot.trim()) {
        return answer.trim() == "works";
    }
    let mut qemu = Command::new("timeout");
    qemu.args(["-s", "KILL", "4", "qemu-system-x86_64", "-machine", "q35,accel=kvm", "-cpu", "host", "-m", "128"]);
    qemu.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel"]).arg(&image.kernel);
    // Without a root it panics, and leaves because of panic=-1.
    qemu.args(["-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"]).stdin(Stdio::null());
    let said = match run(&mut qemu) {
        Ok(said) => said,
        Err(error) => error.to_string(),
    };
    let works = said.contains("Linux version") && said.contains("panic");
    let _ = fs::write(&known, format!("{} {}\n", boot.trim(), if works { "works" } else { "fails" }));
    works
}
