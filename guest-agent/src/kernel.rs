//! The sockets to the kernel, opened once: at arrival there is no time to open any.

use crate::{connections::Diag, mptcp::PathManager, neighbours::Neighbours, routing::Routing, vnic::Vnics};

/// Everything the agent asks of the kernel goes through these.
pub struct Kernel {
    pub vnics: Vnics,
    pub routing: Routing,
    pub neighbours: Neighbours,
    pub path_manager: PathManager,
    pub diag: Diag,
}

impl Kernel {
    /// # Errors
    /// When the kernel lacks MPTCP or inet_diag, or the agent the capability.
    pub fn open() -> Result<Kernel, Box<dyn std::error::Error>> {
        Ok(Kernel {
            vnics: Vnics::open()?,
            routing: Routing::open()?,
            neighbours: Neighbours::open()?,
            path_manager: PathManager::open()?,
            diag: Diag::open()?,
        })
    }
}
