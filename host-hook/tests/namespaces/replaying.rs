//! What a recorder keeps, counts and sends again.

use std::time::SystemTime;

use lsm_hook::replay::{Outlet, Recorder};
use lsm_protocol::Mac;

use crate::{
    frame::{BROADCAST, number, numbered, super_frame},
    host::{CLIENT, Host, VNIC, able, until},
    tap::{Tap, VNET_HEADER},
};

const OTHER: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);

struct Lan {
    host: Host,
    client: Tap,
    vm: Tap,
    elsewhere: Tap,
}

fn lan() -> Lan {
    let host = Host::new();
    host.lan("lan0");
    host.lan("lan1");
    let client = Tap::with_super_frames(&host, "c0", "lan0");
    let vm = Tap::with_super_frames(&host, "vm0", "lan0");
    let elsewhere = Tap::with_super_frames(&host, "e0", "lan1");
    // Both MACs are the VM's.
    for mac in [VNIC, OTHER] {
        host.command("bridge", &format!("fdb add {mac} dev vm0 master static"));
    }
    Lan { host, client, vm, elsewhere }
}

fn numbers(frames: Vec<Vec<u8>>) -> Vec<u32> {
    frames.iter().filter_map(|frame| number(frame)).collect()
}

#[test]
fn unread_frames_are_counted_and_sent_again() {
    if !able() {
        return;
    }
    let lan = lan();
    lan.host.run(async {
        // Some frames before the recorder: they are of no account.
        for n in 0..5 {
            lan.client.write(&numbered(VNIC, CLIENT, n));
        }
        assert_eq!(lan.vm.waiting(|_| true).iter().filter_map(|f| number(f)).count(), 5);
        let recorder = Recorder::start("vm0", VNIC).unwrap();
        let outlet = Outlet::open("e0").unwrap();
        assert_eq!(recorder.unread().unwrap(), 0);
        for n in 100..200 {
            lan.client.write(&numbered(VNIC, CLIENT, n));
            lan.client.write(&numbered(OTHER, CLIENT, n));
        }
        lan.client.write(&numbered(BROADCAST, CLIENT, 1));
        assert_eq!(recorder.unread().unwrap(), 201);
        for _ in 0..40 {
            lan.vm.expect("a frame", |_| true);
        }
        assert_eq!(recorder.unread().unwrap(), 161);
        let replayed = recorder.replay_unread(&outlet).unwrap();
        // Of the 161, and the two before them, those for the vNIC: 80 and one.
        assert_eq!((replayed.sent, replayed.refused), (81, 0));
        assert_eq!(numbers(lan.elsewhere.waiting(|_| true)), (119..200).collect::<Vec<_>>());
        // What is sent again leaves nothing behind in the count.
        assert_eq!(lan.vm.waiting(|_| true).len(), 161);
        assert_eq!(recorder.unread().unwrap(), 0);
        assert_eq!(recorder.missed(), 0);
    });
}

#[test]
fn frames_since_a_moment_are_sent_again() {
    if !able() {
        return;
    }
    let lan = lan();
    lan.host.run(async {
        let recorder = Recorder::start("vm0", VNIC).unwrap();
        let outlet = Outlet::open("e0").unwrap();
        until("the kernel stamping frames when they leave", || {
            lan.client.write(&numbered(VNIC, CLIENT, 0));
            recorder.replay(SystemTime::now(), &outlet).unwrap().sent == 0
        });
        lan.elsewhere.waiting(|_| true);
        (0..10).for_each(|n| lan.client.write(&numbered(VNIC, CLIENT, n)));
        let moment = SystemTime::now();
        (10..20).for_each(|n| lan.client.write(&numbered(VNIC, CLIENT, n)));
        lan.vm.write(&numbered(CLIENT, VNIC, 77)); // the other way: not recorded
        assert_eq!(recorder.replay(moment, &outlet).unwrap().sent, 10);
        assert_eq!(numbers(lan.elsewhere.waiting(|_| true)), (10..20).collect::<Vec<_>>());
        assert_eq!(recorder.replay(SystemTime::now(), &outlet).unwrap().sent, 0);
    });
}

#[test]
fn a_super_frame_is_sent_again_as_it_was() {
    if !able() {
        return;
    }
    let lan = lan();
    lan.host.run(async {
        let recorder = Recorder::start("vm0", VNIC).unwrap();
        let outlet = Outlet::open("e0").unwrap();
        let frame = super_frame(VNIC, CLIENT, 43_800, 1460);
        lan.client.write_raw(&frame);
        lan.vm.expect("the super-frame", |came| came == &frame[VNET_HEADER..]);
        let replayed = recorder.replay(SystemTime::UNIX_EPOCH, &outlet).unwrap();
        assert_eq!((replayed.sent, replayed.refused), (1, 0));
        lan.elsewhere.expect("the super-frame again", |came| came == &frame[VNET_HEADER..]);
    });
}

#[test]
fn the_tape_is_short() {
    if !able() {
        return;
    }
    let lan = lan();
    lan.host.run(async {
        let recorder = Recorder::start("vm0", VNIC).unwrap();
        let outlet = Outlet::open("e0").unwrap();
        lan.client.write(&numbered(VNIC, CLIENT, 1));
        // 16 MiB of super-frames and more: the oldest go.
        for _ in 0..400 {
            lan.client.write_raw(&super_frame(VNIC, CLIENT, 64_000, 1460));
            lan.vm.expect("a super-frame", |_| true);
        }
        let replayed = recorder.replay(SystemTime::UNIX_EPOCH, &outlet).unwrap();
        assert!(replayed.sent < 265, "{replayed:?}");
        // And what is older than a second goes too.
        until("an empty tape", || {
            lan.elsewhere.waiting(|_| true);
            recorder.replay(SystemTime::UNIX_EPOCH, &outlet).unwrap().sent == 0
        });
    });
}
