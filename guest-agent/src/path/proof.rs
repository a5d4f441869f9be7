//! The proof that rules and tables are heeded: before the addresses are announced, and after each change until the switch.

use std::net::IpAddr;

use crate::{kernel::Kernel, netlink::Error, record::Paths};

/// A packet to any peer leaves by the vNIC whose address it carries; or else which does not, in words.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn misled(kernel: &mut Kernel, paths: &Paths) -> Result<Option<String>, Error> {
    let snapshot = kernel.diag.snapshot()?;
    let subflows = snapshot.connections.iter().flat_map(|connection| &connection.subflows);
    let peers: Vec<IpAddr> = subflows.filter(|s| paths.old.carries(s.local.ip())).map(|s| s.remote.ip()).collect();
    for exit in paths.old.exits().chain(paths.new.exits()) {
        let Some(peer) = peers.iter().find(|peer| peer.is_ipv4() == exit.source.is_ipv4()) else { continue };
        let route = kernel.routing.route_get(*peer, Some(exit.source))?;
        if route.ifindex != exit.ifindex {
            return Ok(Some(format!(
                "packets from {} to {peer} would leave by interface {} instead of {}: another rule comes before ours; see \"ip rule\"",
                exit.source, route.ifindex, exit.ifindex
            )));
        }
    }
    Ok(None)
}
