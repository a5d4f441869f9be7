//! The default route of a VM that has arrived: from now on the kernel makes it, and takes it back, as routers advertise.

use std::time::Instant;

use tokio::time::{interval, timeout};

use super::{AGAIN, Card, Failure, LOOK, PATIENCE, netlink};
use crate::{
    neighbours::{self, Routers},
    routing::{DefaultRoute, Exit, PROTOCOL, Routing},
    sysctl,
};

/// linux/rtnetlink.h.
const RTPROT_RA: u8 = 9;

/// Has the kernel make the default route, in place of the agent's by `exit`. That stays until the kernel's is there: at the
/// next metric, since the kernel makes none that is there already (fib6_add_rt2node, 6.18).
///
/// # Errors
/// No router advertised itself; the agent's route stays.
pub async fn follow(card: Card, exit: Exit) -> Result<(), Failure> {
    let name = neighbours::interface_name(card.ifindex)?;
    sysctl::set(&format!("net/ipv6/conf/{}/accept_ra_defrtr", name.to_string_lossy()), "1")?;
    let mut routing = Routing::open()?;
    for was in of(&mut routing, card, PROTOCOL)? {
        routing.replace_default(&exit, was.metric.saturating_add(1))?;
        routing.delete_default(&was)?;
    }
    let routers = Routers::of(card.ifindex, card.mac)?;
    let there = async {
        let mut ticks = interval(LOOK);
        let mut asked: Option<Instant> = None;
        loop {
            ticks.tick().await;
            if asked.is_none_or(|asked| asked.elapsed() > AGAIN) && routers.ask()? {
                asked = Some(Instant::now());
            }
            if !of(&mut routing, card, RTPROT_RA)?.is_empty() {
                for ours in of(&mut routing, card, PROTOCOL)? {
                    routing.delete_default(&ours)?;
                }
                return Ok(());
            }
        }
    };
    timeout(PATIENCE, there).await.unwrap_or(Err(Failure::NoAdvertisement(PATIENCE)))
}

/// The card's default routes that one program made.
fn of(routing: &mut Routing, card: Card, protocol: u8) -> Result<Vec<DefaultRoute>, netlink::Error> {
    let mut routes = routing.default_routes()?;
    routes.retain(|route| route.v6 && route.ifindex == Some(card.ifindex) && route.protocol == protocol);
    Ok(routes)
}
