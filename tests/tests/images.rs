//! VMs' images as the recipes of packaging/images make them: right by the agent's own look, booted, and moved.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use lsm_tests::{
    connections::{Connections, move_with_connections},
    distribution,
    image::ImageBuilder,
    needs,
    packages::{Packages, sources},
    shell::{Result, chain, run},
    stage::{Stage, StageOptions, lacking},
};

fn lacking_tools(more: &[&str]) -> bool {
    let tools = [&["/usr/bin/dpkg-deb", "/sbin/mke2fs", "/sbin/debugfs"], more].concat();
    let tools = needs::missing(&tools, "run tests/install --tests");
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

/// The lab's root filesystem with networkd, and what these commands of debugfs put into it.
fn disk_with(packages: &Packages, commands: &str) -> PathBuf {
    let image = packages.directory().join("image.ext4");
    run(Command::new("cp").arg("--sparse=always").arg(distribution::disk().unwrap()).arg(image)).unwrap();
    put(packages, &format!("{NETWORKD}{commands}"))
}

/// Into the image, by these commands of debugfs.
fn put(packages: &Packages, commands: &str) -> PathBuf {
    fs::write(packages.directory().join("debugfs"), commands).unwrap();
    // debugfs succeeds whatever becomes of its commands, and repeats each; what else it says in letters is an error.
    let script = "debugfs -w -f debugfs image.ext4 >said 2>&1 && ! grep -v -e '^debugfs' -e '^Allocated inode: ' -e '^$' said >&2";
    run(Command::new("sh").current_dir(packages.directory()).args(["-euc", script])).unwrap();
    packages.directory().join("image.ext4")
}

/// What [`SEED`] puts there.
fn write_seed(packages: &Packages, user_data: &str) {
    let write = |name: &str, text: &str| fs::write(packages.directory().join(name), text).unwrap();
    write("user-data", user_data);
    write("meta-data", "instance-id: lab\n");
    write("network-config", "version: 2\nethernets:\n  eth0: {dhcp4: true}\n");
}

/// A disk with cloud-init, which hears at its first boot what the recipe says.
fn cloud_init(packages: &Packages) -> PathBuf {
    let recipe = fs::read_to_string(sources().join("packaging/images/cloud-init/user-data")).unwrap();
    write_seed(packages, &recipe.replace("PACKAGE_URL", "file:///lsm-guest.deb"));
    fs::write(packages.directory().join("lab.cfg"), CLOUD_CFG).unwrap();
    let package = packages.files("deb").remove(0);
    disk_with(packages, &format!("{CLOUD_INIT}{SEED}write {} /lsm-guest.deb\n", package.display()))
}

/// With its connections, the agent being there by the recipe alone.
fn moves_there(stage: &Stage) -> Result<()> {
    eprintln!("{}", stage.guest.must("lsm-guest check")?);
    move_with_connections(stage, "dallas")
}

/// cloud-init has come to its end, without an error.
fn cloud_init_ends(stage: &Stage) -> Result<()> {
    let ended = "until test -e /run/cloud-init/result.json; do sleep 1; done; cat /run/cloud-init/result.json";
    let result = stage.guest.exec_within(ended, LIMIT)?.stdout;
    assert!(result.contains("\"errors\": []"), "{result}");
    Ok(())
}

/// When cloud-init leaves the spare alone from now on.
fn moves_with_cloud_init(stage: &Stage) -> Result<()> {
    cloud_init_ends(stage)?;
    stage.guest.must("lsm-guest check | grep -E '^good +cloud-init +configures no network$'")?;
    moves_there(stage)
}

/// The recipe's, made a disk of: what else would boot it is its boot loader, not the lab.
fn mkosi(packages: &Packages) -> PathBuf {
    let (sources, mut recipe) = (sources().canonicalize().unwrap(), Command::new("sh"));
    recipe.current_dir(packages.directory()).args(["-euc", MKOSI]).arg(sources.join("packaging/images/mkosi"));
    let said = run(recipe.arg(sources.join("tests/cache"))).unwrap();
    // "lsm-guest check --bake", by the recipe's own script.
    assert!(said.contains("lsm-guest.service is enabled") && !said.contains("BAD"), "{said}");
    packages.directory().join("image.ext4")
}

/// The recipe's, from the lab's root filesystem with a network instead of a cloud's image.
fn virt_customize(packages: &Packages) -> PathBuf {
    fs::write(packages.directory().join("first.network"), FIRST_CARD).unwrap();
    let image = disk_with(packages, "write first.network /etc/systemd/network/50-first.network\n");
    let (sources, mut recipe) = (sources().canonicalize().unwrap(), Command::new("unshare"));
    recipe.current_dir(packages.directory()).args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-euc",
        VIRT_CUSTOMIZE,
    ]);
    recipe.arg(sources.join("packaging/images/virt-customize/build")).arg(sources.join("tests/cache/kernels"));
    let said = run(recipe.arg(&image)).unwrap();
    assert!(said.ends_with("machine-id:\n"), "the VMs made of it would have one machine ID: {said}");
    image
}

