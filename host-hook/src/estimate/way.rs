//! The way to another host: how long a question and its answer take, and how much a stream gets.

use std::{net::IpAddr, time::Duration};

use lsm_protocol::{
    Peer, Uuid,
    frame::{Kind, Wire},
};
use tokio::time::{Instant, timeout};

use super::{EstimateError, PATIENCE};
use crate::{
    domain::Domain,
    inventory::parse_uuid,
    line::{Line, LineError},
    peer::{self, Identity},
    story,
};

/// Bytes per second.
pub(super) const MBIT: f64 = 125_000.0;
/// What TCP leaves of an Ethernet's 1500 bytes and their frame, with time stamps.
const PAYLOAD: f64 = 1448.0 / 1538.0;

/// Asks the host's service something that costs it nothing.
pub(super) async fn round_trip(
    identity: &Identity,
    to: &str,
    address: &str,
    domain: &Domain,
) -> Result<Duration, EstimateError> {
    let channel = peer::connect(identity, to, address).await?;
    let vm = parse_uuid(&domain.uuid).unwrap_or(Uuid([0; 16]));
    let talk = async {
        let mut line = Line::call(Box::new(channel), Wire::Stream, None).await?;
        let asked = Instant::now();
        line.send(Kind::Peer, &Peer::Locate { vm }).await?;
        let _: Peer = line.receive(Kind::Peer).await?;
        let took = asked.elapsed();
        line.close().await;
        Ok(took)
    };
    let mute = |why: String| EstimateError::Mute { to: to.to_owned(), why };
    let answer: Result<Duration, LineError> =
        timeout(PATIENCE, talk).await.map_err(|_| mute(format!("nothing within {} s", PATIENCE.as_secs())))?;
    answer.map_err(|error| mute(story(&error)))
}

/// What a stream to there gets at most, by the speed of the card that leads there, and whose word that is.
///
/// # Errors
/// In words, why nobody knows.
pub(super) async fn rate(address: &str) -> Result<(f64, String), String> {
    // Nothing is sent: the kernel only says by which address it would go.
    let probe = async {
        let socket = tokio::net::UdpSocket::bind(if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }).await?;
        socket.connect(address).await?;
        socket.local_addr()
    };
    let local = probe.await.map_err(|error| format!("there is no route: {error}"))?.ip();
    let card = card_of(local).ok_or_else(|| format!("no card has {local}"))?;
    let file = format!("/sys/class/net/{card}/speed");
    let speed = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse::<f64>().ok());
    match speed.filter(|mbit| *mbit > 0.0) {
        Some(mbit) => Ok((mbit * PAYLOAD * MBIT, format!("the speed of {card}: what is behind it may be slower"))),
        None => Err(format!("{card} does not tell its speed")),
    }
}

fn card_of(address: IpAddr) -> Option<String> {
    let cards = nix::ifaddrs::getifaddrs().ok()?;
    cards.into_iter().find_map(|card| {
        let own = card.address?;
        let v4 = own.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
        let own = v4.or_else(|| own.as_sockaddr_in6().map(|own| IpAddr::V6(own.ip())))?;
        (own == address).then_some(card.interface_name)
    })
}
