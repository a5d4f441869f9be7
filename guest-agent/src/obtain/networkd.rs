//! systemd-networkd (252 and later): a .network file of its own for the vNIC, under /run, and the order to read it.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use lsm_protocol::Mac;
use zbus::{Connection, OwnedObjectPath};

use crate::dhcp::Card;

use super::{
    Failure, Owner, Wanted,
    owner::{property, runs, system_bus},
};

const NAME: &str = "org.freedesktop.network1";
const MANAGER: &str = "/org/freedesktop/network1";
const INTERFACE: &str = "org.freedesktop.network1.Manager";
const LINK: &str = "org.freedesktop.network1.Link";
const DIRECTORY: &str = "/run/systemd/network";

/// Whether it has a configuration for that card, or had one that failed.
pub(super) async fn manages(bus: &Connection, ifindex: u32) -> zbus::Result<bool> {
    Ok(runs(bus, NAME).await? && state(bus, ifindex).await? != "unmanaged")
}

/// From now on it has nothing else for the vNIC.
pub(super) async fn claim(wanted: &Wanted) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::Owner(Owner::Networkd, format!("cannot write to {DIRECTORY}: {error}"));
    write(&file(wanted.card.mac), &text(wanted)).map_err(failed)?;
    Ok(reload(&system_bus().await?).await?)
}

/// Has it get what is wanted.
pub(super) async fn ask(wanted: &Wanted) -> Result<Connection, Failure> {
    let bus = system_bus().await?;
    reconfigure(&bus, wanted.card.ifindex).await?;
    Ok(bus)
}

/// Why it has given up, if it has.
pub(super) async fn complaint(bus: &Connection, wanted: &Wanted) -> Result<Option<String>, Failure> {
    let state = state(bus, wanted.card.ifindex).await?;
    Ok((state == "failed").then(|| format!("its link is failed; see \"{}\"", Owner::Networkd.log())))
}

/// Readable for networkd, which is not root.
fn write(file: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o644))
}

/// Without the file, it does with the vNIC what it did before.
pub(super) async fn give_up(card: Card) -> Result<(), Failure> {
    let Card { ifindex, mac } = card;
    match fs::remove_file(file(mac)) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(Failure::Owner(Owner::Networkd, format!("cannot remove {}: {error}", file(mac).display())));
        }
    }
    let bus = system_bus().await?;
    if !runs(&bus, NAME).await? {
        return Ok(()); // stopped meanwhile; it will find nothing when it starts
    }
    reload(&bus).await?;
    match reconfigure(&bus, ifindex).await {
        Err(zbus::Error::MethodError(name, ..)) if name.ends_with(".NoSuchLink") => Ok(()),
        other => Ok(other?),
    }
}

async fn reload(bus: &Connection) -> zbus::Result<()> {
    bus.call_method(Some(NAME), MANAGER, Some(INTERFACE), "Reload", &()).await.map(drop)
}

async fn reconfigure(bus: &Connection, ifindex: u32) -> zbus::Result<()> {
    bus.call_method(Some(NAME), MANAGER, Some(INTERFACE), "ReconfigureLink", &(ifindex as i32)).await.map(drop)
}

async fn state(bus: &Connection, ifindex: u32) -> zbus::Result<String> {
    let link = bus.call_method(Some(NAME), MANAGER, Some(INTERFACE), "GetLinkByIndex", &(ifindex as i32)).await?;
    let (_, path): (String, OwnedObjectPath) = link.body().deserialize()?;
    property(bus, NAME, &path, LINK, "AdministrativeState").await
}

/// Before all files of the image: the first that matches counts.
fn file(mac: Mac) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("00-lsm-{}.network", mac.to_string().replace(':', "")))
}

/// What the new LAN says of names, times and hosts is not for the VM before it is there.
fn text(wanted: &Wanted) -> String {
    let Wanted { card, table, .. } = wanted;
    let (v4, v6) = (wanted.v4(), wanted.v6());
    let yes = |wanted: bool| if wanted { "yes" } else { "no" };
    format!(
        "# Written by lsm-guest; gone when the vNIC is a spare again.\n\
         [Match]\nMACAddress={mac}\n\n[Link]\nRequiredForOnline=no\n\n\
         [Network]\nDHCP={dhcp}\nIPv6AcceptRA={v6}\nLinkLocalAddressing={link_local}\nLLMNR=no\nMulticastDNS=no\n\n\
         [DHCPv4]\nRouteTable={table}\nUseDNS=no\nUseDomains=no\nUseHostname=no\nUseMTU=no\nUseNTP=no\nSendRelease=yes\n\n\
         [IPv6AcceptRA]\nRouteTable={table}\nUseDNS=no\nUseDomains=no\nUseMTU=no\nDHCPv6Client=no\n",
        mac = card.mac,
        dhcp = if v4 { "ipv4" } else { "no" },
        v6 = yes(v6),
        link_local = if v6 { "ipv6" } else { "no" },
    )
}
