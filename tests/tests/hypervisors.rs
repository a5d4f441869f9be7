//! Two hosts as people run them, each a machine of its own: Debian 12 with systemd, libvirt and QEMU as Debian has them, and
//! LSM's package; a VM under KVM, reached over vsock, and tunnels inside WireGuard. libvirt's sockets are made Multipath
//! TCP's by BPF, and AppArmor confines whom it confines.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, path::Path, process::Command, thread, time::Duration};

use lsm_tests::{
    connections::Connections,
    distribution,
    domain::{Channel, Domain},
    hypervisor::Hypervisor,
    image::{Image, ImageBuilder},
    needs,
    packages::{Packages, sources},
    shell::{Result, run, wait_for},
    site::LabDir,
    stage::{self, StageOptions},
    topology::{SiteLinks, Topology, TopologyOptions},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const NAMES: [&str; 2] = ["montreal", "dallas"];
/// Their addresses on the second network between them.
const SECOND: [&str; 2] = ["172.31.0.1", "172.31.0.2"];
/// Of their kernels.
const MODULES: [&str; 12] = [
    "kvm_amd",
    "kvm_intel",
    "vhost_vsock",
    "vhost_net",
    "tun",
    "bridge",
    "vxlan",
    "wireguard",
    "veth",
    "macvlan",
    "nft_meta_bridge",
    "sch_tbf",
];
/// Where they have what their VM boots.
const KERNEL: &str = "/var/lib/libvirt/images/vmlinuz";
const INITRAMFS: &str = "/var/lib/libvirt/images/initramfs";
/// Moves the VM, and says meanwhile where its QEMU has connections of Multipath TCP's, a line for each.
const MIGRATE: &str = "
rm -f /tmp/moved
(virsh migrate --live vm \"$@\" >/tmp/migrate.log 2>&1; echo $? >/tmp/moved) </dev/null &
while [ ! -e /tmp/moved ]; do ss -MHtnp; sleep 0.5; done | awk '/^mptcp.*qemu-system/ { print $4, $5 }' | sort -u
cat /tmp/migrate.log >&2
exit $(cat /tmp/moved)
";
/// All of the VM's disk.
const DISK: &str = "/var/lib/libvirt/images/disk.qcow2";
const WRITTEN: &str = "-P 7 0 40M";
/// Much less than is copied, and much more than is said beside it.
const MUCH: u64 = 10 << 20;
const LITTLE: u64 = 1 << 20;

fn lacking() -> bool {
    let files = ["/usr/bin/qemu-system-x86_64", "/bin/busybox", "/usr/bin/openssl", "/usr/bin/dpkg-deb"];
    let disk = || distribution::host_disk().err().map(|error| error.to_string());
    needs::lacking(needs::missing(&files, "run tests/install --tests").or_else(disk).or_else(needs::missing_mptcp))
}

/// And who is between them. Dropped in this order.
struct Hosts {
    hosts: [Hypervisor; 2],
    _lab: LabDir,
    topology: Topology,
}

impl Hosts {
    fn set() -> Hosts {
        let site =
            |name: &str| SiteLinks { name: name.into(), client_rtt: Duration::from_millis(4), wan_rtt: Duration::ZERO };
        let options = TopologyOptions { sites: NAMES.map(site).into(), ..TopologyOptions::default() };
        let topology = Topology::new(&options).unwrap();
        let [montreal, dallas] = NAMES.map(|name| topology.ns(name));
        let second = format!("link add second type veth peer name second netns {}\n", dallas.name());
        montreal.ip(&second).unwrap();
        for network in [montreal, dallas] {
            network.ip("link set second up\n").unwrap();
        }
        let lab = LabDir::new(&topology).unwrap();
        let (vm, packages) = (vm_image(), Packages::build(&["--format", "deb"]).unwrap());
        let image = image(&packages, &vm, lab.path());
        let hosts = each(|number| {
            let host = Hypervisor::boot(&topology, NAMES[number], &image, lab.path()).unwrap();
            let wan = |number| topology.site(NAMES[number]).wan;
            let (name, peer) = (NAMES[number], NAMES[1 - number]);
            let known = format!(
                "name={name} number={} wan={} second={} peer={peer} peer_wan={}",
                number + 1,
                wan(number),
                SECOND[number],
                wan(1 - number)
            );
            println!("{}", host.must(&format!("{known}; . /lab/host.sh 2>&1"), LIMIT).unwrap());
            host
        });
        let mut domain = Domain::new("vm", vm, topology.site(NAMES[0]));
        domain.devices = format!(
            "<disk type='file'><driver name='qemu' type='qcow2'/><source file='{DISK}'/><target dev='vda' bus='virtio'/></disk>"
        );
        (domain.image.kernel, domain.image.initramfs) = (KERNEL.into(), INITRAMFS.into());
        (domain.kvm, domain.channel) = (hosts[0].exec("test -e /dev/kvm", LIMIT).unwrap().status == 0, Channel::Vsock);
        let define = format!("virsh define /dev/stdin <<'END'\n{}\nEND\nvirsh start vm", domain.xml());
        hosts[0].must(&format!("qemu-io -f qcow2 -c 'write {WRITTEN}' {DISK} && {define}"), LIMIT).unwrap();
        let set = Hosts { hosts, _lab: lab, topology };
        wait_for("the VM's agent", LIMIT, || set.in_the_vm(0, "lsm-guest status").ok()).unwrap();
        set
    }

    fn must(&self, number: usize, command: &str) -> String {
        self.hosts[number].must(command, LIMIT).unwrap()
    }

    /// On the host where it is.
    fn in_the_vm(&self, number: usize, command: &str) -> Result<String> {
        let port = r"$(virsh dumpxml vm | sed -n 's/.*path=.\(.*org.lsm.lab.0\).*/\1/p')";
        self.hosts[number].must(&format!("/usr/lib/lab/init ask \"{port}\" '{command}'"), LIMIT)
    }

    /// From this host to the other with its disk, to the move's end: how many connections of Multipath TCP's there were, and
    /// the source's and the destination's report.
    fn moves(&self, from: usize, how: &str) -> (usize, [Value; 2]) {
        let to = NAMES[1 - from];
        let migrate = format!("set -- --copy-storage-all {how} qemu+tls://{to}/system\n{MIGRATE}");
        let forced = self.hosts[from].must(&migrate, LIMIT);
        let forced = forced.unwrap_or_else(|error| panic!("{error}\n{}", self.story()));
        let reports = [from, 1 - from].map(|number| {
            wait_for("the move to be over", LIMIT, || {
                let status: Value = serde_json::from_str(&self.must(number, "lsm-hook status --json")).unwrap();
                (status["migrations"] == Value::Array(vec![])).then_some(())
            })
            .unwrap();
            let history: Vec<Value> = serde_json::from_str(&self.must(number, "lsm-hook history --json")).unwrap();
            history.into_iter().next_back().unwrap()
        });
        (forced.lines().count(), reports)
    }

    /// What each said of what it did, where something was not right.
    fn story(&self) -> String {
        let ask = "journalctl --no-pager -b -u lsm-hook -u 'lsm-hook-force@*' -u libvirtd; dmesg | grep apparmor";
        self.hosts.iter().map(|host| host.must(ask, LIMIT).unwrap_or_else(|error| error.to_string())).collect()
    }
}

fn each<T: Send>(act: impl Fn(usize) -> T + Sync) -> [T; 2] {
    let act = &act;
    thread::scope(|scope| [0, 1].map(|number| scope.spawn(move || act(number))).map(|one| one.join().unwrap()))
}

fn vm_image() -> Image {
    stage::image(&StageOptions { channel: Channel::Vsock, ..StageOptions::default() }).unwrap().build().unwrap()
}

/// The hosts'.
fn image(packages: &Packages, vm: &Image, directory: &Path) -> Image {
    run(Command::new(sources().join("packaging/examples/make-pki")).args(NAMES).current_dir(directory)).unwrap();
    let hook = packages.files("deb").into_iter().find(|file| file.to_string_lossy().contains("lsm-hook_")).unwrap();
    let mut image = ImageBuilder::new("6.12").disk(&distribution::host_disk().unwrap());
    image = MODULES.iter().fold(image, |image, module| image.module(module));
    image = image.file("/lab/host.sh", 0o600, include_str!("hypervisors/host.sh"));
    for (from, to) in [(&hook, "/lab/lsm-hook.deb"), (&vm.kernel, KERNEL), (&vm.initramfs, INITRAMFS)] {
        image = image.file(to, 0o644, fs::read(from).unwrap());
    }
    with(image, &directory.join("pki"), "/lab/pki").build().unwrap()
}

/// All that is below `from`.
fn with(image: ImageBuilder, from: &Path, to: &str) -> ImageBuilder {
    fs::read_dir(from).unwrap().flatten().fold(image, |image, entry| {
        let (from, to) = (entry.path(), format!("{to}/{}", entry.file_name().to_string_lossy()));
        if from.is_dir() { with(image, &from, &to) } else { image.file(&to, 0o600, fs::read(from).unwrap()) }
    })
}

fn sent(report: &Value) -> Vec<u64> {
    report["stream"].as_array().unwrap().iter().map(|path| path["sent"].as_u64().unwrap()).collect()
}

#[test]
fn a_vm_moves_between_whole_hosts() {
    if lacking() {
        return;
    }
    let hosts = Hosts::set();
    for found in each(|number| hosts.must(number, "lsm-hook check")) {
        println!("{found}");
        assert!(found.contains("(BPF)"), "{found}");
    }
    let vm = hosts.topology.site(NAMES[0]).address(10).into();
    let mut connections = Connections::open_at(&hosts.topology, vm, 4, 0).unwrap();

    // The disk's and the memory's.
    let (forced, [source, destination]) = hosts.moves(0, "--parallel --parallel-connections 2");
    println!("{source:#}\n{destination:#}");
    assert!(forced >= 3, "{forced} connections");
    assert!(sent(&source).iter().all(|bytes| *bytes > MUCH), "one path carried nearly all: {source}");
    assert_eq!(destination["guest"]["sums"]["moved"], 4, "{destination}");
    let read = hosts.must(1, &format!("qemu-io -r -U -f qcow2 -c 'read {WRITTEN}' {DISK} 2>&1"));
    assert!(read.contains("read 41943040/41943040") && !read.contains("failed"), "{read}");
    connections.alive().unwrap();

    // Without it, and back.
    each(|number| hosts.must(number, "systemctl stop lsm-hook-force.socket"));
    let (forced, [source, destination]) = hosts.moves(1, "--postcopy --postcopy-after-precopy");
    println!("{source:#}\n{destination:#}");
    assert_eq!(forced, 0);
    assert!(sent(&source)[1] < LITTLE, "plain TCP on two paths: {source}");
    assert_eq!(destination["guest"]["sums"]["moved"], 4, "{destination}");
    connections.alive().unwrap();
    connections.end().unwrap();

    for number in [0, 1] {
        assert_eq!(hosts.must(number, "ip mptcp endpoint; ip -o link show type vxlan; ls /sys/fs/bpf"), "");
        let stopped = hosts.must(number, "dmesg | grep 'apparmor=.DENIED.*profile=.lsm-hook' || true");
        assert_eq!(stopped, "", "AppArmor has stopped lsm-hook");
    }
}
