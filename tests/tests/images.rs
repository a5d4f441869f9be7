//! VMs' images as the recipes of packaging/images make them: right by the agent's own look, booted, and moved.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lsm_tests::{
    connections::{Connections, move_with_connections},
    distribution, needs,
    packages::{Packages, sources},
    shell::{Result, chain, run},
    stage::{Stage, StageOptions, lacking},
};

fn lacking_tools() -> bool {
    let tools = needs::missing(&["/usr/bin/dpkg-deb", "/sbin/mke2fs", "/sbin/debugfs"], "run tests/install --tests");
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
    // The root filesystem has cloud-init, and the recipe its opt-out.
    assert!(said.contains("configures the network at an instance's first boot, and not again"), "{said}");
    image
}

/// As it was built: agent, units, bus policy and network are the image's.
fn moves(stage: &Stage) -> Result<()> {
    let check = stage.guest.must("lsm-guest check")?;
    eprintln!("{check}");
    stage.guest.must(CONFINED)?;
    stage.guest.must("chrt --pid $(systemctl show -P MainPID lsm-guest) | grep SCHED_RR")?;
    let mut connections = Connections::open(stage, 0)?;
    let mut migration = stage.begin("dallas", &["--bandwidth", "1"])?;
    stage.agent_is(&["prepared"], LIMIT)?;
    upgrade(stage)?;
    assert!(migration.goes_on(), "the copy was over before the new agent ran");
    stage.site("montreal").virsh(&["migrate-setspeed", "vm", "1000"])?;
    migration.end(LIMIT)?;
    connections.alive()?;
    stage.agent_is(&["idle"], LIMIT)?;
    stage.settled(LIMIT)?;
    connections.end()?;
    // Back, with the new agent from beginning to end.
    move_with_connections(stage, "montreal")?;
    stage.guest.must("systemctl is-active lsm-guest && lsm-guest check")?;
    let denied = stage.guest.must("journalctl --no-pager -k | grep apparmor=.DENIED || true")?;
    assert_eq!(denied, "", "what the package's AppArmor profile kept the agent from");
    stage.guest.must(CONFINED).map(drop)
}

/// With another agent in the middle of a move, which goes on from where the first one was.
fn upgrade(stage: &Stage) -> Result<()> {
    let running = || stage.guest.must("systemctl show -P MainPID lsm-guest");
    let first = running()?;
    // Under emulation, beside a copy of the memory, it takes its time.
    let said = stage.guest.exec_within(&format!("dpkg --install {NEXT} 2>&1"), 3 * LIMIT)?;
    assert_eq!(said.status, 0, "{}", said.stdout);
    assert_ne!(running()?, first, "the agent runs on: {}", said.stdout);
    // Where it meets its host's line just as that is closed, it takes that for the arrival, and then for an early flip.
    stage.agent_is(&["prepared", "switched"], LIMIT).map(drop)
}

/// Puts the package's next version into the image.
fn put_next(packages: &Packages, image: &Path) {
    let script = "dpkg-deb --raw-extract lsm-guest_*.deb next && sed -i 's/^Version: .*/&+next/' next/DEBIAN/control && \
                  dpkg-deb --root-owner-group -Znone --build next next.deb && \
                  debugfs -w -R \"write next.deb $1\" \"$0\"";
    let mut put = Command::new("sh");
    put.current_dir(packages.directory()).args(["-euc", script]).arg(image).arg(NEXT);
    run(&mut put).unwrap();
}

/// Where it is, in the VM.
const NEXT: &str = "/next.deb";
/// The agent runs under the profile that came with its package.
const CONFINED: &str = "grep -qx 'lsm-guest (enforce)' /proc/$(systemctl show -P MainPID lsm-guest)/attr/current";
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn debootstrap_s_image_boots_moves_and_is_upgraded_meanwhile() {
    if lacking_tools() {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    let disk = debootstrap(&packages);
    put_next(&packages, &disk);
    let disk = Some(disk);
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
