//! The simulator against what can be worked out by hand, and against the papers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lsm_plan::{Abilities, Class, Situation, Watched, Writes, advise, figure_12};

const MIB: f64 = 1_048_576.0;
const MBIT: f64 = 125_000.0;

fn vm(memory: f64, writes: Writes, mbit: f64) -> Situation {
    Situation {
        memory,
        data: memory,
        writes,
        compressed: 1.0,
        disk: 0.0,
        rate: mbit * MBIT,
        round_trip: 0.0,
        downtime: 0.3,
    }
}

fn cyclic(bytes: f64, period: f64) -> Writes {
    Writes::new(vec![Class { bytes, period }])
}

fn near(value: f64, wanted: f64) {
    assert!((value / wanted - 1.0).abs() < 0.01, "{value} is not {wanted}");
}

#[test]
fn an_idle_vm_is_sent_once() {
    let mut vm = vm(1024.0 * MIB, Writes::default(), 800.0);
    vm.data = 200.0 * MIB;
    let way = vm.predict().pre_copy.unwrap();
    // 8 bytes of header for each page, 9 bytes for each of zeroes.
    let bytes = 200.0 * MIB * (4104.0 / 4096.0) + 824.0 * MIB / 4096.0 * 9.0;
    near(way.bytes, bytes);
    near(way.seconds, 0.6 + bytes / vm.rate);
    assert!(way.pause < 0.4, "{way:?}");
}

#[test]
fn each_round_is_what_was_written_in_the_one_before() {
    // 10 MiB/s of 1 GiB, over 100 MB/s: all but the last 30 MB take 10.4 s; then 1.09e8, 0.083e8 and so on.
    let vm = vm(1024.0 * MIB, cyclic(1024.0 * MIB, 102.4), 800.0);
    let way = vm.predict().pre_copy.unwrap();
    let header = 4104.0 / 4096.0;
    let first = 1024.0 * MIB - 30e6;
    let written = first * header / 1e8 * 10.0 * MIB;
    let second = written; // and the 30 MB that were left stay for the end, written again or not
    let third = second * header / 1e8 * 10.0 * MIB;
    near(way.bytes, header * (first + second + third + 30e6));
}

#[test]
fn the_curve_and_its_classes_are_one() {
    let classes = vec![Class { bytes: 30.0, period: 1.0 }, Class { bytes: 60.0, period: 4.0 }];
    let writes = Writes::new(classes);
    let spans = [1.0, 4.0, 12.0].map(|seconds| Watched { seconds, bytes: writes.within(seconds) });
    let found = Writes::watched(&spans, 1000.0);
    for seconds in [0.1, 0.5, 1.0, 2.0, 4.0, 12.0, 100.0] {
        near(found.within(seconds), writes.within(seconds));
    }
    near(found.rate(), 45.0);
}

#[test]
fn samples_that_contradict_each_other_make_a_curve_still() {
    let spans = [(1.0, 10.0), (2.0, 5.0), (2.0, 7.0), (4.0, 200.0)];
    let writes = Writes::watched(&spans.map(|(seconds, bytes)| Watched { seconds, bytes }), 1000.0);
    near(writes.within(1.0), 10.0);
    near(writes.within(4.0), 10.0); // it stood still from the first second to the second
    assert_eq!(Writes::watched(&[], 1000.0).within(5.0), 0.0);
}

#[test]
fn a_curve_that_still_rises_goes_on_until_the_memory_is_full() {
    let spans = [(1.0, 10.0), (4.0, 40.0)].map(|(seconds, bytes)| Watched { seconds, bytes });
    let writes = Writes::watched(&spans, 1000.0);
    near(writes.within(50.0), 500.0);
    near(writes.within(500.0), 1000.0);
}

