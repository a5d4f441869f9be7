//! The host's side of LSM: the libvirt hook, and what the host service is made of.

pub mod config;
pub mod domain;
pub mod hook;
pub mod peer;
