//! Tunnels inside WireGuard, services that AppArmor confines, and libvirt's sockets made Multipath TCP's, in a VM whose
//! kernel can all that: the machine's own may not.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lsm_tests::{
    accelerator,
    image::{Image, ImageBuilder, static_program},
    needs,
    packages::sources,
    shell::{Process, run},
};

/// How often `lab-hosts` moves a VM between distant hosts.
const DISTANT: usize = 5;
const LIMIT: Duration = Duration::from_secs(400);
/// Loads the profile, does it, and shows what the profile has stopped.
const SCRIPT: &str = "export PATH=/bin:/sbin:/usr/bin:/usr/sbin; exec >/dev/ttyS0 2>&1
mount -t securityfs none /sys/kernel/security
cat /lsm-hook.profile >/sys/kernel/security/apparmor/.load
dmesg -c >/dev/null
lab-hosts
dmesg | grep apparmor
sync
/usr/bin/reboot -f
";
/// What the hosts' services and the lab run.
const PROGRAMS: [&str; 10] = [
    "/usr/sbin/nft",
    "/usr/bin/wg",
    "/sbin/bridge",
    "/usr/bin/nsenter",
    "/usr/bin/unshare",
    "/usr/bin/setpriv",
    "/sbin/tc",
    "/bin/mount",
    "/usr/bin/stdbuf",
    "/usr/libexec/coreutils/libstdbuf.so",
];
const MODULES: [&str; 8] = ["sch_netem", "wireguard", "vxlan", "veth", "bridge", "macvlan", "tun", "nft_meta_bridge"];

/// The package's profile for `lsm-hook`, as the kernel takes it: enforced, for the lab's copies of the program, and with the
/// lab's directory as a local addition.
fn profile() -> Vec<u8> {
    let mut text = fs::read_to_string(sources().join("packaging/apparmor/usr.sbin.lsm-hook")).unwrap();
    for (from, to) in [
        ("/usr/sbin/lsm-hook", "/tmp/lsm-crowd-*/*/lsm-hook"),
        ("flags=(complain,attach_disconnected)", "flags=(attach_disconnected)"),
        (
            "include if exists <local/usr.sbin.lsm-hook>",
            "/tmp/lsm-crowd-*/** rwk,\n  /tmp/lsm-crowd-*/*/virsh rix,\n  /{usr/,}bin/** rix,",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let place = std::env::temp_dir().join(format!("lsm-profile-{}", std::process::id()));
    let compiled = place.with_extension("compiled");
    fs::write(&place, text).unwrap();
    let mut parser = Command::new("apparmor_parser");
    // This machine's kernel may have no AppArmor to ask; the newest capabilities would be left out.
    parser.args(["--kernel-features", "/etc/apparmor.d/abi/3.0", "--skip-cache", "--ofile"]);
    run(parser.arg(&compiled).arg(&place)).unwrap();
    let profile = fs::read(&compiled).unwrap();
    [place, compiled].iter().for_each(|file| fs::remove_file(file).unwrap());
    profile
}

/// VMs move between two hosts in it; the same with plain tunnels, or nobody would know that the watcher can see anything.
#[test]
fn nothing_can_be_read_and_libvirt_is_forced_and_apparmor_stops_nothing() {
    let parser = "/usr/sbin/apparmor_parser";
    let files = ["/usr/bin/qemu-system-x86_64", "/bin/busybox", PROGRAMS[0], PROGRAMS[1], parser];
    if needs::lacking(needs::missing(&files, "run tests/install")) {
        return;
    }
    let programs = [("lsm-hook", "lsm-hook"), ("lsm-tests", "lab-hosts")];
    let mut image = ImageBuilder::new("6.12").service("wireguard", "sh /hosts");
    image = image.file("/hosts", 0o600, SCRIPT).file("/lsm-hook.profile", 0o600, profile());
    for (package, name) in programs {
        image = image.program(&static_program(package, name).unwrap()).unwrap();
    }
    image = MODULES.iter().fold(image, |image, module| image.module(module));
    image = PROGRAMS.iter().fold(image, |image, program| image.installed(program));
    let console = boot(&image.build().unwrap());

    let seen = |encrypt: &str| {
        let line = console.iter().find_map(|line| line.split_once(&format!("lab-hosts: {encrypt}: Seen ")));
        let (_, seen) = line.unwrap_or_else(|| panic!("{}", console.join("\n")));
        println!("{encrypt}: {seen}");
        move |what: &str| -> usize {
            let (_, rest) = seen.split_once(&format!("{what}: ")).unwrap();
            rest.split([',', ' ', '}']).next().unwrap().parse().unwrap()
        }
    };
    let plain = seen("none");
    assert!(plain("readable") > 0 && plain("vxlan") > 0 && plain("wireguard") == 0);
    let hidden = seen("wireguard");
    assert!(hidden("readable") == 0 && hidden("vxlan") == 0 && hidden("other_udp") == 0);
    assert!(hidden("wireguard") > 0 && hidden("fragments") > 0, "full frames cross this network in pieces");
    assert_eq!((plain("confined"), hidden("confined")), (2, 2), "{}", console.join("\n"));
    let distant = console.iter().filter(|line| *line == "lab-hosts: distant").count();
    assert_eq!(distant, DISTANT, "{}", console.join("\n"));
    assert!(console.iter().any(|line| line == "lab-hosts: forced"), "{}", console.join("\n"));
    let denied: Vec<_> = console.iter().filter(|line| line.contains("apparmor=\"DENIED\"")).collect();
    assert!(denied.is_empty(), "{denied:#?}");
}

/// Until it ends by itself: what it said.
fn boot(image: &Image) -> Vec<String> {
    let accelerator = if accelerator::kvm_works(image) { "kvm" } else { "tcg" };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", accelerator, "-m", "512", "-smp", "2", "-nodefaults", "-display", "none"]);
    qemu.args(["-no-reboot", "-serial", "stdio", "-kernel"]).arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    let words = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on lsm=apparmor lab.name=hosts";
    qemu.args(["-append", words]);
    let mut vm = Process::start("VM", qemu.stdout(Stdio::piped())).unwrap();
    let output = vm.child().stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
    let begun = Instant::now();
    vm.wait(LIMIT).unwrap();
    println!("the VM ran for {:.1} s", begun.elapsed().as_secs_f64());
    reader.join().unwrap()
}
