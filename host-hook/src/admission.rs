//! `migrate begin`: who runs this VM, where do its vNICs belong here, and what is the source offered.

mod locate;

use std::{collections::BTreeMap, net::IpAddr, rc::Rc, sync::Arc, time::Duration};

use lsm_protocol::{
    Addressing, Decline, Drain, Given, Join, Mac, MigrationId, Offer, Peer, Running, TunnelId, Uuid, V4, V6,
    WireguardEnd,
    destination::{self, Destination, Order, Policy, Short, Unprepared},
    forecast::Survival,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use self::locate::{LOCATE, Located, locate};
use crate::{
    arrival::Saved,
    claims::Expected,
    clock::now,
    config::{self, Lan, Subnet},
    domain::{Domain, DomainError, Plug, rewrite},
    hook::HookAnswer,
    host::{Host, SPARE_BRIDGE, vni},
    peer_line::{PeerHandle, PeerNews},
    random::random,
    report::Account,
    tunnel::{self, wireguard::WireguardError},
};

/// So many VMs are looked for, offered and built for at a time; the others wait for their turn: each has to have its tunnels
/// within [`destination::ACCEPT`], and the kernel builds one after the other.
const AT_ONCE: usize = 16;
/// None waits for its turn longer than this: libvirt holds its lock on the VM meanwhile.
const TURN: Duration = Duration::from_secs(60);
/// Before the guest is waited for, an admission takes no longer than this: its turn, where the VM is, how its connections
/// stand, the ends of WireGuard, the tunnels' ends.
pub const LONGEST: Duration = TURN
    .saturating_add(LOCATE)
    .saturating_add(Duration::from_millis(destination::FORESEE))
    .saturating_add(LOCATE)
    .saturating_add(Duration::from_millis(destination::ACCEPT));

/// What becomes of the migration.
pub enum Verdict {
    /// LSM has nothing to do but plug the vNICs: the VM stays on its LAN.
    Plug(String),
    Move(Box<Admitted>),
}

/// The source was found; the machine can begin.
pub struct Admitted {
    pub saved: Saved,
    pub orders: Vec<Order>,
    /// What libvirt gets if all goes well.
    pub waiting_xml: String,
    pub answer: Option<oneshot::Sender<HookAnswer>>,
    pub peer: PeerHandle,
    pub news: mpsc::UnboundedReceiver<PeerNews>,
    /// Until it is built for.
    pub turn: Option<Turn>,
    /// Until its migration claims what it has been given.
    pub expected: Option<Expected>,
}

/// The right to be built for.
pub type Turn = OwnedSemaphorePermit;

/// Who may be built for.
pub struct Door(Arc<Semaphore>);

impl Default for Door {
    fn default() -> Door {
        Door(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Door {
    async fn turn(&self, vm: &str) -> Result<Turn, Refused> {
        if self.0.available_permits() == 0 {
            tracing::info!(vm, at_once = AT_ONCE, "waits for its turn");
        }
        let turn = tokio::time::timeout(TURN, self.0.clone().acquire_owned()).await;
        turn.ok().and_then(Result::ok).ok_or(Refused::Crowd)
    }
}

/// Why the VM cannot come here.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Domain(#[from] DomainError),
    #[error("no peer is configured here; add a [peer.NAME] section to host.toml for each host that VMs come from")]
    NoPeer,
    #[error(
        "no peer runs this VM ({0}); check that lsm-hook runs on the source and that libvirtd was restarted since it was installed"
    )]
    NotFound(String),
    #[error("no LAN is configured here; add a [lan.NAME] section to host.toml")]
    NoLan,
    #[error(
        "metadata: LAN {lan} of vNIC {mac} is known neither here nor at {peer}; correct the name, or add [lan.{lan}] to host.toml"
    )]
    UnknownLan { lan: String, mac: Mac, peer: String },
    #[error("bridge {bridge} of LAN {lan} does not exist here; create it or correct [lan.{lan}] bridge")]
    NoBridge { bridge: String, lan: String },
    #[error(
        "the VM has no spare vNIC: {0}; add one, or wait until its last move has settled (on the host where it runs, \"lsm-hook status\" shows what that waits for, and \"lsm-hook release VM\" ends it)"
    )]
    NoSpare(String),
    #[error(
        "vNIC {mac} still holds the VM's address of {lan}, a LAN of this host, and join = \"never\" here: a VM whose guest has no part in it can return only after its move away from there has settled; wait for it (on the host where it runs, \"lsm-hook status\" shows what that waits for), or end it there with \"lsm-hook release VM\", and with it the connections that have only the old address"
    )]
    StillHeld { mac: Mac, lan: String },
    #[error("the pool of LAN {lan} has no free address of {prefix}; enlarge [lan.{lan}] pool")]
    PoolExhausted { lan: String, prefix: config::Prefix },
    #[error("{short}: {named}")]
    Connections { short: Short, named: String },
    #[error(
        "min_survival demands {0}, and the guest gave no forecast; is lsm-guest running in the VM, and as new as lsm-hook?"
    )]
    NoForecast(Survival),
    #[error(
        "encrypt = \"wireguard\" under [tunnel] in host.toml here, and the source host {peer} has no end of it: {why}; set encrypt alike on both hosts"
    )]
    Plain { peer: String, why: String },
    #[error(transparent)]
    Wireguard(#[from] WireguardError),
    #[error("this host: {0}")]
    Here(Decline),
    #[error(
        "so many VMs come here at once that this one had no turn within {} s; migrate it again, or fewer at a time",
        TURN.as_secs()
    )]
    Crowd,
    #[error("cannot get random bytes")]
    Random(#[source] std::io::Error),
}

