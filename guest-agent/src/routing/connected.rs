//! The main table's routes for a vNIC whose own routes and addresses are somebody else's to exchange.

use nix::libc;

use super::{
    Exit, PROTOCOL, RTA_DST, RTA_OIF, Routing, Source, connected_message, default_message, family, gateway, network,
    octets, table_of,
};
use crate::netlink::{Changed, Error, attribute, u32_at};

impl Routing {
    /// [`Routing::replace_default`] without a source, for a vNIC whose address somebody else may exchange: the kernel takes a default route away
    /// together with the address that it names.
    pub fn replace_unbound_default(&mut self, exit: &Exit, metric: u32) -> Result<(), Error> {
        let request = default_message(libc::RT_TABLE_MAIN.into(), exit, Some(metric), Source::Open);
        self.change_all([request], || format!("set the default route via {} at metric {metric}", exit.gateway))
    }

    /// Has the main table know the prefix of an exit as its link's, where nobody has told it: the kernel does not for an
    /// address whose routes its owner keeps in another table.
    pub fn connect(&mut self, exit: &Exit) -> Result<Changed, Error> {
        if self.is_connected(exit)? {
            return Ok(Changed::No);
        }
        let request = connected_message(libc::RT_TABLE_MAIN.into(), exit, Source::Open);
        self.change_all([request], || format!("route the prefix of {}/{} to its vNIC", exit.source, exit.prefix))?;
        Ok(Changed::Yes)
    }

    /// Undoes [`Routing::connect`]. Routes of others stay.
    pub fn disconnect(&mut self, exit: &Exit) -> Result<Changed, Error> {
        let mut any = Changed::No;
        for raw in self.connections_of(exit)?.into_iter().filter(|raw| raw[5] == PROTOCOL) {
            let what = || format!("remove the route to the prefix of {}/{}", exit.source, exit.prefix);
            if self.delete_raw(&raw).map_err(|cause| Error::new(what(), cause))? == Changed::Yes {
                any = Changed::Yes;
            }
        }
        Ok(any)
    }

    /// Whether the main table knows the prefix of an exit as its link's.
    pub fn is_connected(&mut self, exit: &Exit) -> Result<bool, Error> {
        Ok(!self.connections_of(exit)?.is_empty())
    }

    fn connections_of(&mut self, exit: &Exit) -> Result<Vec<Vec<u8>>, Error> {
        let prefix = octets(network(exit.source, exit.prefix));
        self.routes(|fixed, rest| {
            i32::from(fixed[0]) == family(exit.source)
                && table_of(fixed, rest) == u32::from(libc::RT_TABLE_MAIN)
                && fixed[1] == exit.prefix
                && attribute(rest, RTA_DST).is_some_and(|found| found == prefix)
                && attribute(rest, RTA_OIF).and_then(|value| u32_at(value, 0)) == Some(exit.ifindex)
                && gateway(rest).is_none()
        })
    }
}
