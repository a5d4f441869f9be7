//! Tunnels come and go, as often as asked, and leave nothing.

use lsm_hook::{
    filters::Crossing,
    tunnel::{self, TunnelError, Tunnels},
};

use crate::{
    frame::{is, numbered},
    host::{CLIENT, Host, VNI, VNIC, able, spec, two_hosts},
    tap::Tap,
};

/// Names and addresses of all interfaces.
fn links(host: &Host) -> Vec<String> {
    let word = |line: &str, n| line.split_whitespace().nth(n).unwrap().to_owned();
    host.ip("-br link").lines().map(|line| word(line, 0) + " " + &word(line, 2)).collect()
}

#[test]
fn frames_cross_and_nothing_is_left() {
    if !able() {
        return;
    }
    let (a, b) = two_hosts(1600);
    a.lan("lan0");
    let client = Tap::new(&a, "c0", "lan0");
    let before = (links(&a), links(&b));
    [&a, &b].iter().for_each(|host| host.ipv6(true));
    a.run(async {
        let tunnels = Tunnels::open().unwrap();
        // Twice: the second time everything is so already.
        for _ in 0..2 {
            tunnels.build_lan_end(&spec(1), "lan0", true, Crossing::default()).await.unwrap();
        }
        assert_eq!(tunnels.list_ours().await.unwrap(), [VNI]);
    });
    b.run(async {
        let tunnels = Tunnels::open().unwrap();
        for _ in 0..2 {
            tunnels.build_vm_end(&spec(2)).await.unwrap();
        }
        assert!(tunnels.bridge_exists(&tunnel::bridge(VNI)).await.unwrap());
        assert!(tunnels.link_exists(&tunnel::device(VNI)).await.unwrap());
        assert!(!tunnels.bridge_exists(&tunnel::device(VNI)).await.unwrap());
    });
    b.lan("lan1");
    let vm = Tap::new(&b, "vm0", "lan1");
    let plug = |to: &str| b.run(async { Tunnels::open().unwrap().plug("vm0", to).await.unwrap() });
    assert_eq!(plug(&tunnel::bridge(VNI)).as_deref(), Some("lan1"));
    assert_eq!(plug(&tunnel::bridge(VNI)), Some(tunnel::bridge(VNI)));

    client.write(&numbered(VNIC, CLIENT, 1));
    vm.expect("the client's frame", is(&numbered(VNIC, CLIENT, 1)));
    vm.write(&numbered(CLIENT, VNIC, 2));
    client.expect("the VM's frame", is(&numbered(CLIENT, VNIC, 2)));

    for host in [&a, &b] {
        // Our interfaces are none of the host's: no address, and thus nothing it says of itself there.
        for ours in [tunnel::device(VNI), tunnel::port(VNI)] {
            assert!(!host.ip(&format!("addr show {ours}")).contains("inet6"));
        }
    }
    let shown = b.ip(&format!("-d link show {}", tunnel::bridge(VNI)));
    assert!(
        shown.contains("NOARP") && shown.contains("forward_delay 0 ") && shown.contains("mcast_snooping 0"),
        "{shown}"
    );
    assert!(!b.ip(&format!("addr show {}", tunnel::bridge(VNI))).contains("inet6"));

    for host in [&a, &b] {
        host.run(async {
            let tunnels = Tunnels::open().unwrap();
            tunnels.unplug("vm0").await.unwrap();
            for _ in 0..2 {
                tunnels.remove(VNI).await.unwrap();
            }
            assert!(tunnels.list_ours().await.unwrap().is_empty());
        });
        assert_eq!(host.command("nft", "list ruleset"), "");
    }
    assert_eq!(links(&a), before.0);
    drop(vm);
    b.ip("link del lan1");
    assert_eq!(links(&b), before.1);
}

#[test]
fn a_tunnel_to_another_host_replaces_the_old_one() {
    if !able() {
        return;
    }
    let host = Host::new();
    host.ipv6(true);
    host.ip("link add u0 type veth peer name u1");
    host.ip("addr add 192.0.2.1/24 dev u0");
    host.ip("addr add 2001:db8::1/64 dev u0 nodad");
    let mut elsewhere = spec(1);
    elsewhere.remote = [192, 0, 2, 77].into();
    let mut in_v6 = spec(1);
    (in_v6.local, in_v6.remote) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
    for spec in [spec(1), elsewhere, in_v6] {
        host.run(async { Tunnels::open().unwrap().build_vm_end(&spec).await.unwrap() });
        let shown = host.ip(&format!("-d link show {}", tunnel::device(VNI)));
        assert!(shown.contains(&format!(" {} ", spec.remote)), "{shown}");
    }
}

#[test]
fn what_cannot_be_built_is_said() {
    if !able() {
        return;
    }
    let host = Host::new();
    host.ip("link add u0 type veth peer name u1");
    let build = |bridge: &str, vni| {
        let mut spec = spec(1);
        spec.vni = vni;
        let bridge = bridge.to_owned();
        host.run(async move {
            Tunnels::open().unwrap().build_lan_end(&spec, &bridge, false, Crossing::default()).await.unwrap_err()
        })
    };
    assert!(matches!(build("nowhere", 5), TunnelError::Missing(name) if name == "nowhere"));
    assert!(matches!(build("u0", 5), TunnelError::NotABridge(name) if name == "u0"));
    host.lan("lan0");
    assert!(matches!(build("lan0", 1 << 24), TunnelError::BadVni(_)));
}
