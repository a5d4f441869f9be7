//! Full frames are sent through a tunnel before a VM is: what the network between the hosts loses is found out, with the
//! numbers.

use std::time::Instant;

use lsm_hook::{
    filters::Crossing,
    tunnel::{
        self, Tunnels,
        full_frames::{Answering, End, cross},
    },
};
use lsm_protocol::{
    MigrationId,
    destination::{Impassable, TRIAL, Way},
};
use tokio::task::LocalSet;

use crate::{
    frame::{is, large_v4},
    host::{CLIENT, Host, VNI, VNIC, able, spec, two_hosts},
    tap::Tap,
};

const MIGRATION: MigrationId = MigrationId([7; 16]);

/// The LAN's end at host 1, the VM's end at host 2, and a network between them that takes packets of this size whole.
struct Tunnel {
    lan: Host,
    vm: Host,
}

impl Tunnel {
    fn build(underlay: u32) -> Tunnel {
        let (lan, vm) = two_hosts(underlay);
        lan.lan("lan0");
        lan.run(async {
            let tunnels = Tunnels::open().unwrap();
            tunnels.build_lan_end(&spec(1), "lan0", true, Crossing { arp: true, ..Crossing::default() }).await.unwrap();
        });
        vm.run(async { Tunnels::open().unwrap().build_vm_end(&spec(2)).await.unwrap() });
        Tunnel { lan, vm }
    }

    /// One end asks, the other answers.
    fn tried_toward(&self, far: End) -> Result<(), Impassable> {
        let (asks, answers, asker) = match far {
            End::Lan => (&self.vm, &self.lan, End::Vm),
            End::Vm => (&self.lan, &self.vm, End::Lan),
        };
        let (ask_spec, answer_spec) = if far == End::Lan { (spec(2), spec(1)) } else { (spec(1), spec(2)) };
        // Sockets stay in the namespace that they were made in, so one runtime can serve both ends.
        let local = LocalSet::new();
        let runtime = &asks.runtime;
        let _answering = local
            .block_on(runtime, async { answers.within(|| Answering::start(&answer_spec, asker, MIGRATION).unwrap()) });
        asks.within(|| local.block_on(runtime, cross(&ask_spec, far, MIGRATION)))
    }

    fn both(&self) -> [Result<(), Impassable>; 2] {
        [End::Lan, End::Vm].map(|far| self.tried_toward(far))
    }
}

/// Drops what comes to the host and matches, before fragments are put together again.
fn drop_at(host: &Host, rule: &str) {
    host.command("nft", "add table ip t");
    host.command("nft", "add chain ip t c { type filter hook prerouting priority -450 ; }");
    host.command("nft", &format!("add rule ip t c {rule} drop"));
}

#[test]
fn full_frames_cross_also_in_pieces_and_come_no_further() {
    if !able() {
        return;
    }
    for underlay in [1600, 1500, 1400] {
        let tunnel = Tunnel::build(underlay);
        let client = Tap::new(&tunnel.lan, "c0", "lan0");
        let vnic = Tap::new(&tunnel.vm, "vm0", &tunnel::bridge(VNI));
        let began = Instant::now();
        assert_eq!(tunnel.both(), [Ok(()), Ok(())], "over {underlay}");
        assert!(began.elapsed().as_millis() < u128::from(TRIAL), "waited for what had come");
        // The next frame that either sees is an ordinary one.
        let ordinary = |tap: &Tap, frame: Vec<u8>| {
            tap.expect("an ordinary frame", |seen| {
                assert_ne!(seen.get(12..14), Some(&[0x88, 0xb5][..]), "a trial's frame came out of the tunnel");
                is(&frame)(seen)
            });
        };
        client.write(&large_v4(VNIC, CLIENT, 600));
        ordinary(&vnic, large_v4(VNIC, CLIENT, 600));
        vnic.write(&large_v4(CLIENT, VNIC, 600));
        ordinary(&client, large_v4(CLIENT, VNIC, 600));
    }
}

#[test]
fn lost_fragments_are_found_out() {
    if !able() {
        return;
    }
    let fragments = "ip frag-off & 0x3fff != 0";
    let lost = |way| Err(Impassable::Large { needed: 1550, available: 1500, way });
    let tunnel = Tunnel::build(1500);
    drop_at(&tunnel.lan, fragments);
    assert_eq!(tunnel.both(), [lost(Way::There), lost(Way::Back)], "dropped on the way to the LAN's end");
    drop_at(&tunnel.vm, fragments);
    assert_eq!(tunnel.both(), [lost(Way::Both), lost(Way::Both)], "dropped on both ways");
}

#[test]
fn a_narrow_place_further_on_is_found_out() {
    if !able() {
        return;
    }
    let tunnel = Tunnel::build(1600);
    drop_at(&tunnel.vm, "ip length > 1470");
    let lost = |way| Err(Impassable::Large { needed: 1550, available: 1450, way });
    assert_eq!(tunnel.both(), [lost(Way::Back), lost(Way::There)]);
}

#[test]
fn a_closed_port_is_found_out() {
    if !able() {
        return;
    }
    let tunnel = Tunnel::build(1600);
    drop_at(&tunnel.vm, "udp dport 4789");
    assert_eq!(tunnel.both(), [Err(Impassable::Closed { port: 4789 }); 2]);
}
