//! VMs' images as the recipes of packaging/images make them.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use lsm_tests::{
    distribution, needs,
    packages::{Packages, sources},
    shell::run,
};

fn lacking_tools() -> bool {
    let tools = needs::missing(&["/usr/bin/dpkg-deb", "/sbin/mke2fs"], "run tests/install --tests");
    needs::lacking(tools.or_else(|| distribution::disk().err().map(|error| error.to_string())))
}

/// The recipe's, from the lab's root filesystem instead of what debootstrap would fetch.
fn debootstrap(packages: &Packages) -> PathBuf {
    let image = packages.directory().join("image.ext4");
    let script = "mkdir \"$2/base\" && mount -o loop,ro \"$1\" \"$2/base\" && \"$0\" --base \"$2/base\" --kernel none \"$3\" \"$2\"/lsm-guest_*.deb";
    let mut recipe = Command::new("unshare");
    recipe.args(["--mount", "--propagation", "private", "bash", "-c", script]);
    recipe.arg(sources().join("packaging/images/debootstrap/build")).arg(distribution::disk().unwrap());
    let said = run(recipe.arg(packages.directory()).arg(&image)).unwrap();
    // "lsm-guest check --bake", in the chroot.
    assert!(said.contains("lsm-guest.service is enabled") && !said.contains("BAD"), "{said}");
    image
}

#[test]
fn the_debootstrap_recipe_makes_an_image() {
    if lacking_tools() {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    let image = debootstrap(&packages);
    let inside = run(Command::new("debugfs").args(["-R", "stat /usr/sbin/lsm-guest"]).arg(&image)).unwrap();
    assert!(inside.contains("Type: regular") && inside.contains("Mode:  0755"), "{inside}");
}

/// What no test runs is read at least.
#[test]
fn the_recipes_scripts_have_no_slips() {
    let images: &Path = &sources().join("packaging/images");
    for script in ["provision", "debootstrap/build", "virt-customize/build", "mkosi/mkosi.finalize.chroot"] {
        run(Command::new("bash").arg("-n").arg(images.join(script))).unwrap();
    }
}
