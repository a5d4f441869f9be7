//! NetworkManager (1.40 and later): a profile for the vNIC that is gone with its activation.

use std::collections::HashMap;

use lsm_protocol::Mac;
use zbus::{Connection, OwnedObjectPath, OwnedVariant, Variant, fdo};

use super::{
    Failure, Wanted,
    owner::{property, runs, system_bus},
};

const NAME: &str = "org.freedesktop.NetworkManager";
const MANAGER: &str = "/org/freedesktop/NetworkManager";
const SETTINGS: &str = "/org/freedesktop/NetworkManager/Settings";
const SETTINGS_INTERFACE: &str = "org.freedesktop.NetworkManager.Settings";
const CONNECTION: &str = "org.freedesktop.NetworkManager.Settings.Connection";
const DEVICE: &str = "org.freedesktop.NetworkManager.Device";
const ACTIVE: &str = "org.freedesktop.NetworkManager.Connection.Active";
/// NM_DEVICE_STATE_UNMANAGED.
const UNMANAGED: u32 = 10;
/// NM_ACTIVE_CONNECTION_STATE_DEACTIVATING; _DEACTIVATED comes after it.
const DEACTIVATING: u32 = 3;
/// NM_MPTCP_FLAGS_DISABLED: it makes no endpoint of the address.
const NO_ENDPOINTS: u32 = 1;
/// IPv6 addresses from the MAC, and no temporary ones: what the network knows of the VM.
const EUI64: i32 = 0;
const NO_PRIVACY: i32 = 0;

type Profile<'a> = HashMap<&'a str, HashMap<&'a str, Variant<'a>>>;

/// What it was told to do, on which device.
pub(super) struct Activation {
    bus: Connection,
    device: OwnedObjectPath,
    active: OwnedObjectPath,
}

/// Whether it manages that card.
pub(super) async fn manages(bus: &Connection, ifindex: u32) -> zbus::Result<bool> {
    if !runs(bus, NAME).await? {
        return Ok(false);
    }
    let Some(name) = crate::neighbours::interface_name(ifindex).ok().and_then(|name| name.into_string().ok()) else {
        return Ok(false);
    };
    let device = device(bus, &name).await?;
    Ok(property::<u32>(bus, NAME, &device, DEVICE, "State").await? != UNMANAGED)
}

/// Has it get what is wanted.
pub(super) async fn ask(wanted: &Wanted) -> Result<Activation, Failure> {
    let bus = system_bus().await?;
    delete(&bus, wanted.card.mac).await?;
    let device = device(&bus, &wanted.name).await?;
    let anything: OwnedObjectPath = OwnedObjectPath::try_from("/")?;
    let options: HashMap<&str, Variant<'_>> = HashMap::from([("persist", "volatile".into())]);
    let body = (profile(wanted), &device, anything, options);
    let answer = bus.call_method(Some(NAME), MANAGER, Some(NAME), "AddAndActivateConnection2", &body).await?;
    let (_, active, _): (OwnedObjectPath, OwnedObjectPath, HashMap<String, OwnedVariant>) =
        answer.body().deserialize()?;
    Ok(Activation { bus, device, active })
}

/// Why it has given up, if it has.
pub(super) async fn complaint(activation: &Activation) -> Result<Option<String>, Failure> {
    let Activation { bus, device, active } = activation;
    // One that is over may be gone.
    if property::<u32>(bus, NAME, active, ACTIVE, "State").await.is_ok_and(|state| state < DEACTIVATING) {
        return Ok(None);
    }
    match property::<(u32, u32)>(bus, NAME, device, DEVICE, "StateReason").await {
        Ok((_, reason)) => Ok(Some(reason_in_words(reason))),
        // Another one, which knows the card by another path, or none.
        Err(_) => {
            Ok(Some(format!("it was restarted or stopped meanwhile; see \"{}\"", super::Owner::NetworkManager.log())))
        }
    }
}

/// Whatever else it has for the vNIC it activates by itself then.
pub(super) async fn give_up(mac: Mac) -> Result<(), Failure> {
    let Ok(bus) = system_bus().await else { return Ok(()) };
    if runs(&bus, NAME).await? {
        delete(&bus, mac).await?;
    }
    Ok(())
}

async fn device(bus: &Connection, name: &str) -> zbus::Result<OwnedObjectPath> {
    let answer = bus.call_method(Some(NAME), MANAGER, Some(NAME), "GetDeviceByIpIface", &name).await?;
    answer.body().deserialize()
}