/// The recipe's, from the lab's root filesystem with cloud-init and a server for SSH instead of a cloud's image. It has no
/// boot loader: Packer's QEMU is told of a kernel.
fn packer(packages: &Packages) -> PathBuf {
    let directory = packages.directory();
    fs::write(directory.join("lab.cfg"), PACKER_CLOUD_CFG).unwrap();
    let base = disk_with(packages, &format!("{CLOUD_INIT}{SSH}"));
    // Of the CD drive, and what is on the CD.
    let boot = ImageBuilder::new("6.12").disk(&base).module("ata_piix").module("sr_mod").module("isofs");
    let boot = boot.build().unwrap();
    let words = format!(
        "console=ttyS0 net.ifnames=0 mitigations=off lsm=none {} {}",
        distribution::WORD,
        distribution::AS_IT_IS
    );
    let variables = serde_json::json!({
        "package": packages.files("deb")[0],
        "image": base,
        "checksum": "none",
        "output": directory.join("output"),
        "accelerator": "tcg",
        "qemuargs": [
            ["-cpu", "max"],
            ["-kernel", boot.kernel],
            ["-initrd", boot.initramfs],
            ["-append", words],
            ["-serial", format!("file:{}", directory.join("console").display())],
        ],
    });
    fs::write(directory.join("lab.pkrvars.json"), variables.to_string()).unwrap();
    let mut recipe = Command::new("unshare");
    recipe.current_dir(directory).args(["--net", "sh", "-euc", PACKER]).arg(sources().join("packaging/images/packer"));
    let said = run(&mut recipe).unwrap();
    // "lsm-guest check --bake", in the VM.
    assert!(said.contains("lsm-guest.service is enabled") && !said.contains("BAD"), "{said}");
    assert!(said.contains("configures the network at an instance's first boot, and not again"), "{said}");
    assert!(said.ends_with("machine-id:\n"), "the VMs made of it would have one machine ID: {said}");
    // Which a cloud would give it.
    write_seed(packages, "");
    put(packages, SEED)
}

