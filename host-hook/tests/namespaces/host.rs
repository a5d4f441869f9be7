//! A host: a network namespace, entered by the thread that acts for it.

use std::{
    fs::File,
    future::Future,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use lsm_hook::tunnel::TunnelSpec;
use lsm_protocol::Mac;
use nix::sched::{CloneFlags, setns, unshare};
use tokio::runtime::{Builder, Runtime};

pub(crate) const VNIC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
pub(crate) const CLIENT: Mac = Mac([0x52, 0x54, 0, 0xcc, 0, 9]);
pub(crate) const VNI: u32 = 0x1f;

pub(crate) struct Host {
    namespace: File,
    pub(crate) runtime: Runtime,
}

impl Host {
    pub(crate) fn new() -> Self {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let host = Self {
            namespace: namespace.join().unwrap(),
            runtime: Builder::new_current_thread().enable_all().build().unwrap(),
        };
        host.ip("link set lo up");
        host.ipv6(false);
        host
    }

    /// Whether interfaces made from now on speak IPv6 by themselves, and thereby into our counters.
    pub(crate) fn ipv6(&self, on: bool) {
        let switch = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
        self.within(|| std::fs::write(switch, if on { "0" } else { "1" }).unwrap());
    }

    pub(crate) fn within<T>(&self, act: impl FnOnce() -> T) -> T {
        let before = File::open("/proc/thread-self/ns/net").unwrap();
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).unwrap();
        let result = act();
        setns(&before, CloneFlags::CLONE_NEWNET).unwrap();
        result
    }

    pub(crate) fn run<F: Future>(&self, future: F) -> F::Output {
        self.within(|| self.runtime.block_on(future))
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.command("ip", arguments)
    }

    pub(crate) fn command(&self, program: &str, arguments: &str) -> String {
        let output = self.within(|| Command::new(program).args(arguments.split(' ')).output().unwrap());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// A bridge that stands for a LAN.
    pub(crate) fn lan(&self, name: &str) {
        self.ip(&format!("link add name {name} type bridge forward_delay 0 mcast_snooping 0"));
        self.ip(&format!("link set {name} up"));
    }
}

/// Two hosts with an underlay between them.
pub(crate) fn two_hosts(underlay_mtu: u32) -> (Host, Host) {
    let (a, b) = (Host::new(), Host::new());
    // Interfaces move by a process's namespace: one of our threads stands in for it.
    let other = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&b.namespace));
    [&a, &b].iter().for_each(|host| host.ipv6(true));
    a.ip(&format!("link add u0 mtu {underlay_mtu} type veth peer name u0 mtu {underlay_mtu} netns {other}"));
    for (host, number) in [(&a, 1), (&b, 2)] {
        host.ip(&format!("addr add 192.0.2.{number}/24 dev u0"));
        host.ip(&format!("addr add 2001:db8::{number}/64 dev u0 nodad"));
        host.ip("link set u0 up");
        host.ipv6(false);
    }
    (a, b)
}

/// The tunnel between the two, as host 1 or 2 sees it.
pub(crate) fn spec(host: u8) -> TunnelSpec {
    let address = |host: u8| IpAddr::from([192, 0, 2, host]);
    TunnelSpec {
        vni: VNI,
        mac: VNIC,
        local: address(host),
        remote: address(3 - host),
        port: 4789,
        mtu: 1500,
        inside: None,
    }
}

/// Whether the kernel lets this process make namespaces; a reason on stderr where not.
pub(crate) fn able() -> bool {
    let able = nix::unistd::geteuid().is_root();
    if !able {
        assert!(
            std::env::var_os("LSM_EXPECT_ALL").is_none_or(|v| v != "1"),
            "not root, and everything was to be tested"
        );
        eprintln!("skipped: needs root, for network namespaces");
    }
    able
}

/// Asks again until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited 10 s for: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
