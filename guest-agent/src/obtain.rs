//! Addresses of the new LAN, by whoever owns the vNIC in this VM: systemd-networkd, NetworkManager, or nobody; then we ask
//! ourselves. Whoever it is keeps them alive from then on, and puts its routes into the vNIC's own table.

mod network_manager;
mod networkd;
mod owner;

use std::{net::IpAddr, time::Duration};

use lsm_protocol::{Addressing, Millis, V4, V6};
use tokio::time::{Instant, sleep};

use crate::{
    dhcp::{self, Card, Lease},
    netlink,
    routing::Routing,
    slaac,
    vnic::{self, Vnics},
};
pub use owner::Owner;

/// How long an owner may take. It starts a client, which may wait for the link; NetworkManager waits for both families.
const PATIENCE: Duration = Duration::from_secs(12);
/// The kernel is looked at so often meanwhile.
const LOOK: Duration = Duration::from_millis(25);
/// The owner is asked so often whether it has given up: it has better things to do.
const ASK: Duration = Duration::from_millis(500);

/// What is wanted for which vNIC.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub card: Card,
    pub name: String,
    /// Where the routes for it belong.
    pub table: u32,
    pub addressing: Addressing,
}

impl Wanted {
    /// An address by DHCP.
    #[must_use]
    pub fn v4(&self) -> bool {
        matches!(self.addressing.v4, V4::Dhcp(_))
    }

    /// One by stateless autoconfiguration.
    #[must_use]
    pub fn v6(&self) -> bool {
        matches!(self.addressing.v6, V6::Slaac(_))
    }
}

/// One that was got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub address: IpAddr,
    pub prefix_len: u8,
    pub gateway: IpAddr,
}

/// All of them, and what is ours to keep alive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Obtained {
    pub addresses: Vec<Address>,
    pub lease: Option<Lease>,
}

/// Why there are none.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Dhcp(#[from] dhcp::Failure),
    #[error(transparent)]
    Slaac(#[from] slaac::Failure),
    #[error("{0} did not do it: {1}")]
    Owner(Owner, String),
    #[error("{owner} got no {missing} within {} s; see \"{}\"", PATIENCE.as_secs(), .owner.log())]
    Late { owner: Owner, missing: &'static str },
    #[error(transparent)]
    Bus(#[from] zbus::Error),
    #[error(transparent)]
    Routes(#[from] netlink::Error),
    #[error(transparent)]
    Card(#[from] vnic::Error),
}

/// Before the vNIC comes up: an owner that has something else for it would begin with that.
///
/// # Errors
/// The owner does not answer.
pub async fn claim(owner: Owner, wanted: &Wanted) -> Result<(), Failure> {
    match owner {
        Owner::Networkd => networkd::claim(wanted).await,
        Owner::Nobody | Owner::NetworkManager => Ok(()),
    }
}

/// Gets what is wanted, after [`claim`]. The vNIC is up; with [`Owner::Nobody`] its parameters are as [`slaac::PARAMETERS`] says.
///
/// # Errors
/// The first that fails.
pub async fn obtain(owner: Owner, wanted: &Wanted, now: impl Fn() -> Millis) -> Result<Obtained, Failure> {
    match owner {
        Owner::Nobody => by_us(wanted, now).await,
        Owner::Networkd => {
            let bus = networkd::ask(wanted).await?;
            by_owner(owner, wanted, async || networkd::complaint(&bus, wanted).await).await
        }
        Owner::NetworkManager => {
            let activation = network_manager::ask(wanted).await?;
            by_owner(owner, wanted, async || network_manager::complaint(&activation).await).await
        }
    }
}

/// Whatever an owner was asked to do for a vNIC, it stops doing, and does what it did before.
///
/// # Errors
/// It does not answer.
pub async fn give_up(owner: Owner, card: Card) -> Result<(), Failure> {
    match owner {
        Owner::Nobody => Ok(()),
        Owner::Networkd => networkd::give_up(card).await,
        Owner::NetworkManager => network_manager::give_up(card.mac).await,
    }
}

async fn by_us(wanted: &Wanted, now: impl Fn() -> Millis) -> Result<Obtained, Failure> {
    let vnics = Vnics::open()?;
    let v4 = async { if wanted.v4() { dhcp::acquire(wanted.card, now).await.map(Some) } else { Ok(None) } };
    let v6 = async { if wanted.v6() { slaac::acquire(wanted.card, &vnics).await.map(Some) } else { Ok(None) } };
    let (lease, configured) = tokio::join!(v4, v6);
    let (lease, configured) = (lease?, configured?);
    let v4 = lease.map(|lease| Address {
        address: lease.address.into(),
        prefix_len: lease.prefix_len,
        gateway: lease.gateway.into(),
    });
    let v6 = configured.map(|one| Address {
        address: one.address.into(),
        prefix_len: one.prefix_len,
        gateway: one.gateway.into(),
    });
    Ok(Obtained { addresses: v4.into_iter().chain(v6).collect(), lease })
}

/// Until the kernel shows what the owner has done; `complaint` says when it has given up.
async fn by_owner(
    owner: Owner,
    wanted: &Wanted,
    complaint: impl AsyncFn() -> Result<Option<String>, Failure>,
) -> Result<Obtained, Failure> {
    let (vnics, mut routing) = (Vnics::open()?, Routing::open()?);
    let deadline = Instant::now() + PATIENCE;
    let mut asked = Instant::now();
    loop {
        let found = standing(wanted, &vnics, &mut routing).await?;
        let has = |v4: bool| found.iter().any(|one| one.address.is_ipv4() == v4);
        let missing = match (wanted.v4() && !has(true), wanted.v6() && !has(false)) {
            (true, _) => "IPv4 address with a router",
            (false, true) => "IPv6 address with a router",
            (false, false) => return Ok(Obtained { addresses: found, lease: None }),
        };
        if asked.elapsed() > ASK {
            if let Some(why) = complaint().await? {
                return Err(Failure::Owner(owner, why));
            }
            asked = Instant::now();
        }
        if Instant::now() > deadline {
            return Err(Failure::Late { owner, missing });
        }
        sleep(LOOK).await;
    }
}

/// Addresses of the vNIC that are ready, each with the router that its table names.
async fn standing(wanted: &Wanted, vnics: &Vnics, routing: &mut Routing) -> Result<Vec<Address>, Failure> {
    let routes = routing.default_routes_of(wanted.table)?;
    let found = vnics.find(wanted.card.mac).await?.map(|vnic| vnic.addresses).unwrap_or_default();
    let pending = vnics.autoconfigured(wanted.card.ifindex).await?;
    let ready = |address: &IpAddr| match address {
        IpAddr::V4(_) => wanted.v4(),
        IpAddr::V6(v6) => {
            wanted.v6()
                && !v6.is_unicast_link_local()
                && !pending.iter().any(|one| one.address == *v6 && (one.tentative || one.duplicate))
        }
    };
    let with_router = |(address, prefix_len): (IpAddr, u8)| {
        let of_family = routes.iter().filter(|route| route.v6 == address.is_ipv6());
        let gateway = of_family.min_by_key(|route| route.metric)?.gateway?;
        Some(Address { address, prefix_len, gateway })
    };
    Ok(found.into_iter().filter(|(address, _)| ready(address)).filter_map(with_router).collect())
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} via {}", self.address, self.prefix_len, self.gateway)
    }
}
