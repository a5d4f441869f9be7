//! Tunnels inside WireGuard, in a VM whose kernel has it: the machine's own may not.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lsm_tests::{
    accelerator,
    image::{Image, ImageBuilder, static_program},
    needs,
    shell::Process,
};

const LIMIT: Duration = Duration::from_secs(180);
/// What the hosts' services and the lab run.
const PROGRAMS: [&str; 8] = [
    "/usr/sbin/nft",
    "/usr/bin/wg",
    "/sbin/bridge",
    "/usr/bin/nsenter",
    "/usr/bin/unshare",
    "/bin/mount",
    "/usr/bin/stdbuf",
    "/usr/libexec/coreutils/libstdbuf.so",
];
const MODULES: [&str; 7] = ["wireguard", "vxlan", "veth", "bridge", "macvlan", "tun", "nft_meta_bridge"];

/// VMs move between two hosts in it; the same with plain tunnels, or nobody would know that the watcher can see anything.
#[test]
fn between_the_hosts_nothing_can_be_read() {
    let files = ["/usr/bin/qemu-system-x86_64", "/bin/busybox", PROGRAMS[0], PROGRAMS[1]];
    if needs::lacking(needs::missing(&files, "run tests/install")) {
        return;
    }
    let programs = [("lsm-hook", "lsm-hook"), ("lsm-tests", "lab-wireguard")];
    let mut image = ImageBuilder::new("6.12").service(
        "wireguard",
        "sh -c 'PATH=/bin:/sbin:/usr/bin:/usr/sbin lab-wireguard >/dev/ttyS0 2>&1; sync; /usr/bin/reboot -f'",
    );
    for (package, name) in programs {
        image = image.program(&static_program(package, name).unwrap()).unwrap();
    }
    image = MODULES.iter().fold(image, |image, module| image.module(module));
    image = PROGRAMS.iter().fold(image, |image, program| image.installed(program));
    let console = boot(&image.build().unwrap());

    let seen = |encrypt: &str| {
        let line = console.iter().find_map(|line| line.split_once(&format!("lab-wireguard: {encrypt}: Seen ")));
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
}

/// Until it ends by itself: what it said.
fn boot(image: &Image) -> Vec<String> {
    let accelerator = if accelerator::kvm_works(image) { "kvm" } else { "tcg" };
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35", "-accel", accelerator, "-m", "512", "-smp", "2", "-nodefaults", "-display", "none"]);
    qemu.args(["-no-reboot", "-serial", "stdio", "-kernel"]).arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on lab.name=hosts"]);
    let mut vm = Process::start("VM", qemu.stdout(Stdio::piped())).unwrap();
    let output = vm.child().stdout.take().unwrap();
    let reader = std::thread::spawn(move || BufReader::new(output).lines().map_while(Result::ok).collect::<Vec<_>>());
    let begun = Instant::now();
    vm.wait(LIMIT).unwrap();
    println!("the VM ran for {:.1} s", begun.elapsed().as_secs_f64());
    reader.join().unwrap()
}
