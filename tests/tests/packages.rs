//! The packages as an operator meets them: built, clean, installed into a Debian, upgraded, removed without a trace.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, path::Path, process::Command};

use lsm_tests::{
    distribution, needs,
    packages::{Packages, sources},
    pki::Authority,
    shell::run,
};

fn lacking(programs: &[&str]) -> bool {
    let installed =
        |name: &&str| ["/usr/bin", "/usr/sbin", "/sbin"].iter().any(|bin| Path::new(bin).join(name).exists());
    let missing = programs.iter().find(|name| !installed(name));
    let missing = missing
        .map(|name| format!("no {name}"))
        .or_else(|| distribution::disk().is_err().then(|| "no Debian".to_owned()));
    needs::lacking(missing.map(|what| format!("{what}; run tests/install --tests")))
}

fn in_debian(packages: &Packages, script: &str) {
    let place = sources().join("tests/tests/packages");
    let mut command = Command::new(place.join("in-debian.sh"));
    let said = run(command.arg(distribution::disk().unwrap()).arg(packages.directory()).arg(place.join(script)));
    eprintln!("-- {script}: {}", said.as_ref().map_or_else(ToString::to_string, Clone::clone));
    said.unwrap();
}

/// Both name each exception and its reason: packaging/deb/*/lintian-overrides, packaging/rpm/rpmlint.toml.
fn judge(packages: &Packages) {
    run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).args(packages.files("deb")))
        .unwrap();
    let exceptions = sources().join("packaging/rpm/rpmlint.toml");
    run(Command::new("rpmlint").arg("--config").arg(exceptions).args(packages.files("rpm"))).unwrap();
}

#[test]
fn packages_are_clean_and_leave_nothing_behind() {
    if lacking(&["dpkg-deb", "rpmbuild", "lintian", "rpmlint"]) {
        return;
    }
    let packages = Packages::build(&[]).unwrap();
    assert_eq!((packages.files("deb").len(), packages.files("rpm").len()), (2, 2));
    judge(&packages);
    for script in ["guest-deb.sh", "hook-deb.sh", "rpms.sh"] {
        in_debian(&packages, script);
    }
}

/// The same where systemd runs: what is upgraded goes on, and what is removed is gone.
#[test]
fn a_running_machine_upgrades_and_forgets() {
    if lacking(&["dpkg-deb", "systemd-nspawn"]) || needs::lacking(needs::missing_mptcp()) {
        return;
    }
    let packages = Packages::build(&["--format", "deb"]).unwrap();
    let pki = packages.directory().join("pki");
    fs::create_dir(&pki).unwrap();
    Authority::new("LSM packages").unwrap().equip(&pki, "here", [192, 0, 2, 1].into()).unwrap();
    let place = sources().join("tests/tests/packages");
    for script in ["guest-machine.sh", "hook-machine.sh"] {
        let mut machine = Command::new(place.join("on-a-machine.sh"));
        machine.arg(distribution::disk().unwrap()).arg(packages.directory()).arg(place.join(script)).arg(&pki);
        run(&mut machine).unwrap();
    }
}

/// What `packaging/build --arch aarch64` has made. Not expected where everything is: a compiler for another processor and a
/// second build of both programs are much for every run.
#[test]
fn programs_for_aarch64_run() {
    let made = sources().join("target/packages");
    let packages = Packages::at(&made, &["aarch64.rpm", "arm64.deb"]).unwrap();
    let emulator = Path::new("/usr/bin/qemu-aarch64-static");
    if packages.files("deb").len() != 2 || packages.files("rpm").len() != 2 || !emulator.exists() {
        let missing = "packages of both formats for aarch64, or qemu-user-static";
        eprintln!("skipped: no {missing}; run packaging/build --arch aarch64 --chroot");
        return;
    }
    if lacking(&["dpkg-deb", "lintian", "rpmlint"]) {
        return;
    }
    judge(&packages);
    fs::copy(emulator, packages.directory().join("aarch64")).unwrap();
    in_debian(&packages, "aarch64.sh");
}

#[test]
fn policies_compile() {
    if lacking(&["apparmor_parser", "checkmodule", "semodule_package"]) {
        return;
    }
    let packaging = sources().join("packaging");
    for profile in ["usr.sbin.lsm-guest", "usr.sbin.lsm-hook"] {
        let mut parser = Command::new("apparmor_parser");
        run(parser.args(["--skip-kernel-load", "--skip-cache"]).arg(packaging.join("apparmor").join(profile))).unwrap();
    }
    // The compiler wants the file to be called as the module.
    let place = std::env::temp_dir().join(format!("lsm-policies-{}", std::process::id()));
    fs::create_dir(&place).unwrap();
    let (module, package) = (place.join("lsm.mod"), place.join("lsm.pp"));
    let source = packaging.join("selinux/lsm.te");
    run(Command::new("checkmodule").args(["-M", "-m", "-o"]).arg(&module).arg(source)).unwrap();
    run(Command::new("semodule_package").arg("-o").arg(&package).arg("-m").arg(&module)).unwrap();
    assert!(package.exists());
    fs::remove_dir_all(place).unwrap();
}
