//! A count's view of each connection, for the report of the migration. What became of it is lsm-protocol's to say.

use std::net::{IpAddr, SocketAddr};

use lsm_protocol::{
    forecast::Obstacle,
    report::{
        Readdressed, Script,
        account::{Key, Look},
    },
};
use lsm_scripts::{Outcome, Ran};

use crate::{
    connections::{Connection, Legacy, Snapshot, State, Subflow},
    record::{Paths, Plugged},
};

/// Those that use an address of the migration.
pub(crate) fn looks<'a>(snapshot: &'a Snapshot, paths: &Paths) -> impl Iterator<Item = Look> + use<'a> {
    let (old, new) = (paths.old, paths.new);
    let legacy = snapshot.legacy.iter().filter(move |legacy| old.carries(legacy.local.ip())).map(look_at_legacy);
    let joinable = snapshot.connections.iter().filter_map(move |connection| look_at(connection, old, new));
    legacy.chain(joinable)
}

/// Which address takes whose place.
pub(crate) fn readdressed(paths: &Paths) -> Vec<Readdressed> {
    let of_family = |from: IpAddr| paths.new.exits().map(|exit| exit.source).find(|to| to.is_ipv4() == from.is_ipv4());
    paths.old.exits().map(|exit| Readdressed { from: exit.source, to: of_family(exit.source) }).collect()
}

/// Those bound to an address that is left.
pub(crate) fn left(sockets: Vec<SocketAddr>, paths: &Paths) -> Vec<SocketAddr> {
    sockets.into_iter().filter(|socket| paths.old.carries(socket.ip())).collect()
}

fn look_at_legacy(legacy: &Legacy) -> Look {
    Look {
        key: Key::Tcp { local: legacy.local, remote: legacy.remote },
        peer: legacy.remote,
        on_old: true,
        closing: legacy.state != State::Established,
        obstacle: Some(legacy.obstacle),
        rtt_old: 0, // medians are of connections that can move
        rtt_new: 0,
        received: legacy.bytes_received,
        silent: legacy.silent_ms.into(),
    }
}

fn look_at(connection: &Connection, old: Plugged, new: Plugged) -> Option<Look> {
    let on = |path: Plugged| connection.subflows.iter().filter(move |subflow| path.carries(subflow.local.ip()));
    let joined = on(new).any(|subflow| subflow.established);
    let shown = on(old).next().or_else(|| on(new).next())?;
    let heard = || on(old).chain(on(new)).filter(|subflow| subflow.bytes_received > 0);
    let rtt = |path: Plugged| on(path).map(|subflow| subflow.rtt_us).filter(|rtt| *rtt > 0).min().unwrap_or(0);
    let obstacle = if connection.full { Obstacle::Full } else { Obstacle::NotJoined { ago: 0 } };
    Some(Look {
        key: Key::Mptcp(connection.token),
        peer: shown.remote,
        on_old: on(old).next().is_some(),
        closing: false,
        obstacle: (!joined).then_some(obstacle),
        rtt_old: rtt(old),
        rtt_new: rtt(new),
        received: heard().map(|subflow: &Subflow| subflow.bytes_received).fold(0, u64::saturating_add),
        silent: heard().map(|subflow| subflow.silent_ms.into()).min().unwrap_or(u64::from(u32::MAX)),
    })
}

/// The operator's scripts, as a report names them.
pub(crate) fn scripts(ran: &[Ran]) -> impl Iterator<Item = Script> {
    ran.iter().map(|one| Script {
        name: one.name.clone(),
        status: match one.outcome {
            Outcome::Exited(status) => Some(status),
            Outcome::Killed(_) | Outcome::TooSlow | Outcome::Refused(_) => None,
        },
        outcome: one.to_string(),
    })
}
