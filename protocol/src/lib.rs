//! Messages, framing and the pure state machines of LSM. No IO and no clock: a socket, a file or the time cannot even
//! be named here.
#![no_std]

extern crate alloc;

mod mac;

pub use mac::{Mac, NotAMac};
