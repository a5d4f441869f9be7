//! What the guest agent is made of. The modules below are thin: they translate between the kernel's words and ours, and
//! decide nothing.

pub mod connections;
pub mod mptcp;
pub mod neighbours;
pub mod netlink;
mod readiness;
pub mod routing;
pub mod sysctl;
pub mod vnic;
