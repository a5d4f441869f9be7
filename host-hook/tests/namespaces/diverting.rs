//! A VM stops here and goes on there, under steady traffic: no frame is lost.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use lsm_hook::{
    divert::Fdb,
    filters::Crossing,
    replay::{Outlet, Recorder},
    tunnel::{self, Tunnels},
};

use crate::{
    frame::{number, numbered},
    host::{CLIENT, VNI, VNIC, able, spec, two_hosts, until},
    tap::Tap,
};

const FRAMES: u32 = 1500;

/// A VM that reads its tap while its CPUs run.
struct Reader {
    run: Arc<AtomicBool>,
    thread: thread::JoinHandle<(Arc<Tap>, Vec<u32>)>,
}

impl Reader {
    fn start(tap: Arc<Tap>) -> Self {
        let run = Arc::new(AtomicBool::new(true));
        let running = Arc::clone(&run);
        let thread = thread::spawn(move || {
            let mut got = Vec::new();
            while running.load(Ordering::SeqCst) {
                let frame = tap.read_for(Duration::from_millis(1), |frame| number(frame).is_some());
                got.extend(frame.as_deref().and_then(number));
            }
            (tap, got)
        });
        Self { run, thread }
    }

    fn stop(self) -> (Arc<Tap>, Vec<u32>) {
        self.run.store(false, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}

#[test]
fn no_frame_is_lost_between_stop_and_arrival() {
    if !able() {
        return;
    }
    let (a, b) = two_hosts(1600);
    a.lan("lan0");
    let client = Arc::new(Tap::new(&a, "c0", "lan0"));
    let at_source = Arc::new(Tap::new(&a, "vm0", "lan0"));
    at_source.write(&numbered(CLIENT, VNIC, 0)); // so that the LAN knows where the vNIC is
    a.run(async {
        Tunnels::open().unwrap().build_lan_end(&spec(1), "lan0", false, Crossing::default()).await.unwrap()
    });
    b.run(async { Tunnels::open().unwrap().build_vm_end(&spec(2)).await.unwrap() });
    let at_destination = Arc::new(Tap::new(&b, "vm0", &tunnel::bridge(VNI)));
    b.run(async { Tunnels::open().unwrap().set_queue_length("vm0", 10_000).await.unwrap() });

    at_source.waiting(|_| true);
    let (recorder, outlet, fdb, diversion) = a.run(async {
        let fdb = Fdb::open().unwrap();
        let diversion = fdb.prepare("lan0", VNIC, &tunnel::port(VNI), Some("vm0")).unwrap();
        (Recorder::start("vm0", VNIC).unwrap(), Outlet::open(&tunnel::device(VNI)).unwrap(), fdb, diversion)
    });

    let sent = Arc::new(AtomicU32::new(0));
    let sender = thread::spawn({
        let (sent, client) = (Arc::clone(&sent), Arc::clone(&client));
        move || {
            let start = Instant::now();
            for n in 0..FRAMES {
                client.write(&numbered(VNIC, CLIENT, n));
                sent.store(n + 1, Ordering::SeqCst);
                thread::sleep((start + Duration::from_millis(n.into())).saturating_duration_since(Instant::now()));
            }
        }
    });

    let reader = Reader::start(Arc::clone(&at_source));
    until("a third of the frames sent", || sent.load(Ordering::SeqCst) >= FRAMES / 3);
    let (_, got_at_source) = reader.stop();
    // As late as a host that hears of the stop from an event.
    thread::sleep(Duration::from_millis(3));
    let began = Instant::now();
    a.within(|| fdb.divert(&diversion).unwrap());
    let diverted = began.elapsed();
    let replayed = a.run(async { recorder.replay_unread(&outlet).unwrap() });
    println!("diverted in {diverted:?}, {replayed:?} in {:?}", began.elapsed() - diverted);

    until("two thirds of the frames sent", || sent.load(Ordering::SeqCst) >= FRAMES * 2 / 3);
    let reader = Reader::start(at_destination);
    sender.join().unwrap();
    // The last frame is through the tunnel when one more is.
    let counts = || b.run(async { lsm_hook::filters::counts(VNI).await.unwrap().unwrap().received });
    let through = counts();
    client.write(&numbered(VNIC, CLIENT, FRAMES));
    until("the very last frame", || counts() > through);
    let (at_destination, mut got_at_destination) = reader.stop();
    got_at_destination.extend(at_destination.waiting(|_| true).iter().filter_map(|frame| number(frame)));

    let mut times: BTreeMap<u32, u32> = (0..FRAMES).map(|n| (n, 0)).collect();
    got_at_source.iter().chain(&got_at_destination).for_each(|n| *times.entry(*n).or_default() += 1);
    let lost: Vec<_> = times.iter().filter(|(_, count)| **count == 0).map(|(n, _)| n).collect();
    let twice = times.values().filter(|count| **count > 1).count();
    println!("source {}, destination {}, twice {twice}", got_at_source.len(), got_at_destination.len());
    assert!(lost.is_empty(), "lost: {lost:?}");
    assert!(twice <= 2 + 1, "only what QEMU may have held comes twice, not {twice} frames");

    // The VM resumes at the source after all.
    at_source.waiting(|_| true);
    a.within(|| {
        fdb.undo(&diversion).unwrap();
        fdb.undo(&diversion).unwrap();
    });
    client.write(&numbered(VNIC, CLIENT, 7777));
    at_source.expect("a frame at the source again", |frame| number(frame) == Some(7777));
    let entries = a.command("bridge", "fdb show br lan0");
    let entry = entries.lines().find(|line| line.starts_with(&VNIC.to_string())).unwrap();
    assert!(entry.contains("dev vm0") && !entry.contains("static"), "{entry}");
}

#[test]
fn undoing_restores_what_was() {
    if !able() {
        return;
    }
    let (host, _) = two_hosts(1500);
    host.lan("lan0");
    let (vm, other) = (Tap::new(&host, "vm0", "lan0"), Tap::new(&host, "o0", "lan0"));
    let entry = || {
        let entries = host.command("bridge", "fdb show br lan0");
        entries.lines().find(|line| line.starts_with(&VNIC.to_string())).map(str::to_owned)
    };
    let there_and_back = || {
        host.within(|| {
            let fdb = Fdb::open().unwrap();
            let diversion = fdb.prepare("lan0", VNIC, "o0", None).unwrap();
            fdb.divert(&diversion).unwrap();
            fdb.divert(&diversion).unwrap();
            let diverted = entry().unwrap();
            assert!(diverted.contains("dev o0") && diverted.contains("static"), "{diverted}");
            fdb.undo(&diversion).unwrap();
            fdb.undo(&diversion).unwrap();
        });
        entry()
    };
    assert_eq!(there_and_back(), None, "the bridge did not know the MAC, and does not again");
    vm.write(&numbered(CLIENT, VNIC, 1));
    until("the MAC learned", || entry().is_some());
    let learned = there_and_back().unwrap();
    assert!(learned.contains("dev vm0") && !learned.contains("static"), "{learned}");
    host.command("bridge", &format!("fdb replace {VNIC} dev vm0 master static"));
    let fixed = there_and_back().unwrap();
    assert!(fixed.contains("dev vm0") && fixed.contains("static"), "{fixed}");
    drop(other);
}
