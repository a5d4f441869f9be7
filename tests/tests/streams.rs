//! The migration's own stream over two paths between the hosts: libvirt and its QEMUs under `mptcpize`, the paths in
//! `host.toml`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use lsm_tests::{
    needs,
    site::Transport,
    stage::lacking,
    streams::{self, Hosts, StreamOptions},
};

const MUCH: u64 = 10 << 20;

#[test]
fn memory_takes_both_paths() {
    if lacking() || needs::lacking(streams::missing()) {
        return;
    }
    let mut hosts = Hosts::set(&StreamOptions::default(), Transport::Plain, |_| Ok(())).unwrap();
    hosts.set_rate(100).unwrap();
    hosts.fill(64).unwrap();
    let both = hosts.pair().unwrap();
    eprintln!("{both:?}");
    assert!(both.one.bytes[1] < 1 << 20, "plain TCP on two paths: {both:?}");
    assert!(both.two.reported.iter().all(|bytes| *bytes > MUCH), "the report says otherwise: {both:?}");
    assert!(both.two.bytes.iter().all(|bytes| *bytes > MUCH), "one path carried nearly all: {both:?}");
}
