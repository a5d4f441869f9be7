//! What a migration would take: time, data and pause, by each way that QEMU has, and by the one it has not.
//!
//! Pure arithmetic over a [`Situation`]: no IO, no clock. All sizes are bytes, all times seconds, all rates bytes per
//! second, unless a name says otherwise.
#![no_std]

extern crate alloc;

mod advice;
mod compression;
mod converge;
mod hot_skip;
mod paper;
mod postcopy;
mod rounds;
mod writes;

use serde::{Deserialize, Serialize};

use self::rounds::PreCopy;
pub use self::{
    advice::{Abilities, Advice, advise},
    paper::figure_12,
    writes::{Class, Watched, Writes},
};

/// A page of memory.
pub const PAGE: f64 = 4096.0;
/// QEMU sends a page behind a header of this many bytes (migration/ram.c, `save_page_header`), a page of zeroes as the
/// header and one byte.
const HEADER: f64 = 8.0;
/// The least that QEMU sends before it looks again: its rate limit counts in slices of 100 ms (migration/migration.c,
/// `BUFFER_DELAY`).
const SLICE: f64 = 0.1;
/// More rounds than this come to no end that anybody would wait for.
const ROUNDS: u32 = 500;
/// A prediction stops here: a day.
const LONGEST: f64 = 86_400.0;

/// The VM, and the way that it has to go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Situation {
    /// The VM's memory.
    pub memory: f64,
    /// What of it holds anything but zeroes.
    pub data: f64,
    /// How it is written.
    pub writes: Writes,
    /// What is left of `data` when it is compressed: 1 is nothing gained.
    pub compressed: f64,
    /// Disks that would have to be copied, where they are not shared.
    pub disk: f64,
    /// What the stream gets.
    pub rate: f64,
    /// Between the hosts.
    pub round_trip: f64,
    /// The pause that QEMU aims at (`virsh migrate-setmaxdowntime`).
    pub downtime: f64,
}

/// What one way would take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// From `virsh migrate` to its end.
    pub seconds: f64,
    /// Of memory, over the network.
    pub bytes: f64,
    /// The VM stands still.
    pub pause: f64,
    /// Passes over the memory.
    pub rounds: u32,
    /// The VM runs, and is slow: its pages come from afar, or its CPUs are held back.
    pub slow: f64,
}

/// All ways. `None`: it comes to no end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Predictions {
    /// QEMU's own: again and again what was written meanwhile.
    pub pre_copy: Option<Prediction>,
    /// The paper's: what is written often waits. No QEMU has it.
    pub hot_skip: Option<Prediction>,
    /// Pre-copy, and the VM's CPUs are held back until it ends.
    pub auto_converge: Option<Prediction>,
    /// One pass, then the VM goes, and the rest follows it.
    pub post_copy: Option<Prediction>,
    /// Pre-copy over several connections, compressed.
    pub compressed: Option<Prediction>,
}

impl Situation {
    /// What each way would take.
    #[must_use]
    pub fn predict(&self) -> Predictions {
        Predictions {
            pre_copy: rounds::simulate(self, &mut PreCopy),
            hot_skip: hot_skip::predict(self),
            auto_converge: converge::predict(self),
            post_copy: postcopy::predict(self),
            compressed: compression::predict(self),
        }
    }

    /// What so many bytes of pages are as a stream.
    fn stream(bytes: f64) -> f64 {
        bytes * (1.0 + HEADER / PAGE)
    }

    /// The first pass, beyond the pages that hold something.
    fn zeroes(&self) -> f64 {
        (self.memory - self.data).max(0.0) / PAGE * (HEADER + 1.0)
    }

    /// libvirt's own work before the memory and after it: both QEMUs, and the hosts' conversation.
    fn around(&self) -> f64 {
        // The lab's idle VM of 192 MiB moves in 0.6 to 0.9 s over a link without limit. Round trips: libvirt's five phases,
        // and its connections with their handshakes, counted and not measured.
        const PROGRAMS: f64 = 0.6;
        const ROUND_TRIPS: f64 = 15.0;
        PROGRAMS + ROUND_TRIPS * self.round_trip
    }

    /// The pause, beside the memory: the devices' state, and the word to go on.
    fn handover(&self) -> f64 {
        const DEVICES: f64 = 0.05;
        const ROUND_TRIPS: f64 = 3.0;
        DEVICES + ROUND_TRIPS * self.round_trip
    }
}
