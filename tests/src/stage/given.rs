//! A stage that somebody else has set up.

use std::{path::PathBuf, sync::Arc};

use super::Stage;
use crate::{
    guest::Guest,
    lan::Lan,
    shell::Result,
    site::{LabDir, Site},
    topology::Topology,
};

impl Stage {
    /// Of sites where `lsm-hook` is installed and looked after by systemd.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn given(topology: Topology, lans: Vec<Lan>, sites: Vec<Arc<Site>>, guest: Guest) -> Result<Stage> {
        let (services, hook) = (Vec::new(), PathBuf::from("/usr/sbin/lsm-hook"));
        let lab = LabDir::new(&topology)?;
        Ok(Stage { guest, services, vsock: None, sites, hook, lans, _lab: lab, topology })
    }
}
