//! A bridge hears a vNIC for the first time.

use std::time::Duration;

use futures_util::FutureExt;
use lsm_hook::divert::{Fdb, LearningWatch};

use crate::{
    frame::numbered,
    host::{CLIENT, Host, VNIC, able},
    tap::Tap,
};

fn two_taps() -> (Host, Tap, Tap) {
    let host = Host::new();
    host.lan("lan0");
    let (vm, other) = (Tap::new(&host, "vm0", "lan0"), Tap::new(&host, "o0", "lan0"));
    (host, vm, other)
}

async fn soon(watch: &mut LearningWatch) {
    tokio::time::timeout(Duration::from_secs(5), watch.heard()).await.expect("the sign within 5 s").unwrap();
}

#[test]
fn a_new_mac_is_heard_on_its_port_only() {
    if !able() {
        return;
    }
    let (host, vm, other) = two_taps();
    host.run(async {
        let mut watch = LearningWatch::start("lan0", "vm0", VNIC).unwrap();
        vm.write(&numbered(CLIENT, CLIENT, 1));
        other.write(&numbered(CLIENT, VNIC, 2));
        for _ in 0..20 {
            assert!(watch.heard().now_or_never().is_none());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        vm.write(&numbered(CLIENT, VNIC, 3));
        soon(&mut watch).await;
        // Who comes late is told at once.
        soon(&mut LearningWatch::start("lan0", "vm0", VNIC).unwrap()).await;
    });
}

#[test]
fn a_mac_that_was_pointed_there_is_heard_when_it_speaks() {
    if !able() {
        return;
    }
    let (host, vm, other) = two_taps();
    host.run(async {
        // As at a destination: the vNIC was behind the other port, then its frames are sent to the tap in advance.
        other.write(&numbered(CLIENT, VNIC, 1));
        let fdb = Fdb::open().unwrap();
        let mut watch = LearningWatch::start("lan0", "vm0", VNIC).unwrap();
        fdb.divert(&fdb.prepare("lan0", VNIC, "vm0", None).unwrap()).unwrap();
        for _ in 0..20 {
            assert!(watch.heard().now_or_never().is_none(), "nobody has spoken yet");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        vm.write(&numbered(CLIENT, VNIC, 3));
        soon(&mut watch).await;
        soon(&mut LearningWatch::start("lan0", "vm0", VNIC).unwrap()).await;
    });
}
