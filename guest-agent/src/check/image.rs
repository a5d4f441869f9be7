//! A VM's image before it has ever run: looked at from a builder's chroot, without the kernel that it will have.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use lsm_protocol::finding::Finding;

use super::{
    cloud_init::cloud_init,
    modules::{kernels, modules},
};
use crate::{config::Config, path::chain};

/// The system below `root`.
#[must_use]
pub fn image(root: &Path) -> Vec<Finding> {
    let mut findings = vec![program(root)];
    findings.extend(started(root));
    let file = root.join("etc/lsm/guest.toml");
    findings.push(match Config::load(&file) {
        Ok(_) if file.exists() => Finding::good("configuration", "etc/lsm/guest.toml is in order"),
        Ok(_) => Finding::good("configuration", "none: everything has its default"),
        Err(error) => Finding::bad("configuration", chain(&error), format!("editor {}", file.display())),
    });
    findings.extend(cloud_init(root, &[]));
    let kernels = kernels(root);
    if kernels.is_empty() {
        let found = "no kernel in the image: whoever gives it one must see that it has Multipath TCP";
        findings.push(Finding::warning(
            "kernel",
            found,
            "apt-get install linux-image-cloud-amd64  # or dnf install kernel-core",
        ));
    }
    for (release, directory) in kernels {
        findings.push(kernel(root, &release, &directory));
        findings.push(modules(&release, &directory));
    }
    findings
}

fn program(root: &Path) -> Finding {
    let path = root.join("usr/sbin/lsm-guest");
    match fs::metadata(&path) {
        Ok(file) if file.permissions().mode() & 0o111 != 0 => Finding::good("program", "/usr/sbin/lsm-guest"),
        Ok(_) => Finding::bad("program", "/usr/sbin/lsm-guest cannot be run", format!("chmod 755 {}", path.display())),
        Err(_) => Finding::bad(
            "program",
            "there is no /usr/sbin/lsm-guest",
            "apt-get install ./lsm-guest_*.deb  # or dnf install",
        ),
    }
}

/// Whether the agent is started at boot.
fn started(root: &Path) -> Vec<Finding> {
    let what = "at boot";
    let system = ["usr/lib/systemd", "lib/systemd"].into_iter().any(|place| root.join(place).join("systemd").exists());
    if !system {
        let found =
            "no systemd in the image: something else must run \"lsm-guest run\" at boot, and again when it ends";
        return vec![Finding::warning(what, found, "printf '::respawn:/usr/sbin/lsm-guest run\\n' >>etc/inittab")];
    }
    let units = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
    let unit = |name: &str| units.into_iter().map(|place| root.join(place).join(name)).find(|path| path.exists());
    if unit("lsm-guest.service").is_none() {
        return vec![Finding::bad(
            what,
            "there is no lsm-guest.service",
            "apt-get install ./lsm-guest_*.deb  # or dnf install",
        )];
    }
    let wanted = |by: &str, name: &str| root.join("etc/systemd/system").join(by).join(name).symlink_metadata().is_ok();
    let mut findings = vec![if wanted("multi-user.target.wants", "lsm-guest.service") {
        Finding::good(what, "lsm-guest.service is enabled")
    } else {
        Finding::bad(what, "lsm-guest.service is not enabled", "systemctl enable lsm-guest  # works in a chroot")
    }];
    let masked = |name: &str| {
        fs::read_link(root.join("etc/systemd/system").join(name)).is_ok_and(|to| to == Path::new("/dev/null"))
    };
    if masked("lsm-guest.service") {
        findings = vec![Finding::bad(what, "lsm-guest.service is masked", "systemctl unmask lsm-guest")];
    }
    findings
}

/// By the configuration that the kernel was built with, where it is there.
fn kernel(root: &Path, release: &str, modules: &Path) -> Finding {
    let what = "kernel";
    let places = [root.join(format!("boot/config-{release}")), modules.join("config")];
    let Some(config) = places.into_iter().find_map(|place: PathBuf| fs::read_to_string(place).ok()) else {
        let fix = "lsm-guest check  # in the VM, once it runs";
        return Finding::warning(
            what,
            format!("whether Linux {release} has Multipath TCP is not to be seen here"),
            fix,
        );
    };
    if config.lines().any(|line| line == "CONFIG_MPTCP=y") {
        Finding::good(what, format!("Linux {release} has Multipath TCP"))
    } else {
        let fix = "apt-get install linux-image-cloud-amd64  # or another kernel built with CONFIG_MPTCP; 6.1 and later are tested";
        Finding::bad(what, format!("Linux {release} has no Multipath TCP"), fix)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use lsm_protocol::finding::Verdict;

    use super::*;

    #[test]
    fn each_thing_that_an_image_lacks_is_named_until_it_is_right() {
        let root = std::env::temp_dir().join(format!("lsm-image-{}", std::process::id()));
        let make = |path: &str, text: &str| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let bad = || {
            let findings = image(&root).into_iter().filter(|finding| finding.verdict == Verdict::Bad);
            findings.map(|finding| finding.found).collect::<Vec<_>>().join("; ")
        };
        make("usr/lib/systemd/systemd", "");
        assert_eq!(bad(), "there is no /usr/sbin/lsm-guest; there is no lsm-guest.service");
        let program = make("usr/sbin/lsm-guest", "");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
        make("usr/lib/systemd/system/lsm-guest.service", "");
        assert_eq!(bad(), "/usr/sbin/lsm-guest cannot be run; lsm-guest.service is not enabled");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        make("etc/systemd/system/multi-user.target.wants/other", "");
        symlink("/nowhere", root.join("etc/systemd/system/multi-user.target.wants/lsm-guest.service")).unwrap();
        assert_eq!(bad(), "");
        make("etc/lsm/guest.toml", "[mptcp]\nforced = 1\n");
        assert!(bad().contains("unknown field `forced`"));
        make("etc/lsm/guest.toml", "");

        make("lib/modules/6.1/modules.builtin", "kernel/net/ipv4/tcp_diag.ko\nkernel/net/ipv4/inet_diag.ko\n");
        make("boot/config-6.1", "# CONFIG_MPTCP is not set\n");
        assert!(
            bad().contains("Linux 6.1 has no Multipath TCP; Linux 6.1 lacks mptcp_diag, virtio_net, virtio_console"),
            "{}",
            bad()
        );
        make("boot/config-6.1", "CONFIG_MPTCP=y\n");
        for module in ["net/mptcp/mptcp_diag.ko.xz", "drivers/net/virtio_net.ko", "drivers/char/virtio-console.ko.zst"]
        {
            make(&format!("lib/modules/6.1/kernel/{module}"), "");
        }
        assert_eq!(bad(), "");
        symlink("/dev/null", root.join("etc/systemd/system/lsm-guest.service")).unwrap();
        assert_eq!(bad(), "lsm-guest.service is masked");
        fs::remove_dir_all(&root).unwrap();
    }
}
