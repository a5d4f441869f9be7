//! What programs in the VM hear on D-Bus: the signals of `org.lsm.Guest1`, on every connection that is open.

use futures_util::StreamExt as _;
use lsm_protocol::Addresses;
use tokio::sync::{broadcast, mpsc};
use zbus::{Connection, MessageStream, fdo, object_server::SignalEmitter};

use crate::bus::{Call, Interface, OBJECT};

/// For a caller that does not read: what it may miss before it is told that it did.
pub const BACKLOG: usize = 64;

/// One of them, with what it carries.
#[derive(Clone, Debug)]
pub enum Signal {
    Preparing { migration: String, lan: String, addresses: Addresses, most_ms: u32 },
    Switched { migration: String, from: Addresses, to: Addresses, sure: bool },
    Settled { migration: String },
    Aborted { migration: String },
}

impl Signal {
    async fn emit(self, connection: &Connection) -> zbus::Result<()> {
        let emitter = SignalEmitter::new(connection, OBJECT)?;
        match self {
            Signal::Preparing { migration, lan, addresses, most_ms } => {
                Interface::preparing(&emitter, &migration, &lan, texts(addresses), most_ms).await
            }
            Signal::Switched { migration, from, to, sure } => {
                Interface::switched(&emitter, &migration, texts(from), texts(to), sure).await
            }
            Signal::Settled { migration } => Interface::settled(&emitter, &migration).await,
            Signal::Aborted { migration } => Interface::aborted(&emitter, &migration).await,
        }
    }
}

fn texts(addresses: Addresses) -> Vec<String> {
    addresses.all().iter().map(ToString::to_string).collect()
}

/// Keeps a connection until its other end is gone, and says every signal on it.
pub async fn attend(connection: Connection, mut signals: broadcast::Receiver<Signal>) {
    let mut messages = MessageStream::from(&connection);
    loop {
        tokio::select! {
            message = messages.next() => {
                if !matches!(message, Some(Ok(_))) {
                    return;
                }
            }
            signal = signals.recv() => match signal {
                Ok(signal) => {
                    if let Err(error) = signal.emit(&connection).await {
                        tracing::debug!(%error, "nobody hears a signal");
                    }
                }
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "a D-Bus connection is too slow for our signals");
                }
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
    }
}

/// On a bus: whoever leaves it holds nothing back any more. In words of [`Call::Gone`].
pub async fn watch_owners(connection: Connection, calls: mpsc::UnboundedSender<Call>) -> zbus::Result<()> {
    let bus = fdo::DBusProxy::new(&connection).await?;
    let mut changes = bus.receive_name_owner_changed().await?;
    while let Some(change) = changes.next().await {
        let change = change.args()?;
        if change.new_owner().is_none() {
            let _ = calls.send(Call::Gone { owner: change.name().to_string() });
        }
    }
    Ok(())
}
