//! The host's side of LSM: the libvirt hook, and what the host service is made of.
#![deny(unsafe_code)] // but in raw.rs

mod admission;
mod adopt;
mod arrival;
pub mod check;
mod claims;
mod clock;
pub mod command;
pub mod config;
mod departure;
mod dial;
pub mod divert;
pub mod domain;
pub mod estimate;
pub mod filters;
mod foresight;
mod guest_line;
pub mod hook;
mod host;
pub mod hostile;
mod init;
mod inventory;
mod keys;
pub mod libvirt;
mod line;
pub mod listening;
mod moved;
pub mod peer;
mod peer_line;
mod random;
mod raw;
pub mod replay;
pub mod report;
pub mod service;
pub mod status;
pub mod stream;
mod together;
pub mod tunnel;

/// An error with its causes, in one line.
pub fn story(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
