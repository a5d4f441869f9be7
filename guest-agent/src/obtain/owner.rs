//! Who owns a vNIC in this VM, found over D-Bus.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};
use zbus::{Connection, OwnedObjectPath, fdo};

use super::{network_manager, networkd};

/// Whoever gives a vNIC its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    Nobody,
    Networkd,
    NetworkManager,
}

/// An owner that has not answered by then is hung, or being restarted.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Owner {
    /// Who owns one of these cards: the new vNIC, or the old one, for whoever has that has the other as well. NetworkManager
    /// where both run: it takes what it is not told to leave.
    pub async fn of(new: u32, old: u32) -> Owner {
        let Ok(bus) = system_bus().await else { return Owner::Nobody };
        if network_manager::manages(&bus, new).await.unwrap_or(false) {
            return Owner::NetworkManager;
        }
        for card in [new, old] {
            if networkd::manages(&bus, card).await.unwrap_or(false) {
                return Owner::Networkd;
            }
        }
        Owner::Nobody
    }

    /// The command that shows what it did.
    pub(crate) fn log(self) -> &'static str {
        match self {
            Owner::Nobody => "journalctl -u lsm-guest",
            Owner::Networkd => "journalctl -u systemd-networkd",
            Owner::NetworkManager => "journalctl -u NetworkManager",
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Owner::Nobody => "nobody",
            Owner::Networkd => "systemd-networkd",
            Owner::NetworkManager => "NetworkManager",
        })
    }
}

pub(super) async fn system_bus() -> zbus::Result<Connection> {
    zbus::connection::Builder::system().method_timeout(TIMEOUT).build().await
}

/// Whether somebody has that name. Asking the name itself might start a service.
pub(super) async fn runs(bus: &Connection, name: &'static str) -> zbus::Result<bool> {
    Ok(fdo::DBusProxy::new(bus).await?.name_has_owner(name.try_into()?).await?)
}

/// A property of an object.
pub(super) async fn property<T>(
    bus: &Connection,
    service: &str,
    path: &OwnedObjectPath,
    interface: &str,
    name: &str,
) -> zbus::Result<T>
where
    T: TryFrom<zbus::OwnedVariant>,
    T::Error: Into<zbus::Error>,
{
    let body = (interface, name);
    let answer = bus.call_method(Some(service), path, Some("org.freedesktop.DBus.Properties"), "Get", &body).await?;
    let value: zbus::OwnedVariant = answer.body().deserialize()?;
    T::try_from(value).map_err(Into::into)
}
