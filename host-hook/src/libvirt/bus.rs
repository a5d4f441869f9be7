//! libvirt-dbus: `DomainEvent (object, event, detail)` of `org.libvirt.Connect`.

use std::{num::NonZeroUsize, time::Duration};

use futures_util::StreamExt;
use tokio::sync::mpsc;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, conn::Builder, fdo::DBusProxy, message};

use super::{Ending, LibvirtError, Notice, Place, What, Whose, now};

pub(super) const SERVICE: &str = "org.libvirt";
pub(super) const CONNECT: &str = "org.libvirt.Connect";
pub(super) const DOMAIN: &str = "org.libvirt.Domain";
const METHOD_TIMEOUT: Duration = Duration::from_secs(2);
// libvirt-dbus connects to libvirt when it is asked something, also after libvirt has restarted: until then, no events.
const ASK_EVERY: Duration = Duration::from_secs(1);
const SIGNALS_KEPT: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

pub(super) async fn connect(place: &Place) -> zbus::Result<Connection> {
    let builder = match &place.bus {
        Some(address) => Builder::address(address.as_str()),
        None => Builder::system(),
    };
    builder.method_timeout(METHOD_TIMEOUT).build().await
}

/// Passes events on until libvirt-dbus goes away.
pub(super) async fn listen(place: &Place, notices: &mpsc::Sender<Notice>) -> Result<(), LibvirtError> {
    let connection = connect(place).await?;
    let rule = MatchRule::builder()
        .msg_type(message::Type::Signal)
        .sender(SERVICE)
        .interface(CONNECT)
        .member("DomainEvent")
        .path(place.object.as_str())
        .build()?;
    let mut signals = MessageStream::for_match_rule(rule, &connection, Some(SIGNALS_KEPT)).await?;
    let bus = DBusProxy::new(&connection).await?;
    let mut owners = bus.receive_name_owner_changed_with_args(&[(0, SERVICE)]).await?;
    wake(&connection, place).await?;
    if notices.send(Notice::Connected).await.is_err() {
        return Ok(());
    }
    // Asking is a task of its own: events do not wait for the answer.
    let asking = async {
        loop {
            let restarted = tokio::time::timeout(ASK_EVERY, owners.next()).await.is_ok();
            if let Err(error) = wake(&connection, place).await {
                return error;
            }
            if restarted {
                // A receiver that is gone shows when the next event is passed on.
                let _ = notices.send(Notice::Connected).await;
            }
        }
    };
    let passing = async {
        while let Some(signal) = signals.next().await {
            if let Some(notice) = signal.ok().as_ref().and_then(notice)
                && notices.send(notice).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        biased;
        () = passing => Ok(()),
        error = asking => {
            tracing::info!(%error, "libvirt-dbus does not answer");
            Ok(())
        }
    }
}

/// Makes libvirt-dbus connect to libvirt. Touches no domain.
pub(super) async fn wake(connection: &Connection, place: &Place) -> zbus::Result<()> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let arguments = &(CONNECT, "LibVersion");
    connection.call_method(Some(SERVICE), place.object.as_str(), properties, "Get", arguments).await.map(drop)
}

fn notice(signal: &Message) -> Option<Notice> {
    let (domain, event, detail): (OwnedObjectPath, i32, i32) = signal.body().deserialize().ok()?;
    Some(now(Whose::Uuid(uuid(domain.as_str())?), what(event, detail)))
}

/// `/org/libvirt/QEMU/domain/_c0ffee00_…` to `c0ffee00-…`.
pub(super) fn uuid(object: &str) -> Option<String> {
    let (_, last) = object.rsplit_once('/')?;
    Some(last.strip_prefix('_')?.replace('_', "-"))
}

/// The object of a domain, by its UUID.
pub(super) fn object(place: &Place, uuid: &str) -> String {
    format!("{}/domain/_{}", place.object, uuid.replace('-', "_"))
}

/// `virDomainEventType` and the detail that belongs to it (libvirt-domain.h).
fn what(event: i32, detail: i32) -> What {
    match (event, detail) {
        (2, detail) => What::Started { migrated: detail == 1 },
        // 7: post-copy.
        (3, detail) => What::Suspended { migrated: matches!(detail, 1 | 7) },
        // 3: post-copy.
        (4, detail) => What::Resumed { migrated: matches!(detail, 1 | 3) },
        (5, 3) => What::Stopped(Ending::Migrated),
        (5, 4) => What::Stopped(Ending::Saved),
        (5, 5) => What::Stopped(Ending::Failed),
        (5, _) => What::Stopped(Ending::Other),
        _ => What::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_events_of_one_migration() {
        // As captured: destination, source, destination, source; then a cancelled one.
        assert_eq!(what(2, 1), What::Started { migrated: true });
        assert_eq!(what(3, 1), What::Suspended { migrated: true });
        assert_eq!(what(4, 1), What::Resumed { migrated: true });
        assert_eq!(what(5, 3), What::Stopped(Ending::Migrated));
        assert_eq!(what(5, 4), What::Stopped(Ending::Saved));
        assert_eq!(what(5, 5), What::Stopped(Ending::Failed));
        assert_eq!(what(4, 0), What::Resumed { migrated: false });
        assert_eq!(what(3, 0), What::Suspended { migrated: false });
        assert_eq!(what(99, 0), What::Other);
    }

    #[test]
    fn objects_and_uuids() {
        let id = "6695eb01-f6a4-8304-79aa-97f2502e193f";
        let path = object(&Place::default(), id);
        assert_eq!(path, "/org/libvirt/QEMU/domain/_6695eb01_f6a4_8304_79aa_97f2502e193f");
        assert_eq!(uuid(&path).as_deref(), Some(id));
        assert_eq!(uuid("nonsense"), None);
    }
}
