//! The paths of a migration's stream: opened, and put back.

use std::{fs, net::IpAddr, path::PathBuf, time::Duration};

use lsm_hook::stream::{Role, Streams};
use tokio::task::LocalSet;

use super::host::{Host, able};

const PATHS: [&str; 3] = ["192.0.2.1", "198.51.100.1", "203.0.113.1"];
/// Longer than it is put off after a VM's arrival.
const PUT_BACK: Duration = Duration::from_secs(3);

/// A host with two of the three paths, an endpoint of somebody else's and a directory for the service.
fn host(name: &str) -> (Host, PathBuf, Vec<IpAddr>) {
    let host = Host::new();
    for (card, path) in ["one", "two"].iter().zip(PATHS) {
        host.ip(&format!("link add {card} type bridge"));
        host.ip(&format!("addr add {path}/24 dev {card}"));
        host.ip(&format!("link set {card} up"));
    }
    host.ip("mptcp limits set subflows 1 add_addr_accepted 3");
    host.ip("addr add 10.9.9.9/32 dev lo");
    host.ip("mptcp endpoint add 10.9.9.9 id 7 subflow");
    let directory = std::env::temp_dir().join(format!("lsm-streaming-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    (host, directory, PATHS.map(|path| path.parse().unwrap()).to_vec())
}

/// Endpoints, limits and windows, as the kernel has them.
fn state(host: &Host) -> [String; 4] {
    let read = |file: &str| host.within(|| fs::read_to_string(format!("/proc/sys/net/ipv4/{file}")).unwrap());
    [host.ip("mptcp endpoint"), host.ip("mptcp limits"), read("tcp_rmem"), read("tcp_wmem")]
}

#[test]
fn paths_are_open_for_as_long_as_one_migration_copies() {
    if !able() {
        return;
    }
    let (host, directory, paths) = host("open");
    let before = state(&host);
    host.within(|| {
        LocalSet::new().block_on(&host.runtime, async {
            let streams = Streams::new(&paths, &directory);
            let first = streams.enter(Role::Destination).await.unwrap();
            let [endpoints, limits, receive, send] = state(&host);
            assert!(endpoints.contains("192.0.2.1 id 8 signal dev one"), "{endpoints}");
            assert!(endpoints.contains("198.51.100.1 id 9 signal dev two"), "{endpoints}");
            assert!(!endpoints.contains("203.0.113.1"), "no card has it: {endpoints}");
            assert!(limits.contains("add_addr_accepted 3 subflows 3"), "{limits}");
            for windows in [receive, send] {
                assert!(windows.trim().ends_with("67108864"), "{windows}");
            }
            let second = streams.enter(Role::Source).await.unwrap();
            drop(first);
            tokio::time::sleep(PUT_BACK).await;
            assert_ne!(state(&host), before, "one still copies");
            drop(second);
            tokio::time::sleep(PUT_BACK).await;
        });
    });
    assert_eq!(state(&host), before);
    fs::remove_dir_all(directory).unwrap();
}

#[test]
fn what_a_dead_service_left_is_put_back() {
    if !able() {
        return;
    }
    let (host, directory, paths) = host("dead");
    let before = state(&host);
    host.within(|| {
        LocalSet::new().block_on(&host.runtime, async {
            std::mem::forget(Streams::new(&paths, &directory).enter(Role::Source).await.unwrap());
            assert_ne!(state(&host), before);
            // The next one is told of other paths.
            let next = Streams::new(&[], &directory);
            assert!(next.enter(Role::Source).await.is_none());
            next.tidy().await;
        });
    });
    assert_eq!(state(&host), before);
    fs::remove_dir_all(directory).unwrap();
}
