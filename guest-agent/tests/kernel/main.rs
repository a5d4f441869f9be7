//! The IO modules against the real kernel, in network namespaces of their own.
//!
//! Namespaces belong to threads here: each test runs in a thread that leaves the machine's network first of all, so that
//! nothing it does can touch it, and what it made is gone when it ends.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod addresses;
mod agent;
mod answers;
mod bus;
mod clients;
mod everyone;
mod fallback;
mod families;
mod farewell;
mod late;
mod leaving;
mod obtained;
mod obtaining;
mod place;
mod refused;
mod returning;
mod switch;
mod traffic;
