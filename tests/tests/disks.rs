//! Disks that hosts do not share move with their VM, over both paths between the hosts: all of it, what is above a base
//! that both have, and back again with that alone. A program in the VM writes to the disk all the while.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use lsm_tests::{
    connections::Connections,
    disks::{self, DEVICE},
    needs,
    shell::wait_for,
    site::{Site, Transport},
    stage::{StageOptions, lacking},
    streams::{self, Hosts, Moved, StreamOptions},
};

const BLOCK: usize = 4096;
const LENGTH: usize = 48 << 20;
const MUCH: u64 = 10 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// The VM's disk as it has to be.
struct Disk {
    contents: Vec<u8>,
    /// How many blocks have been written since the beginning.
    written: usize,
}

impl Disk {
    /// Has the VM write one block after the other, all over the disk, and not too quickly: to whoever copies each is a cluster
    /// of 64 KiB, of which the disk has 768.
    fn write(&self, hosts: &Hosts) {
        let (begin, blocks) = (self.written, LENGTH / BLOCK);
        let script = format!(
            "i={begin}; rm -f /tmp/stop; while [ ! -e /tmp/stop ]; do printf '%0{BLOCK}d' $i >/tmp/block; \
             dd if=/tmp/block of={DEVICE} bs={BLOCK} seek=$((i * 61 % {blocks})) conv=notrunc,fsync || exit; \
             i=$((i + 1)); echo $i >/tmp/written; sleep 0.05; done; touch /tmp/stopped"
        );
        hosts.stage.guest.must("rm -f /tmp/written /tmp/stopped").unwrap();
        hosts.stage.guest.spawn("blocks", &script).unwrap();
        wait_for("a block to be written", LIMIT, || hosts.stage.guest.must("cat /tmp/written").ok()).unwrap();
    }

    /// How many the VM has written by now.
    fn count(&self, hosts: &Hosts) -> usize {
        hosts.stage.guest.must("cat /tmp/written").unwrap().trim().parse().unwrap()
    }

    /// Ends that; then the disk holds what it has to, as the VM reads it and as its host does.
    fn is_right(&mut self, hosts: &Hosts) {
        hosts.stage.guest.must("touch /tmp/stop").unwrap();
        wait_for("the last block", LIMIT, || hosts.stage.guest.must("cat /tmp/stopped").ok()).unwrap();
        let written = self.count(hosts);
        for number in self.written..written {
            let at = number * 61 % (LENGTH / BLOCK) * BLOCK;
            self.contents[at..at + BLOCK].copy_from_slice(format!("{number:0BLOCK$}").as_bytes());
        }
        self.written = written;
        // From the disk, not from what the VM remembers.
        let sum = format!("sync; echo 3 >/proc/sys/vm/drop_caches; md5sum {DEVICE}");
        let inside = hosts.stage.guest.exec_within(&sum, LIMIT).unwrap().stdout;
        let site = hosts.stage.guest.site().unwrap().clone();
        let expected = disks::checksum(&self.contents, site.dir()).unwrap();
        assert_eq!(inside.split_whitespace().next(), Some(expected.as_str()), "the VM reads something else");
        assert!(disks::contents(&site).unwrap() == self.contents, "its host reads something else");
    }

    /// Moves the VM while it writes.
    fn moves(&mut self, hosts: &Hosts, connections: &mut Connections, flag: &str) -> Moved {
        self.write(hosts);
        let before = self.count(hosts);
        let moved = hosts.moved(&[flag]).unwrap_or_else(|error| panic!("{error}\n{}", hosts.stage.story()));
        assert!(self.count(hosts) > before + 1, "nothing was written in the move");
        connections.alive().unwrap();
        self.is_right(hosts);
        println!("{flag}: {moved:?}, {} blocks written meanwhile", self.written - before);
        moved
    }
}

/// Both paths carried much, and the report says so.
fn shared(moved: &Moved) {
    for bytes in [moved.bytes, moved.reported] {
        assert!(bytes.iter().all(|bytes| *bytes > MUCH), "{moved:?}");
    }
}

fn all(moved: &Moved) -> u64 {
    moved.bytes.iter().sum()
}

#[test]
fn a_disk_moves_whole_and_as_a_difference_and_back_with_a_difference() {
    if lacking()
        || needs::lacking(streams::missing().or_else(|| needs::missing(&["/usr/bin/qemu-img"], "run tests/install")))
    {
        return;
    }
    let mut disk = Disk { contents: disks::noise(LENGTH), written: 0 };
    let options = StreamOptions { stage: disks::with_disk(StageOptions::default()), ..StreamOptions::default() };
    let lay = |site: &Site| {
        disks::lay_base(site, &disk.contents)?;
        disks::lay_overlay(site)
    };
    let hosts = Hosts::set(&options, Transport::Multipath, lay).unwrap();
    hosts.set_rate(200).unwrap();
    let mut connections = Connections::open(&hosts.stage, 0).unwrap();
    let [montreal, dallas] = ["montreal", "dallas"].map(|name| hosts.stage.site(name).clone());

    // No room: it is said, and nothing is lost.
    disks::take_room(&dallas, 8 << 20).unwrap();
    disks::lay_whole(&dallas, LENGTH).unwrap();
    disk.write(&hosts);
    let refused = hosts.moved(&["--copy-storage-all"]).unwrap_err().to_string();
    println!("no room: {refused}");
    assert!(refused.contains("No space left on device"), "{refused}");
    connections.alive().unwrap();
    hosts.stage.agent_is(&["idle"], LIMIT).unwrap();
    hosts.stage.settled(LIMIT).unwrap();
    assert_eq!(hosts.stage.guest.site().unwrap().name(), "montreal");
    disk.is_right(&hosts);
    disks::give_room(&dallas).unwrap();

    let there = disk.moves(&hosts, &mut connections, "--copy-storage-inc");
    shared(&there);
    // What was left here is out of date.
    disks::lay_overlay(&montreal).unwrap();
    let back = disk.moves(&hosts, &mut connections, "--copy-storage-inc");
    shared(&back);
    disks::lay_whole(&dallas, LENGTH).unwrap();
    let whole = disk.moves(&hosts, &mut connections, "--copy-storage-all");
    shared(&whole);
    for difference in [there, back] {
        assert!(all(&difference) + (LENGTH as u64) / 4 < all(&whole), "{difference:?} beside {whole:?}");
    }
    connections.end().unwrap();
}