/// Ours, if it is there; an older one too.
async fn delete(bus: &Connection, mac: Mac) -> zbus::Result<()> {
    let found =
        bus.call_method(Some(NAME), SETTINGS, Some(SETTINGS_INTERFACE), "GetConnectionByUuid", &uuid(mac)).await;
    match found {
        Ok(answer) => {
            let path: OwnedObjectPath = answer.body().deserialize()?;
            // A volatile one may go by itself meanwhile, with its activation.
            let deleted = bus.call_method(Some(NAME), &path, Some(CONNECTION), "Delete", &()).await;
            deleted.map(drop).or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })
        }
        Err(error) if is_gone(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What is asked for is not there any more, or what is called.
fn is_gone(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => name.ends_with(".InvalidConnection"),
        zbus::Error::FDO(error) => matches!(**error, fdo::Error::UnknownMethod(_) | fdo::Error::UnknownObject(_)),
        _ => false,
    }
}

/// The same for a vNIC each time, so that it is found again.
fn uuid(mac: Mac) -> String {
    format!("6c736d00-0000-4000-8000-{}", mac.to_string().replace(':', ""))
}

fn profile(wanted: &Wanted) -> Profile<'_> {
    let Wanted { card, name, table, .. } = wanted;
    let method = |wanted: bool| Variant::from(if wanted { "auto" } else { "disabled" });
    // What the new LAN says of names is not for the VM before it is there; an address that is wanted is needed.
    let common = |wanted: bool| {
        [
            ("method", method(wanted)),
            ("route-table", Variant::from(*table)),
            ("ignore-auto-dns", true.into()),
            ("may-fail", false.into()),
        ]
    };
    let connection = [
        ("id", Variant::from(format!("lsm {}", card.mac))),
        ("uuid", uuid(card.mac).into()),
        ("type", "802-3-ethernet".into()),
        ("interface-name", name.as_str().into()),
        ("autoconnect", false.into()),
        ("mptcp-flags", NO_ENDPOINTS.into()),
    ];
    let private = [("addr-gen-mode", Variant::from(EUI64)), ("ip6-privacy", NO_PRIVACY.into())];
    HashMap::from([
        ("connection", HashMap::from(connection)),
        ("ipv4", HashMap::from(common(wanted.v4()))),
        ("ipv6", common(wanted.v6()).into_iter().chain(private).collect()),
    ])
}

/// NMDeviceStateReason, those that an address or its absence can have.
fn reason_in_words(reason: u32) -> String {
    let words = match reason {
        5 => "no IP configuration came (no DHCP answer, or no router)",
        6 => "an IP configuration ran out",
        15 | 17 => "its DHCP client failed",
        16 => "its DHCP client met an error",
        36 => "the card was removed",
        39 => "a user or program disconnected it",
        40 => "the card has no carrier",
        _ => return format!("reason {reason} of NMDeviceStateReason; see \"{}\"", super::Owner::NetworkManager.log()),
    };
    format!("{words}; see \"{}\"", super::Owner::NetworkManager.log())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use futures_util::StreamExt as _;
    use zbus::{Guid, MessageStream, connection::Builder, message::Type};

    use super::*;

    /// A NetworkManager that has the profile as it is looked for, and answers so when it is to be deleted.
    async fn deleted(answer: &'static str) -> zbus::Result<()> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = Builder::unix_stream(theirs).server(Guid::generate()).p2p().build();
        let (server, bus) = tokio::join!(server, Builder::unix_stream(ours).p2p().build());
        let (server, bus) = (server.unwrap(), bus.unwrap());
        let mut calls = MessageStream::from(&server);
        let answers = async {
            while let Some(Ok(call)) = calls.next().await {
                let header = call.header();
                if header.message_type() != Type::MethodCall {
                    continue;
                }
                let looked_for = header.member().is_some_and(|member| member.as_str() == "GetConnectionByUuid");
                let profile = OwnedObjectPath::try_from("/org/freedesktop/NetworkManager/Settings/7").unwrap();
                let said = match answer {
                    _ if looked_for => server.reply(&header, &profile).await,
                    "" => server.reply(&header, &()).await,
                    error => server.reply_error(&header, error, &"").await,
                };
                said.unwrap();
            }
        };
        tokio::select! {
            result = delete(&bus, Mac([0x52, 0x54, 0, 0xaa, 0, 2])) => result,
            () = answers => panic!("the line broke"),
        }
    }

    #[tokio::test]
    async fn a_profile_that_is_gone_by_the_time_it_is_deleted_is_deleted() {
        deleted("").await.unwrap();
        for gone in ["org.freedesktop.DBus.Error.UnknownMethod", "org.freedesktop.DBus.Error.UnknownObject"] {
            deleted(gone).await.unwrap();
        }
        let denied = deleted("org.freedesktop.NetworkManager.Settings.PermissionDenied").await.unwrap_err();
        assert!(denied.to_string().contains("PermissionDenied"), "{denied}");
    }
}