/// Looks at everything before anything is built. `found` is told which host runs the VM.
pub async fn admit(
    host: &Rc<Host>,
    domain: &Domain,
    xml: &str,
    vm: Uuid,
    found: &mut Option<String>,
) -> Result<Verdict, Refused> {
    let turn = host.door.turn(&domain.name).await?;
    let Located { name, running, round_trip, peer, mut news } = locate(host, vm).await?;
    *found = Some(name.clone());
    let active = running.vnics.iter().find(|v| v.mac == running.active);
    let Some(home_lan) = active.and_then(|v| v.lan.clone()) else {
        let lan = domain.vnics.iter().find_map(|v| v.lan.clone()).unwrap_or_default();
        return Err(Refused::UnknownLan { lan, mac: running.active, peer: name });
    };
    if let Some(lan) = host.config.lans.get(&home_lan) {
        let plugs = plugs(host, &running, &[(running.active, lan.bridge.clone(), Some(home_lan))]).await?;
        return Ok(Verdict::Plug(rewrite(xml, &plugs)?));
    }
    let policy = host.config.policy;
    let join = join(policy.join);
    let (new, held) = new_vnic(&running, &host.config.lans, join)?;
    let (lan_name, lan) = match held {
        Some(lan) => lan,
        None => host.config.offered_lan().ok_or(Refused::NoLan)?,
    };
    need_bridge(host, lan_name, lan).await?;
    let underlay = host.underlay().map_err(Refused::Here)?;
    if policy.min_survival != Survival::ANY {
        enough(&peer, &mut news, vm, join, policy.min_survival).await?;
    }
    let migration = MigrationId(random().map_err(Refused::Random)?);
    let home = TunnelId { mac: running.active, vni: vni(vm, running.active) };
    let places = [
        (home.mac, tunnel::bridge(home.vni), Some(home_lan)),
        (new, lan.bridge.clone(), (join != Join::Never).then(|| lan_name.clone())),
    ];
    let waiting_xml = rewrite(xml, &plugs(host, &running, &places).await?)?;
    let wireguard =
        if host.config.encrypts() { Some(encrypt(host, &name, &peer, &mut news, migration).await?) } else { None };
    let expected = host.claims.expect(vm);
    // Given out last: nobody would take it back.
    let addressing = match addressing(host, lan_name, lan, vm) {
        Ok(addressing) => addressing,
        Err(refused) => {
            host.disconnect(migration).await;
            return Err(refused);
        }
    };
    let offer = Offer {
        migration,
        vm,
        home,
        advance: TunnelId { mac: new, vni: vni(vm, new) },
        join,
        lan: lan_name.clone(),
        addressing,
        mtu: lan.mtu as u16,
        underlay: underlay.address,
        port: underlay.port,
        drain: match policy.drain {
            config::Drain::UntilIdle => Drain::UntilIdle,
            config::Drain::Forever => Drain::Forever,
            config::Drain::For(time) => Drain::For(time.as_millis() as u64),
        },
        lease: policy.lease.as_millis() as u64,
    };
    let policy = Policy {
        unprepared: match policy.unprepared {
            config::Unprepared::Refuse => Unprepared::Refuse,
            config::Unprepared::PostJoin => Unprepared::PostJoin,
        },
        prepare_wait: policy.prepare_wait.as_millis() as u64,
        survival: policy.min_survival,
    };
    let (machine, orders) = Destination::new(now(), offer, policy);
    let saved = Saved {
        machine,
        name: domain.name.clone(),
        vm: None,
        peer: name,
        remote: running.underlay,
        home_mtu: running.mtu,
        round_trip,
        account: Account::default(),
        addressed: None,
        wireguard,
    };
    Ok(Verdict::Move(Box::new(Admitted {
        saved,
        orders,
        waiting_xml,
        answer: None,
        peer,
        news,
        turn: Some(turn),
        expected: Some(expected),
    })))
}

