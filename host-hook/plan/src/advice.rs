//! What to type, and why.

use alloc::{borrow::ToOwned as _, format, string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{Prediction, Predictions, Situation};

/// What libvirt and QEMU of the source can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abilities {
    /// `--parallel` together with a compression method; libvirt 9.0 has it not.
    pub compressed: bool,
}

/// `virsh migrate` with these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advice {
    pub flags: Vec<String>,
    /// Sentences.
    pub why: Vec<String>,
}

/// Another way must save this share of the time to be worth its price.
const WORTH: f64 = 0.2;
/// Above this, one thread of QEMU is the bottleneck and not the network: 10 Gbit/s.
const ONE_THREAD: f64 = 1.25e9;

/// Weighs the ways against each other.
#[must_use]
pub fn advise(at: &Situation, ways: &Predictions, can: Abilities) -> Advice {
    let mut flags: Vec<String> = ["--live".to_owned()].into();
    let mut why = Vec::new();
    let better = |way: Option<Prediction>| match (way, ways.pre_copy) {
        (Some(way), Some(plain)) => way.seconds < plain.seconds * (1.0 - WORTH),
        (way, plain) => way.is_some() && plain.is_none(),
    };
    if can.compressed && better(ways.compressed) {
        flags.extend(["--parallel", "--parallel-connections", "4", "--comp-methods", "zstd"].map(str::to_owned));
        why.push("Compression is worth its CPU time here.".to_owned());
    } else if ways.pre_copy.is_none() {
        flags.extend(["--postcopy", "--postcopy-after-precopy"].map(str::to_owned));
        why.push(format!(
            "The VM writes faster ({:.0} MiB/s) than the stream can follow ({:.0} MiB/s): pre-copy alone comes to no end.",
            at.writes.rate() / MIB,
            at.rate / MIB
        ));
        why.push(
            "With post-copy it does, and each page is sent twice at most. But from the switch until the last page is \
             there the VM needs both hosts: a link that breaks then must come back (--postcopy-resume), or the VM is lost."
                .to_owned(),
        );
        why.push(
            "libvirt refuses it where the destination keeps its QEMU from userfaultfd, as Debian does; there, first: \
             sysctl -w vm.unprivileged_userfaultfd=1"
                .to_owned(),
        );
        match ways.auto_converge {
            Some(way) => why.push(format!(
                "Where that must not be risked: --auto-converge instead, {:.0} s, of which the VM is held back for {:.0} s.",
                way.seconds, way.slow
            )),
            None => why.push("--auto-converge would come to no end either.".to_owned()),
        }
    } else {
        why.push("Pre-copy ends by itself, and the VM runs on whatever breaks.".to_owned());
        if better(ways.post_copy) {
            why.push("Post-copy (--postcopy --postcopy-after-precopy) would be faster, at the risk of the VM if the link breaks.".to_owned());
        }
        if at.rate > ONE_THREAD {
            flags.extend(["--parallel", "--parallel-connections", "4"].map(str::to_owned));
            why.push("One thread cannot fill such a link: several connections.".to_owned());
        }
    }
    if at.disk > 0.0 {
        why.push(
            "Where the disks are not shared: --copy-storage-all, or --copy-storage-inc where their base images are at the \
             destination already."
                .to_owned(),
        );
    }
    if better(ways.hot_skip) {
        why.push(
            "To pass over what is written often (SEC'17) would help, and no QEMU does it; post-copy comes nearest."
                .to_owned(),
        );
    }
    Advice { flags, why }
}

const MIB: f64 = 1_048_576.0;
