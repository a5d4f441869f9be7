//! VMs' images as the recipes of packaging/images make them: right by the agent's own look, booted, and moved.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use lsm_tests::{
    connections::move_with_connections,
    distribution, needs,
    packages::{Packages, sources},
    shell::{Result, chain, run},
    stage::{Stage, StageOptions, lacking},
};

fn lacking_tools() -> bool {
    let tools = needs::missing(&["/usr/bin/dpkg-deb", "/sbin/mke2fs"], "run tests/install --tests");
    lacking() || needs::lacking(tools.or_else(|| distribution::disk().err().map(|error| error.to_string())))
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

/// As it was built: agent, units, bus policy and network are the image's.
fn moves(stage: &Stage) -> Result<()> {
    let check = stage.guest.must("lsm-guest check")?;
    eprintln!("{check}");
    move_with_connections(stage, "dallas")?;
    stage.guest.must("systemctl is-active lsm-guest && lsm-guest check").map(drop)
}

#[test]
fn debootstrap_s_image_boots_and_moves() {
    if lacking_tools() {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    let disk = Some(debootstrap(&packages));
    let options = StageOptions { disk, memory_mib: 512, policy: POLICY.into(), ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    if let Err(error) = moves(&stage) {
        let ask = "journalctl --no-pager -o short-monotonic | tail -100; ip addr; ip rule; lsm-guest check";
        let guest = stage.guest.exec(ask).map(|outcome| outcome.stdout).unwrap_or_default();
        let logs = ["montreal", "dallas"].map(|site| stage.log(site)).join("\n----\n");
        panic!("{}\n{logs}\n----\n{guest}", chain(&error));
    }
}

const POLICY: &str = "unprepared = \"refuse\"\nprepare_wait_ms = 20000";

/// What no test runs is read at least.
#[test]
fn the_recipes_scripts_have_no_slips() {
    let images: &Path = &sources().join("packaging/images");
    for script in ["provision", "debootstrap/build", "virt-customize/build", "mkosi/mkosi.finalize.chroot"] {
        run(Command::new("bash").arg("-n").arg(images.join(script))).unwrap();
    }
}
