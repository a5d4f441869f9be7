//! Messages, framing and the pure state machines of LSM. No IO and no clock: a socket, a file or the time cannot even
//! be named here.
#![no_std]

extern crate alloc;

mod addressing;
pub mod destination;
pub mod finding;
pub mod forecast;
pub mod frame;
pub mod guest;
mod hello;
pub mod hostile;
mod mac;
mod message;
pub mod proof;
pub mod report;
pub mod source;

pub use addressing::{Addresses, Addressing, Given, Subnet, V4, V6};
pub use hello::{Bye, Hello, NoCommonVersion, VERSIONS};
pub use mac::{Mac, NotAMac};
pub use message::*;
pub use proof::Proof;
