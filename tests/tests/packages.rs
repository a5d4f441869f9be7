//! The packages as an operator meets them: built, clean, installed into a Debian, upgraded, removed without a trace.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use lsm_tests::{
    needs,
    shell::{program, run},
};

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The disk of Debian 12 that `tests/install --tests` builds.
fn debian() -> Option<PathBuf> {
    let disks = fs::read_dir(sources().join("tests/cache/distribution")).into_iter().flatten().flatten();
    disks.map(|entry| entry.path()).find(|path| path.extension().is_some_and(|end| end == "ext4"))
}

fn lacking(programs: &[&str]) -> bool {
    let installed =
        |name: &&str| ["/usr/bin", "/usr/sbin", "/sbin"].iter().any(|bin| Path::new(bin).join(name).exists());
    let missing = programs.iter().find(|name| !installed(name));
    let missing =
        missing.map(|name| format!("no {name}")).or_else(|| debian().is_none().then(|| "no Debian".to_owned()));
    needs::lacking(missing.map(|what| format!("{what}; run tests/install --tests")))
}

/// Built as they are shipped but for the optimizer, so that the programs of the other tests are used.
fn packages(which: &[&str]) -> PathBuf {
    let output = std::env::temp_dir().join(format!("lsm-packages-{}", std::process::id()));
    let mut build = Command::new(sources().join("packaging/build"));
    // Compiled for its own tests, where the whole workspace is tested.
    if let Ok(manual) = program("lsm-manual") {
        build.arg("--manual").arg(manual);
    }
    run(build.args(["--profile", "lab", "--output"]).arg(&output).args(which)).unwrap();
    output
}

fn in_debian(packages: &Path, script: &str) {
    let place = sources().join("tests/tests/packages");
    let mut command = Command::new(place.join("in-debian.sh"));
    let said = run(command.arg(debian().unwrap()).arg(packages).arg(place.join(script)));
    eprintln!("-- {script}: {}", said.as_ref().map_or_else(ToString::to_string, Clone::clone));
    said.unwrap();
}

#[test]
fn packages_are_clean_and_leave_nothing_behind() {
    if lacking(&["dpkg-deb", "rpmbuild", "lintian", "rpmlint"]) {
        return;
    }
    let packages = packages(&[]);
    let files = |end: &str| {
        let all = fs::read_dir(&packages).unwrap().flatten().map(|entry| entry.path());
        let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|is| is == end)).collect();
        found.sort();
        assert_eq!(found.len(), 2, "{end}: {found:?}");
        found
    };
    // Both name each exception and its reason: packaging/deb/*/lintian-overrides, packaging/rpm/rpmlint.toml.
    run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).args(files("deb"))).unwrap();
    let exceptions = sources().join("packaging/rpm/rpmlint.toml");
    run(Command::new("rpmlint").arg("--config").arg(exceptions).args(files("rpm"))).unwrap();
    for script in ["guest-deb.sh", "hook-deb.sh", "rpms.sh"] {
        in_debian(&packages, script);
    }
    fs::remove_dir_all(&packages).unwrap();
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

/// From Debian's root filesystem to an image that the agent's own look says is right.
#[test]
fn the_debootstrap_recipe_makes_an_image() {
    if lacking(&["dpkg-deb", "mke2fs"]) {
        return;
    }
    let output = packages(&["--format", "deb", "lsm-guest"]);
    let image = output.join("image.ext4");
    let script = "mkdir \"$2/base\" && mount -o loop,ro \"$1\" \"$2/base\" && \"$0\" --base \"$2/base\" --kernel none \"$3\" \"$2\"/lsm-guest_*.deb";
    let mut recipe = Command::new("unshare");
    recipe.args(["--mount", "--propagation", "private", "bash", "-c", script]);
    recipe.arg(sources().join("packaging/images/debootstrap/build")).arg(debian().unwrap()).arg(&output).arg(&image);
    let said = run(&mut recipe).unwrap();
    assert!(said.contains("lsm-guest.service is enabled") && !said.contains("BAD"), "{said}");
    let inside = run(Command::new("debugfs").args(["-R", "stat /usr/sbin/lsm-guest"]).arg(&image)).unwrap();
    assert!(inside.contains("Type: regular") && inside.contains("Mode:  0755"), "{inside}");
    fs::remove_dir_all(&output).unwrap();
}

/// What no test runs is read at least.
#[test]
fn the_recipes_scripts_have_no_slips() {
    let images = sources().join("packaging/images");
    for script in ["provision", "debootstrap/build", "virt-customize/build", "mkosi/mkosi.finalize.chroot"] {
        run(Command::new("bash").arg("-n").arg(images.join(script))).unwrap();
    }
}
