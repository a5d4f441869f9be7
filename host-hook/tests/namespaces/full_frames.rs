//! Full frames of the LAN cross an underlay that is no larger, or smaller.

use std::net::Ipv6Addr;

use lsm_hook::{
    filters::Crossing,
    tunnel::{self, TunnelSpec, Tunnels, path_mtu, wireguard::Inside},
};

use crate::{
    frame::{is, large_v4, large_v6, super_frame, tcp_sum_is_right},
    host::{CLIENT, VNI, VNIC, able, spec, two_hosts},
    tap::Tap,
};

fn cross(underlay: u32, v6: bool) {
    if !able() {
        return;
    }
    let (a, b) = two_hosts(underlay);
    a.lan("lan0");
    let client = Tap::new(&a, "c0", "lan0");
    let specs = [1, 2].map(|host| {
        let mut spec = spec(host);
        if v6 {
            let address = |host| format!("2001:db8::{host}").parse().unwrap();
            (spec.local, spec.remote) = (address(host), address(3 - host));
        }
        spec
    });
    a.run(async {
        Tunnels::open().unwrap().build_lan_end(&specs[0], "lan0", true, Crossing::default()).await.unwrap()
    });
    b.run(async { Tunnels::open().unwrap().build_vm_end(&specs[1]).await.unwrap() });
    let vm = Tap::with_super_frames(&b, "vm0", &tunnel::bridge(VNI));

    // Inside WireGuard: 60 bytes more in IPv4, 80 in IPv6, around VXLAN over IPv6; and the kernel cuts either.
    let nowhere = Ipv6Addr::UNSPECIFIED;
    let hidden =
        TunnelSpec { inside: Some(Inside { local: nowhere, remote: nowhere, port: 16_520 }), ..specs[0].clone() };
    let path = a.within(|| path_mtu(&hidden).unwrap());
    assert_eq!((path.underlay, path.needed), (underlay, if v6 { 1650 } else { 1630 }));
    assert!(path.fragments() && path.carries_full_frames());

    let path = a.within(|| path_mtu(&specs[0]).unwrap());
    assert_eq!((path.underlay, path.needed), (underlay, if v6 { 1570 } else { 1550 }));
    assert_eq!(path.fragments(), underlay < path.needed);
    assert_eq!(path.carries_full_frames(), !v6 || underlay >= path.needed);
    if !path.carries_full_frames() {
        return;
    }

    for large in [large_v4, large_v6] {
        for size in [1500, 1451, 1400, 1350] {
            client.write(&large(VNIC, CLIENT, size));
            vm.expect(&format!("a packet of {size} bytes"), is(&large(VNIC, CLIENT, size)));
            vm.write(&large(CLIENT, VNIC, size));
            client.expect(&format!("a packet of {size} bytes"), is(&large(CLIENT, VNIC, size)));
        }
    }

    // 30 segments at once from the VM; the client's tap takes them one by one.
    vm.write_raw(&super_frame(CLIENT, VNIC, 43_800, 1460));
    let mut data = 0;
    while data < 43_800 {
        let frame = client.expect("the super-frame's next segment", |frame| frame.get(23) == Some(&6));
        assert_eq!(frame.len(), 14 + 1500);
        assert!(tcp_sum_is_right(&frame));
        data += frame.len() - 54;
    }
}

#[test]
fn over_1600() {
    cross(1600, false);
}

#[test]
fn over_1500() {
    cross(1500, false);
}

#[test]
fn over_1400() {
    cross(1400, false);
}

#[test]
fn over_1600_in_ipv6() {
    cross(1600, true);
}

#[test]
fn ipv6_does_not_fragment() {
    cross(1500, true);
}