#[test]
fn what_is_written_faster_than_it_is_sent_needs_another_way() {
    // 200 MiB over and over, each second, and 50 MB/s.
    let vm = vm(1024.0 * MIB, cyclic(200.0 * MIB, 1.0), 400.0);
    let ways = vm.predict();
    assert_eq!(ways.pre_copy, None);
    let post = ways.post_copy.unwrap();
    near(post.bytes, 1224.0 * MIB * 4104.0 / 4096.0);
    assert!(post.pause < 0.1 && post.slow > 4.0, "{post:?}");
    let converged = ways.auto_converge.unwrap();
    assert!(converged.slow > 10.0 && converged.seconds > post.seconds, "{converged:?}");
    let advice = advise(&vm, &ways, Abilities { compressed: false });
    assert_eq!(advice.flags, ["--live", "--postcopy", "--postcopy-after-precopy"]);
    assert!(advice.why.iter().any(|sentence| sentence.contains("unprivileged_userfaultfd=1")), "{advice:?}");
}

#[test]
fn little_that_is_written_always_fits_into_the_pause() {
    let vm = vm(1024.0 * MIB, cyclic(10.0 * MIB, 0.05), 400.0);
    let way = vm.predict().pre_copy.unwrap();
    let written = 10.0 * MIB * 4104.0 / 4096.0 / 50e6;
    assert!((0.05 + written..0.05 + 0.3).contains(&way.pause), "{way:?}");
    assert_eq!(advise(&vm, &vm.predict(), Abilities { compressed: false }).flags, ["--live"]);
}

#[test]
fn compression_is_advised_where_it_can_be_had() {
    let vm = Situation { compressed: 0.4, ..vm(4096.0 * MIB, cyclic(100.0 * MIB, 60.0), 200.0) };
    let ways = vm.predict();
    let (plain, compressed) = (ways.pre_copy.unwrap(), ways.compressed.unwrap());
    assert!(compressed.seconds < 0.45 * plain.seconds, "{compressed:?} {plain:?}");
    assert_eq!(advise(&vm, &ways, Abilities { compressed: false }).flags, ["--live"]);
    assert!(advise(&vm, &ways, Abilities { compressed: true }).flags.contains(&"zstd".to_owned()));
}

/// SEC'17, figure 12.
#[test]
fn hot_pages_that_wait_save_most_where_the_rate_is_low() {
    let saved = |mbit: f64| {
        let ways = figure_12(mbit).predict();
        1.0 - ways.hot_skip.unwrap().seconds / ways.pre_copy.unwrap().seconds
    };
    let savings = [100.0, 200.0, 400.0, 800.0, 1000.0].map(saved);
    assert!(savings[0] > 0.20, "{savings:?}");
    assert!(savings.is_sorted_by(|a, b| a >= b), "{savings:?}");
}

/// Whatever it is asked: an end in finite time, the pause it aimed at, and no gain from a slower link.
#[test]
fn any_situation() {
    for memory in [64.0, 1024.0, 262_144.0].map(|mib| mib * MIB) {
        for share in [0.0, 0.001, 0.05, 0.3, 1.0] {
            for period in [0.01, 1.0, 30.0, 3600.0] {
                let mut last = f64::INFINITY;
                for mbit in [10.0, 100.0, 1000.0, 100_000.0] {
                    let vm = vm(memory, cyclic(memory * share, period), mbit);
                    let ways = vm.predict();
                    let all = [ways.pre_copy, ways.hot_skip, ways.auto_converge, ways.post_copy, ways.compressed];
                    for way in all.into_iter().flatten() {
                        assert!(way.seconds.is_finite() && way.bytes.is_finite(), "{vm:?}: {way:?}");
                        assert!(way.pause <= 0.3 * 1.01 + 0.05, "{vm:?}: {way:?}");
                    }
                    let post = ways.post_copy.unwrap();
                    assert!(post.bytes <= 2.01 * memory * 4104.0 / 4096.0, "{vm:?}: {post:?}");
                    if let Some(plain) = ways.pre_copy {
                        assert!(plain.seconds <= last * 1.001, "{vm:?}: {plain:?} and {last} s over less");
                        last = plain.seconds;
                    }
                }
            }
        }
    }
}