fn join(configured: config::Join) -> Join {
    match configured {
        config::Join::Before => Join::Before,
        config::Join::After => Join::After,
        config::Join::Never => Join::Never,
    }
}

/// Both hosts' ends of WireGuard, told to each other before anything is offered.
async fn encrypt(
    host: &Rc<Host>,
    name: &str,
    peer: &PeerHandle,
    news: &mut mpsc::UnboundedReceiver<PeerNews>,
    migration: MigrationId,
) -> Result<WireguardEnd, Refused> {
    let told = async {
        peer.tell(Peer::Encrypt { migration, end: host.wireguard.begin(migration, name).await? });
        let answer = async {
            loop {
                match news.recv().await {
                    Some(PeerNews::Said(Peer::Encrypted { migration: of, end })) if of == migration => return Ok(end),
                    Some(PeerNews::Said(Peer::Declined { migration: of, why })) if of == migration => {
                        return Err(why.to_string());
                    }
                    // An older one ends the line at what it does not know.
                    Some(PeerNews::Failed(why)) => return Err(format!("{why} (is its lsm-hook as new as this one?)")),
                    None => return Err("no line".to_owned()),
                    Some(_) => {}
                }
            }
        };
        let silent = |_| Err(format!("no answer within {} s", LOCATE.as_secs()));
        let answer = tokio::time::timeout(LOCATE, answer).await.unwrap_or_else(silent);
        let end = answer.map_err(|why| Refused::Plain { peer: name.to_owned(), why })?;
        host.wireguard.hear(migration, end)?;
        Ok(end)
    };
    let told = told.await;
    if told.is_err() {
        host.disconnect(migration).await;
    }
    told
}

