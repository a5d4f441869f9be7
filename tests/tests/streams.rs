//! The migration's own stream over two paths between the hosts: libvirt and its QEMUs under `mptcpize`, the paths in
//! `host.toml`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lsm_tests::{needs, stage::lacking, streams};

const MUCH: u64 = 10 << 20;

#[test]
fn memory_takes_both_paths() {
    if lacking() || needs::lacking(streams::missing()) {
        return;
    }
    let both = streams::both(100).unwrap();
    eprintln!("{both:?}");
    assert!(both.one.bytes[1] < 1 << 20, "plain TCP on two paths: {both:?}");
    assert!(both.reported.iter().all(|bytes| *bytes > MUCH), "the report says otherwise: {both:?}");
    assert!(both.two.bytes.iter().all(|bytes| *bytes > MUCH), "one path carried nearly all: {both:?}");
}
