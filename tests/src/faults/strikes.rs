//! What goes wrong, and how it is done.

pub(super) mod agent;
pub(super) mod clients;
pub(super) mod hosts;
pub(super) mod libvirt;
pub(super) mod network;
pub(super) mod operator;

use std::{thread, time::Duration};

fn pause(milliseconds: u64) {
    thread::sleep(Duration::from_millis(milliseconds));
}
