//! This host's LANs, and the way to the other hosts.

use std::{
    fs,
    net::{IpAddr, ToSocketAddrs, UdpSocket},
    path::Path,
};

use lsm_protocol::{Mac, finding::Finding};

use crate::{
    config::{Config, Encrypt, Lan, Peer, Underlay},
    story,
    tunnel::{
        TunnelSpec, path_mtu,
        wireguard::{self, Inside},
    },
};

/// Each LAN's bridge. `devices`: the kernel's network devices.
pub(super) fn lans(config: &Config, devices: &Path) -> Vec<Finding> {
    if config.lans.is_empty() {
        let found = "no LAN is configured: no VM can come here, and none that is here is on one";
        return vec![Finding::bad("LANs", found, "lsm-hook init --print  # shows this host's bridges as [lan.NAME]")];
    }
    config.lans.iter().map(|(name, lan)| bridge(name, lan, &devices.join(&lan.bridge))).collect()
}

fn bridge(name: &str, lan: &Lan, device: &Path) -> Finding {
    let (what, bridge) = (format!("LAN {name}"), &lan.bridge);
    let number = |file: &str| {
        let text = fs::read_to_string(device.join(file)).ok()?;
        let text = text.trim();
        text.strip_prefix("0x").map_or_else(|| text.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok())
    };
    let up = format!("ip link set {bridge} up");
    if !device.exists() {
        let fix = format!("ip link add {bridge} type bridge && {up}  # then its address, and the LAN's card as a port");
        return Finding::bad(what, format!("there is no bridge {bridge}"), fix);
    }
    if !device.join("bridge").is_dir() {
        let fix = "ip -brief link show type bridge  # name one of these in host.toml";
        return Finding::bad(what, format!("{bridge} is no bridge"), fix);
    }
    // IFF_UP (netdevice(7)).
    if number("flags").is_some_and(|flags| flags & 1 == 0) {
        return Finding::bad(what, format!("bridge {bridge} is down"), up);
    }
    match number("mtu") {
        Some(mtu) if mtu < lan.mtu => Finding::bad(
            what,
            format!("bridge {bridge} passes {mtu} bytes, and the LAN's MTU is {}", lan.mtu),
            format!("ip link set {bridge} mtu {}  # or correct [lan.{name}] mtu", lan.mtu),
        ),
        _ => {
            let prefixes: Vec<String> = lan.subnets.iter().map(|subnet| subnet.prefix.to_string()).collect();
            Finding::good(what, format!("bridge {bridge}, {}", prefixes.join(" and ")))
        }
    }
}

/// The tunnels' own address, and what the underlay carries to each peer.
pub(super) fn tunnels(config: &Config) -> Vec<Finding> {
    let Some(underlay) = config.tunnel else { return Vec::new() };
    let address = underlay.address;
    if let Err(error) = UdpSocket::bind((address, 0)) {
        let fix = "ip -brief address  # set one of these as [tunnel] address in host.toml";
        return vec![Finding::bad("tunnels", format!("{address} is no address of this host: {error}"), fix)];
    }
    let mut findings = vec![match underlay.encrypt {
        Encrypt::None => Finding::good("tunnels", format!("start at {address}, UDP {}, not encrypted", underlay.port)),
        Encrypt::Wireguard => match wireguard::supported() {
            Ok(()) => {
                let found = format!("start at {address}, inside WireGuard, UDP {}", underlay.wireguard_port);
                Finding::good("tunnels", found)
            }
            Err(error) => Finding::bad("tunnels", story(&error), "modprobe wireguard"),
        },
    }];
    let mtu = config.lans.values().map(|lan| lan.mtu).max().unwrap_or(1500);
    findings.extend(config.peers.iter().filter_map(|(name, peer)| way(name, peer, underlay, mtu)));
    findings
}

/// By the address of its peer channel: which one its tunnels have, only the peer knows.
fn way(name: &str, peer: &Peer, underlay: Underlay, mtu: u32) -> Option<Finding> {
    let what = format!("MTU to {name}");
    let same_family = |address: &IpAddr| address.is_ipv4() == underlay.address.is_ipv4();
    // Who has no address is told of by the peer's own finding.
    let remote = peer.address.to_socket_addrs().ok()?.map(|address| address.ip()).find(same_family)?;
    let unspecified = std::net::Ipv6Addr::UNSPECIFIED;
    let inside = (underlay.encrypt == Encrypt::Wireguard).then_some(Inside {
        local: unspecified,
        remote: unspecified,
        port: underlay.wireguard_port,
    });
    let (local, port) = (underlay.address, underlay.port);
    let spec = TunnelSpec { vni: 1, mac: Mac([0; 6]), local, remote, port, mtu, inside };
    Some(match path_mtu(&spec) {
        Ok(path) => {
            let carries = underlay.mtu.unwrap_or(path.underlay);
            let found = format!("full frames need {} bytes, the way takes {carries}", path.needed);
            let fix = format!(
                "ip link set $(ip -o route get {remote} | sed 's/.* dev \\([^ ]*\\).*/\\1/') mtu {}",
                path.needed
            );
            if path.needed <= carries {
                Finding::good(what, found)
            } else if path.carries_full_frames() {
                Finding::warning(what, format!("{found}: they cross in fragments, slower"), fix)
            } else {
                Finding::bad(what, format!("{found}: over IPv6 none would cross"), fix)
            }
        }
        Err(error) => Finding::bad(what, story(&error), format!("ip route get {remote}")),
    })
}

#[cfg(test)]
mod tests {
    use lsm_protocol::finding::Verdict;

    use super::*;

    #[test]
    fn each_lan_needs_its_bridge_up_and_wide_enough() {
        let place = std::env::temp_dir().join(format!("lsm-check-lans-{}", std::process::id()));
        let file = place.join("host.toml");
        fs::create_dir_all(place.join("br0")).unwrap();
        let lan =
            "[lan.here]\nbridge = \"br0\"\nprefix = \"10.9.0.0/24\"\ngateway = \"10.9.0.1\"\npool = \"10.9.0.9\"\n";
        fs::write(&file, lan).unwrap();
        let config = Config::load(&file).unwrap();
        let verdict = || {
            let finding = lans(&config, &place).remove(0);
            (finding.verdict, finding.fix.unwrap_or_default())
        };
        let (bad, fix) = verdict();
        assert!(bad == Verdict::Bad && fix.contains("show type bridge"), "{fix}");
        fs::create_dir(place.join("br0/bridge")).unwrap();
        for (flags, mtu, expected) in [
            ("0x1002", "1500", "ip link set br0 up"),
            ("0x1003", "1400", "ip link set br0 mtu 1500  # or correct [lan.here] mtu"),
        ] {
            fs::write(place.join("br0/flags"), flags).unwrap();
            fs::write(place.join("br0/mtu"), mtu).unwrap();
            assert_eq!(verdict(), (Verdict::Bad, expected.to_owned()));
        }
        fs::write(place.join("br0/mtu"), "1500\n").unwrap();
        assert_eq!(verdict(), (Verdict::Good, String::new()));
        fs::remove_dir_all(place.join("br0")).unwrap();
        assert!(verdict().1.starts_with("ip link add br0 type bridge"));
        fs::write(&file, "").unwrap();
        assert_eq!(lans(&Config::load(&file).unwrap(), &place)[0].verdict, Verdict::Bad);
        fs::remove_dir_all(&place).unwrap();
    }
}