/// What is sure not to move is left out before anything is built; the preparation proves the rest.
async fn enough(
    peer: &PeerHandle,
    news: &mut mpsc::UnboundedReceiver<PeerNews>,
    vm: Uuid,
    join: Join,
    needed: Survival,
) -> Result<(), Refused> {
    peer.tell(Peer::Foresee { vm });
    let answer = async {
        loop {
            match news.recv().await {
                Some(PeerNews::Said(Peer::Foreseen { forecast, .. })) => return forecast,
                Some(PeerNews::Failed(_)) | None => return None,
                Some(_) => {}
            }
        }
    };
    let forecast = tokio::time::timeout(Duration::from_millis(destination::FORESEE), answer).await.ok().flatten();
    let forecast = forecast.ok_or(Refused::NoForecast(needed))?;
    match Short::of(&forecast, join, needed) {
        Some(short) => Err(Refused::Connections { short, named: forecast.in_doubt(destination::NAMED) }),
        None => Ok(()),
    }
}

/// Every managed vNIC's place here; those not named are plugged into their LAN, or with the spares.
async fn plugs(host: &Host, running: &Running, named: &[(Mac, String, Option<String>)]) -> Result<Vec<Plug>, Refused> {
    let mut plugs = Vec::new();
    for vnic in &running.vnics {
        if let Some((mac, bridge, lan)) = named.iter().find(|(mac, _, _)| *mac == vnic.mac) {
            plugs.push(Plug { mac: *mac, bridge: bridge.clone(), lan: lan.clone() });
            continue;
        }
        let direct = vnic.lan.as_ref().and_then(|lan| host.config.lans.get(lan));
        let bridge = direct.map_or_else(|| SPARE_BRIDGE.to_owned(), |lan| lan.bridge.clone());
        plugs.push(Plug { mac: vnic.mac, bridge, lan: vnic.lan.clone() });
    }
    if plugs.iter().any(|plug| plug.bridge == SPARE_BRIDGE) {
        let made = host.tunnels.ensure_bridge(SPARE_BRIDGE).await;
        made.map_err(|error| Refused::Here(Decline::Tunnel(crate::story(&error))))?;
    }
    Ok(plugs)
}

async fn need_bridge(host: &Host, name: &str, lan: &Lan) -> Result<(), Refused> {
    match host.tunnels.bridge_exists(&lan.bridge).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Refused::NoBridge { bridge: lan.bridge.clone(), lan: name.to_owned() }),
        Err(error) => Err(Refused::Here(Decline::Tunnel(crate::story(&error)))),
    }
}

fn addressing(host: &Host, name: &str, lan: &Lan, vm: Uuid) -> Result<Addressing, Refused> {
    if let config::Addressing::Obtained { dhcp, slaac } = lan.addressing {
        let v4 = dhcp.map_or(V4::None, |subnet| V4::Dhcp(Some(subnet)));
        let v6 = slaac.map_or(V6::None, |subnet| V6::Slaac(Some(subnet)));
        return Ok(Addressing { v4, v6 });
    }
    let leased = host.inventory.borrow_mut().lease(&lan.subnets, vm);
    let exhausted = |subnet: &Subnet| Refused::PoolExhausted { lan: name.to_owned(), prefix: subnet.prefix };
    let addresses = leased.map_err(exhausted)?;
    let given = |(subnet, address): (&Subnet, IpAddr)| Given {
        address,
        prefix_len: subnet.prefix.length(),
        gateway: subnet.gateway,
    };
    Ok(lan.subnets.iter().zip(addresses).map(given).collect())
}

/// A LAN of this host, by its name.
type Named<'a> = (&'a String, &'a Lan);

/// The vNIC that gets an address here: the one that holds one still, and becomes direct again, with its LAN; else a spare.
/// Else the VM is in the middle of its last move, and the guest does one at a time.
fn new_vnic<'a>(
    running: &Running,
    here: &'a BTreeMap<String, Lan>,
    join: Join,
) -> Result<(Mac, Option<Named<'a>>), Refused> {
    let mut others = running.vnics.iter().filter(|v| v.mac != running.active);
    let back = others.clone().find_map(|v| Some((v.mac, here.get_key_value(v.lan.as_ref()?)?)));
    match back {
        Some((mac, (lan, _))) if join == Join::Never => Err(Refused::StillHeld { mac, lan: lan.clone() }),
        Some((mac, lan)) => Ok((mac, Some(lan))),
        None => match others.find(|v| v.lan.is_none()) {
            Some(spare) => Ok((spare.mac, None)),
            None => Err(Refused::NoSpare(held(running))),
        },
    }
}

