//! What the guest agent is made of. The decisions are lsm-protocol's; the modules here translate between the
//! kernel's words and ours.

mod accounting;
pub mod bus;
mod callers;
pub mod changes;
pub mod check;
mod checksum;
pub mod closures;
pub mod command;
pub mod config;
pub mod connections;
pub mod daemon;
pub mod dhcp;
pub mod endpoints;
pub mod farewell;
pub mod force;
pub mod foresight;
pub mod hostile;
pub mod invitation;
pub mod kernel;
mod key;
pub mod mptcp;
pub mod neighbours;
pub mod netlink;
pub mod obtain;
pub mod path;
mod raw;
pub mod record;
mod rehearse;
pub mod routing;
mod signals;
pub mod slaac;
pub mod switched;
pub mod sysctl;
mod tally;
pub mod transport;
pub mod vnic;