/// As any cloud's VM at its first boot, and without the user that Packer came in as.
fn moves_as_new(stage: &Stage) -> Result<()> {
    cloud_init_ends(stage)?;
    stage.guest.must("id debian && test -e /etc/ssh/ssh_host_ed25519_key")?;
    let left =
        stage.guest.must("grep -rs packer /etc/passwd /etc/shadow /etc/group /etc/sudoers.d /etc/ssh; ls /home")?;
    assert_eq!(left, "debian\n", "what is left of Packer");
    moves_there(stage)
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

/// Of cloud-init's modules those that the recipe has work for: under emulation each takes its time.
const CLOUD_CFG: &str = "datasource_list: [NoCloud]
system_info: {network: {renderers: [networkd]}}
cloud_init_modules: [bootcmd]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
";

/// And for Packer those that make its user, the host's keys and passwords.
const PACKER_CLOUD_CFG: &str = "datasource_list: [NoCloud]
system_info: {network: {renderers: [networkd]}}
cloud_init_modules: [users-groups, ssh]
cloud_config_modules: [set-passwords]
cloud_final_modules: []
";

const NETWORKD: &str = "symlink /etc/systemd/system/multi-user.target.wants/systemd-networkd.service /lib/systemd/system/systemd-networkd.service\n";

const FIRST_CARD: &str = "[Match]\nName=eth0\n\n[Network]\nDHCP=yes\n";

/// cloud-init runs.
const CLOUD_INIT: &str = "mkdir /var/lib/cloud
mkdir /var/lib/cloud/seed
write lab.cfg /etc/cloud/cloud.cfg.d/10-lab.cfg
rm /etc/systemd/system-generators/cloud-init-generator
";

/// Where its data source is.
const SEED: &str = "mkdir /var/lib/cloud/seed/nocloud
write user-data /var/lib/cloud/seed/nocloud/user-data
write meta-data /var/lib/cloud/seed/nocloud/meta-data
write network-config /var/lib/cloud/seed/nocloud/network-config
";

/// A server for SSH as Debian's images have it, and one owner of the network cards.
const SSH: &str = "symlink /etc/systemd/system/sshd.service /lib/systemd/system/ssh.service
symlink /etc/systemd/system/multi-user.target.wants/ssh.service /lib/systemd/system/ssh.service
symlink /etc/systemd/system/NetworkManager.service /dev/null
";

const MKOSI_ITSELF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cache/tools/mkosi");

/// The recipe in $0, a package, the machine's Debian mirrors and what was fetched from them before, in the cache $1. For a
/// directory without a boot loader nobody needs an initramfs of its own either.
const MKOSI: &str = r#"
cp -r "$0" recipe
mkdir recipe/mkosi.packages
cp lsm-guest_*.deb recipe/mkosi.packages/
mkdir -p apt/etc/apt/sources.list.d apt/etc/apt/apt.conf.d "$1/packages"
: >apt/etc/apt/sources.list.d/mkosi.sources
grep -v backports "$1/apt/sources.list" >apt/etc/apt/sources.list.d/lab.list
echo 'Acquire::Languages "none";' >apt/etc/apt/apt.conf.d/lab
cd recipe
PYTHONPATH=$1/tools/mkosi/usr/lib/python3/dist-packages python3 -m mkosi --format=directory --bootable=no --environment=INITRD=No \
    --package-manager-tree=../apt:/ --package-cache-dir="$1/packages" --workspace-dir=.. --output-dir=.. build 2>&1
cd ..
mke2fs -q -t ext4 -d lsm-vm image.ext4 $(($(du -s -BM lsm-vm | cut -f1 | tr -d M) * 13 / 10 + 64))M
"#;

/// The recipe in $0, on the disk $2. libguestfs's own VM has a kernel of the cache $1, since this machine may have
/// none, and no KVM, which may run no such kernel. What builds it wants the modules where they are on a machine.
const VIRT_CUSTOMIZE: &str = r#"
kernel=$(ls -d "$1"/6.12* | tail -1)
release=${kernel##*/}
mkdir own
mount -t tmpfs tmpfs own
mkdir -p own/work own/lib/modules
cp -r "$kernel/modules" "own/lib/modules/$release"
mount -t overlay overlay -o "lowerdir=/usr/lib,upperdir=own/lib,workdir=own/work" /usr/lib
depmod "$release"
env SUPERMIN_KERNEL="$kernel/vmlinuz" SUPERMIN_KERNEL_VERSION="$release" SUPERMIN_MODULES="/usr/lib/modules/$release" \
    LIBGUESTFS_BACKEND=direct LIBGUESTFS_BACKEND_SETTINGS=force_tcg LIBGUESTFS_CACHEDIR="$PWD" \
    "$0" "$2" lsm-guest_*.deb 2>&1
echo "machine-id:$(debugfs -R 'cat /etc/machine-id' "$2" 2>/dev/null)"
"#;

/// The recipe in $0, in a network of its own. Packer is not to ask anybody whether there is a newer one.
const PACKER: &str = r#"
ip link set lo up
export CHECKPOINT_DISABLE=1 HOME="$PWD" TMPDIR="$PWD" PACKER_CACHE_DIR="$PWD/cache"
packer build -color=false -var-file=lab.pkrvars.json "$0/lsm.pkr.hcl" >said 2>&1 || { cat said; tail -n 100 console; exit 1; } >&2
qemu-img convert -O raw output/lsm-vm.qcow2 image.ext4
cat said
echo "machine-id:$(debugfs -R 'cat /etc/machine-id' image.ext4 2>/dev/null)"
"#;

#[test]
fn debootstrap_s_image_boots_moves_and_is_upgraded_meanwhile() {
    if lacking_tools(&[]) {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    let disk = debootstrap(&packages);
    put_next(&packages, &disk);
    boots(disk, moves);
}

#[test]
fn mkosi_s_image_boots_and_moves() {
    if lacking_tools(&[MKOSI_ITSELF, "/usr/bin/bwrap", "/usr/bin/reprepro"]) {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    boots(mkosi(&packages), moves_there);
}

#[test]
fn virt_customize_s_image_boots_and_moves() {
    if lacking_tools(&["/usr/bin/virt-customize"]) {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    boots(virt_customize(&packages), moves_there);
}

#[test]
fn packer_s_image_boots_and_moves() {
    if lacking_tools(&["/usr/bin/packer", "/usr/bin/xorriso"]) {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    boots(packer(&packages), moves_as_new);
}

#[test]
fn a_vm_that_cloud_init_has_installed_the_agent_in_moves() {
    if lacking_tools(&[]) {
        return;
    }
    let packages = Packages::build(&["--format", "deb", "lsm-guest"]).unwrap();
    boots(cloud_init(&packages), moves_with_cloud_init);
}

/// Has the lab boot it, and do that.
fn boots(disk: PathBuf, then: fn(&Stage) -> Result<()>) {
    let disk = Some(disk);
    let options = StageOptions { disk, memory_mib: 512, policy: POLICY.into(), ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    if let Err(error) = then(&stage) {
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
