//! The peer channel's default, on hosts that have both families, keep them apart, or have one switched off.

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use lsm_hook::{config::Config, listening::listen};

use crate::host::Host;

/// As the shipped file shows them.
fn defaults() -> Config {
    Config::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/host.toml")).unwrap()
}

/// Whether somebody who calls that address is heard.
fn hears(address: &str, prepare: impl FnOnce()) -> bool {
    let host = Host::new();
    host.within(|| {
        prepare();
        let port = defaults().listen;
        let listener = listen(port).unwrap();
        let to = SocketAddr::new(address.parse().unwrap(), port.port());
        let Ok(called) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else { return false };
        let begun = Instant::now();
        loop {
            match listener.accept() {
                Ok((_, from)) => return from.port() == called.local_addr().unwrap().port(),
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => panic!("{error}"),
                Err(_) => assert!(begun.elapsed() < Duration::from_secs(5), "a call was never there to be taken"),
            }
        }
    })
}

fn set(parameter: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/{parameter}"), value).unwrap();
}

#[test]
fn the_default_hears_both_families_whatever_the_host_s_own_is() {
    for apart in ["0", "1"] {
        for address in ["127.0.0.1", "::1"] {
            assert!(hears(address, || set("bindv6only", apart)), "{address}, bindv6only={apart}");
        }
    }
}

#[test]
fn the_default_hears_ipv4_where_ipv6_is_switched_off() {
    let off = || set("conf/all/disable_ipv6", "1");
    assert!(hears("127.0.0.1", off));
    assert!(!hears("::1", off));
}
