//! Tunnels, filters, diversions and replays on the real kernel, between network namespaces that each test makes for
//! itself. The namespaces have no names and end with the test.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod diverting;
mod filtering;
mod frame;
mod full_frames;
mod hanging;
mod hearing;
mod host;
mod listening;
mod replaying;
mod streaming;
mod tap;
mod trying;
mod tunnelling;
