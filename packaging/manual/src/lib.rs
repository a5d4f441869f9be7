//! What the man pages are made of.

pub mod configuration;
