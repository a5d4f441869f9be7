//! The host's side of LSM: the libvirt hook, and what the host service is made of.

pub mod config;
pub mod divert;
pub mod domain;
pub mod filters;
pub mod hook;
pub mod libvirt;
pub mod peer;
pub mod replay;
pub mod tunnel;