fn held(running: &Running) -> String {
    let held = running.vnics.iter().filter_map(|v| Some(format!("{} holds an address of {}", v.mac, v.lan.as_ref()?)));
    held.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use lsm_protocol::VnicPlace;

    use super::*;
    use crate::config::Config;

    const A: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xa]);
    const B: Mac = Mac([0x52, 0x54, 0, 0, 0, 0xb]);

    /// A VM that has come from montreal (vNIC A) to dallas (vNIC B).
    fn came_to_dallas(old: Option<&str>) -> Running {
        let place = |mac, lan: Option<&str>| VnicPlace { mac, lan: lan.map(str::to_owned) };
        let vnics = vec![place(A, old), place(B, Some("dallas"))];
        Running { vnics, active: B, underlay: [198, 51, 100, 2].into(), mtu: 1_500 }
    }

    fn lans(name: &str) -> BTreeMap<String, Lan> {
        let text = format!(
            "[lan.{name}]\nbridge = \"br0\"\nprefix = \"10.9.0.0/24\"\ngateway = \"10.9.0.1\"\npool = \"10.9.0.9\"\n"
        );
        let file = std::env::temp_dir().join(format!("lsm-admission-{name}-{}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let lans = Config::load(&file).unwrap().lans;
        std::fs::remove_file(&file).unwrap();
        lans
    }

    #[test]
    fn a_third_site_waits_until_the_first_one_s_address_is_given_up() {
        let oslo = lans("oslo");
        let told = new_vnic(&came_to_dallas(Some("montreal")), &oslo, Join::Before).unwrap_err().to_string();
        for words in [
            "the VM has no spare vNIC",
            "52:54:00:00:00:0a holds an address of montreal",
            "wait until its last move has settled",
            "\"lsm-hook release VM\" ends it",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        let settled = new_vnic(&came_to_dallas(None), &oslo, Join::Before).unwrap();
        assert_eq!((settled.0, settled.1.is_none()), (A, true), "settled, the old vNIC is the spare");
    }

    #[test]
    fn a_return_is_to_the_address_that_is_held_there() {
        let montreal = lans("montreal");
        for join in [Join::Before, Join::After] {
            let (mac, lan) = new_vnic(&came_to_dallas(Some("montreal")), &montreal, join).unwrap();
            assert_eq!((mac, lan.map(|(name, _)| name.as_str())), (A, Some("montreal")));
        }
        let told = new_vnic(&came_to_dallas(Some("montreal")), &montreal, Join::Never).unwrap_err().to_string();
        for words in [
            "vNIC 52:54:00:00:00:0a still holds the VM's address of montreal",
            "only after its move away from there has settled",
            "\"lsm-hook release VM\"",
            "the connections that have only the old address",
        ] {
            assert!(told.contains(words), "{words}: {told}");
        }
        let settled = new_vnic(&came_to_dallas(None), &montreal, Join::Never).unwrap();
        assert_eq!((settled.0, settled.1.is_none()), (A, true));
    }

    #[test]
    fn one_more_vnic_is_a_spare_meanwhile() {
        let mut running = came_to_dallas(Some("montreal"));
        let third = Mac([0x52, 0x54, 0, 0, 0, 0xc]);
        running.vnics.push(VnicPlace { mac: third, lan: None });
        assert_eq!(new_vnic(&running, &lans("lima"), Join::Before).unwrap().0, third);
        let montreal = lans("montreal");
        let (mac, lan) = new_vnic(&running, &montreal, Join::Before).unwrap();
        assert_eq!((mac, lan.is_some()), (A, true), "back to where an address is held");
    }
}
