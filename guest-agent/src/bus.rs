//! The D-Bus interface `org.lsm.Guest1`: on the system bus where there is one, and always peer-to-peer on a Unix socket
//! that only root can open, so that an image without a bus has it too.

mod by_hand;

use std::{
    collections::HashMap,
    fs, io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use lsm_protocol::{
    Drain, FromGuest, GuestStatus, Mac, MigrationId, Millis, Prepare, Refusal, Side, ToGuest,
    forecast::{Forecast, Shown},
    guest::holds::Hold,
    report::Report,
};
use serde::{Deserialize, Serialize};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{broadcast, mpsc, oneshot},
};
use zbus::{Connection, connection, fdo, message::Header, object_server::SignalEmitter};

use crate::{
    record::Record,
    signals::{Signal, attend, watch_owners},
    switched::Move,
};

/// The object's path.
pub const OBJECT: &str = "/org/lsm/Guest1";
/// The name on the system bus.
pub const NAME: &str = "org.lsm.Guest1";
/// The longest that a call may take: a preparation with all its deadlines.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// A migration begun by hand waits this long for its switch.
const LEASE: Duration = Duration::from_secs(3_600);

/// What the interface asks of the daemon.
pub enum Call {
    Status {
        answer: oneshot::Sender<Status>,
    },
    Forecast {
        answer: oneshot::Sender<Result<Forecast, String>>,
    },
    /// The reports of past migrations, the oldest first.
    History {
        answer: oneshot::Sender<Vec<Report>>,
    },
    /// Which orders a message would bring, without carrying them out.
    Rehearse {
        told: ToGuest,
        answer: oneshot::Sender<Vec<String>>,
    },
    /// The same message as from the host; answered with the machine's reply.
    Tell {
        told: ToGuest,
        answer: oneshot::Sender<FromGuest>,
    },
    /// To hold moves back; answered with a cookie.
    Hold {
        owner: String,
        reason: String,
        milliseconds: u32,
        answer: oneshot::Sender<Result<u32, String>>,
    },
    Release {
        owner: String,
        cookie: u32,
        answer: oneshot::Sender<Result<(), String>>,
    },
    /// A connection that may have held something has ended.
    Gone {
        owner: String,
    },
}

/// Between the daemon and whoever speaks D-Bus to it.
#[derive(Clone)]
pub struct Bus {
    pub calls: mpsc::UnboundedSender<Call>,
    pub signals: broadcast::Sender<Signal>,
}

/// What `status` shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub state: String,
    pub migration: Option<String>,
    pub awaiting: Option<String>,
    pub joined: u32,
    pub waiting: u32,
    pub moved: u32,
    pub legacy: u32,
    pub old: Option<String>,
    pub new: Option<String>,
    /// How long the old path stays for those who need it: `until-idle`, `forever`, or what is left of a time.
    pub drain: Option<String>,
    /// Invitations to those who have not joined, since the flip.
    pub invited: u32,
    /// Until the next one, in milliseconds.
    pub next_invitation_ms: Option<u32>,
    /// Their peers.
    pub stragglers: Vec<String>,
    /// Who holds moves back.
    pub holds: Vec<String>,
    /// The last switch for good: from which addresses to which.
    pub switched: Option<String>,
    /// What became of the scripts then.
    pub scripts: Vec<String>,
}

impl Status {
    /// `stragglers`: the peers of those who had not joined at the last count.
    pub fn of(record: &Record, stragglers: Vec<SocketAddr>, holds: &[Hold], now: Millis) -> Status {
        let GuestStatus { state, migration, counts, awaiting } = record.guest.status();
        let holding = record.guest.holding();
        let waiting = holding.and_then(|holding| holding.stragglers);
        let show = |p: &crate::record::Plugged| format!("{} on {}", p.addresses(), p.mac);
        Status {
            state,
            migration: migration.map(|m| m.to_string()),
            awaiting,
            joined: counts.joined,
            waiting: counts.waiting,
            moved: counts.moved,
            legacy: counts.legacy,
            old: record.paths().map(|p| show(&p.old)),
            new: record.paths().map(|p| show(&p.new)),
            drain: holding.map(|holding| match (holding.drain, holding.cut) {
                (Drain::UntilIdle, _) => "until-idle".to_owned(),
                (Drain::Forever, _) => "forever".to_owned(),
                (Drain::For(time), cut) => format!("{} s more", cut.map_or(time, |at| at.saturating_sub(now)) / 1_000),
            }),
            invited: waiting.map_or(0, |s| s.invited.into()),
            next_invitation_ms: waiting.and_then(|s| u32::try_from(s.invite.saturating_sub(now)).ok()),
            stragglers: stragglers.iter().filter(|_| counts.waiting > 0).map(SocketAddr::to_string).collect(),
            holds: holds.iter().map(Hold::to_string).collect(),
            switched: record.moved.as_ref().map(|m| format!("{} to {} in LAN {}", m.from, m.to, m.lan)),
            scripts: match &record.moved {
                Some(Move { scripts: Some(ran), .. }) => ran.iter().map(ToString::to_string).collect(),
                _ => Vec::new(),
            },
        }
    }
}

pub(crate) struct Interface {
    calls: mpsc::UnboundedSender<Call>,
    /// Who is at the other end, where no bus names the callers.
    peer: String,
}

#[zbus::interface(name = "org.lsm.Guest1")]
impl Interface {
    /// State, migration, what is awaited, and the connections, by name.
    async fn status(&self) -> fdo::Result<HashMap<String, zbus::OwnedVariant>> {
        let status = self.ask(|answer| Call::Status { answer }).await?;
        let mut map = HashMap::new();
        let mut text = |key: &str, value: Option<String>| {
            if let Ok(value) = zbus::OwnedVariant::try_from(zbus::Variant::from(value.unwrap_or_default())) {
                map.insert(key.to_owned(), value);
            }
        };
        text("state", Some(status.state));
        text("migration", status.migration);
        text("awaiting", status.awaiting);
        text("old", status.old);
        text("new", status.new);
        text("drain", status.drain);
        text("switched", status.switched);
        map.insert("invited".to_owned(), status.invited.into());
        if let Some(ms) = status.next_invitation_ms {
            map.insert("next_invitation_ms".to_owned(), ms.into());
        }
        for (key, list) in [("stragglers", status.stragglers), ("holds", status.holds), ("scripts", status.scripts)] {
            if let Ok(list) = zbus::OwnedVariant::try_from(zbus::Variant::from(list)) {
                map.insert(key.to_owned(), list);
            }
        }
        for (key, value) in
            [("joined", status.joined), ("waiting", status.waiting), ("moved", status.moved), ("legacy", status.legacy)]
        {
            map.insert(key.to_owned(), zbus::OwnedVariant::from(value));
        }
        Ok(map)
    }

    /// Makes the vNIC `new` ready with `addresses` (with their prefix lengths, one of each family at most; `dhcp` and `slaac`
    /// stand for those that are to be got) and their `gateways`; gives the migration's id.
    #[expect(clippy::too_many_arguments, reason = "the arguments of the D-Bus method")]
    async fn prepare(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        old: &str,
        new: &str,
        lan: &str,
        addresses: Vec<String>,
        gateways: Vec<String>,
        mtu: u16,
        arrived: bool,
    ) -> fdo::Result<String> {
        self.note("prepare", &header, connection).await;
        let migration = MigrationId(random().map_err(|e| fdo::Error::Failed(e.to_string()))?);
        let mac = |text: &str| text.parse::<Mac>().map_err(|e| fdo::Error::InvalidArgs(format!("{text:?}: {e}")));
        let plan = Prepare {
            migration,
            old: mac(old)?,
            new: mac(new)?,
            lan: lan.to_owned(),
            addressing: by_hand::addressing(&addresses, &gateways).map_err(fdo::Error::InvalidArgs)?,
            mtu,
            arrived,
            drain: Drain::UntilIdle,
            lease: LEASE.as_millis() as u64,
        };
        self.tell(ToGuest::Prepare(plan)).await?;
        Ok(migration.to_string())
    }

    /// The flip (`to` is `new`) or the flip back (`old`) of the migration under way. With `dry_run` only says each step.
    async fn switch(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        to: &str,
        dry_run: bool,
    ) -> fdo::Result<Vec<String>> {
        let to = match to {
            "new" => Side::New,
            "old" => Side::Old,
            other => return Err(fdo::Error::InvalidArgs(format!("{other:?} is not a side: say \"new\" or \"old\""))),
        };
        let told = ToGuest::Switch { migration: self.migration().await?, to };
        let lines = self.ask(|answer| Call::Rehearse { told: told.clone(), answer }).await?;
        if !dry_run {
            self.note("switch", &header, connection).await;
            self.tell(told).await?;
        }
        Ok(lines)
    }

    /// What a move would do to each connection, as JSON: `sums`, `connections` (each with `local`, `remote`, `class` and
    /// `why`), `udp`.
    async fn forecast(&self) -> fdo::Result<String> {
        let forecast = self.ask(|answer| Call::Forecast { answer }).await?.map_err(fdo::Error::Failed)?;
        serde_json::to_string(&Shown::from(&forecast)).map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    /// The reports of past migrations as JSON, the oldest first: all, or those whose id begins like this.
    async fn history(&self, id: &str) -> fdo::Result<String> {
        let mut reports = self.ask(|answer| Call::History { answer }).await?;
        reports.retain(|report| report.migration.to_string().starts_with(id));
        serde_json::to_string(&reports).map_err(|error| fdo::Error::Failed(error.to_string()))
    }

    /// Leaves the old path for good: with `cut` whoever still uses it, else only if nobody does.
    async fn settle(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        cut: bool,
    ) -> fdo::Result<()> {
        self.note("settle", &header, connection).await;
        let told = ToGuest::Settle { migration: self.migration().await?, cut };
        self.tell(told).await.map(drop)
    }

    /// Puts everything back as it was before the preparation.
    async fn abort(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<()> {
        self.note("abort", &header, connection).await;
        let told = ToGuest::Abort { migration: self.migration().await? };
        self.tell(told).await.map(drop)
    }

    /// The VM has arrived: what the destination would say.
    async fn arrived(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<()> {
        self.note("arrived", &header, connection).await;
        let told = ToGuest::Arrived { migration: self.migration().await? };
        self.tell(told).await.map(drop)
    }

    /// From now on moves wait for the caller: each, once prepared, until `Release` is called or so many milliseconds have
    /// passed since it began; 4000 at most, or what guest.toml allows, however many hold. Ends with the caller's connection. Gives a cookie.
    async fn hold(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        reason: &str,
        milliseconds: u32,
    ) -> fdo::Result<u32> {
        self.note("hold", &header, connection).await;
        let (owner, reason) = (self.owner(&header), reason.to_owned());
        let cookie = self.ask(|answer| Call::Hold { owner, reason, milliseconds, answer }).await?;
        cookie.map_err(fdo::Error::InvalidArgs)
    }

    /// Moves need not wait for what `Hold` gave this cookie for.
    async fn release(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        cookie: u32,
    ) -> fdo::Result<()> {
        self.note("release", &header, connection).await;
        let owner = self.owner(&header);
        self.ask(|answer| Call::Release { owner, cookie, answer }).await?.map_err(fdo::Error::InvalidArgs)
    }

    /// A preparation has begun: the VM will have these addresses of that LAN, and those not known yet. It can be held back for so many milliseconds.
    #[zbus(signal)]
    pub(crate) async fn preparing(
        emitter: &SignalEmitter<'_>,
        migration: &str,
        lan: &str,
        addresses: Vec<String>,
        most_ms: u32,
    ) -> zbus::Result<()>;

    /// The traffic goes by the addresses `to`. With `sure` the VM is at its new site for certain; an early switch is said without
    /// it, and then again.
    #[zbus(signal)]
    pub(crate) async fn switched(
        emitter: &SignalEmitter<'_>,
        migration: &str,
        from: Vec<String>,
        to: Vec<String>,
        sure: bool,
    ) -> zbus::Result<()>;

    /// The old addresses are gone.
    #[zbus(signal)]
    pub(crate) async fn settled(emitter: &SignalEmitter<'_>, migration: &str) -> zbus::Result<()>;

    /// Everything is as it was before `Preparing`.
    #[zbus(signal)]
    pub(crate) async fn aborted(emitter: &SignalEmitter<'_>, migration: &str) -> zbus::Result<()>;
}

impl Interface {
    /// Whoever changes something stands in the log: on a bus by what the bus knows of it.
    async fn note(&self, call: &str, header: &Header<'_>, connection: &Connection) {
        let caller = match header.sender() {
            Some(sender) => match credentials(connection, sender.as_str()).await {
                Ok(known) => format!("{known}, {sender} on the bus"),
                Err(error) => format!("{sender} on the bus, which says nothing more: {error}"),
            },
            None => self.peer.clone(),
        };
        tracing::info!(call, caller, "called over D-Bus");
    }

    fn owner(&self, header: &Header<'_>) -> String {
        header.sender().map_or_else(|| self.peer.clone(), ToString::to_string)
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<T>) -> Call) -> fdo::Result<T> {
        let (answer, answered) = oneshot::channel();
        let gone = |_| fdo::Error::Failed("the agent is stopping".to_owned());
        self.calls.send(call(answer)).map_err(|_| fdo::Error::Failed("the agent is stopping".to_owned()))?;
        answered.await.map_err(gone)
    }

    async fn tell(&self, told: ToGuest) -> fdo::Result<FromGuest> {
        let reply = tokio::time::timeout(TIMEOUT, self.ask(|answer| Call::Tell { told, answer })).await;
        match reply {
            Ok(Ok(FromGuest::Refused { why, .. })) => Err(fdo::Error::Failed(why.to_string())),
            Ok(reply) => reply,
            Err(_) => Err(fdo::Error::TimedOut(format!(
                "no outcome within {} s; see \"lsm-guest status\"",
                TIMEOUT.as_secs()
            ))),
        }
    }

    async fn migration(&self) -> fdo::Result<MigrationId> {
        let status = self.ask(|answer| Call::Status { answer }).await?;
        let id = status.migration.as_deref().and_then(MigrationId::parse);
        id.ok_or_else(|| fdo::Error::Failed(Refusal::NotPrepared.to_string()))
    }
}

async fn credentials(connection: &Connection, name: &str) -> zbus::Result<String> {
    let bus = fdo::DBusProxy::new(connection).await?;
    let known = bus.get_connection_credentials(name.try_into()?).await?;
    let shown = |number: Option<u32>| number.map_or_else(|| "unknown".to_owned(), |number| number.to_string());
    Ok(format!("user {}, process {}", shown(known.unix_user_id()), shown(known.process_id())))
}

/// Serves the Unix socket for as long as the agent runs.
pub async fn serve_socket(path: PathBuf, bus: Bus) {
    let listener = match bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, socket = %path.display(), "cannot listen; the command line will not reach this agent");
            return;
        }
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a call of the command line");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        };
        let bus = bus.clone();
        tokio::spawn(async move {
            let signals = bus.signals.subscribe();
            let calls = bus.calls.clone();
            match serve_peer(stream, calls.clone()).await {
                Ok((connection, owner)) => {
                    attend(connection, signals).await;
                    let _ = calls.send(Call::Gone { owner });
                }
                Err(error) => tracing::debug!(%error, "a caller went away during the handshake"),
            }
        });
    }
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// One process may have several.
static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// The connection, and how whoever is at its other end is called.
async fn serve_peer(stream: UnixStream, calls: mpsc::UnboundedSender<Call>) -> zbus::Result<(Connection, String)> {
    let credentials = stream.peer_cred()?;
    let uid = credentials.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(zbus::Error::Failure("only root may speak to the agent".to_owned()));
    }
    // Not Guid::generate: it waits, and the whole agent with it, until the kernel's random numbers are good for keys,
    // which can take minutes in a VM that has just booted.
    let guid = MigrationId(random()?).to_string();
    let guid = zbus::Guid::try_from(guid.as_str())?;
    let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let peer = format!("user {uid}, process {}, connection {number}", credentials.pid().unwrap_or_default());
    let interface = Interface { calls, peer: peer.clone() };
    let builder = connection::Builder::unix_stream(stream.into_std()?).server(guid).p2p();
    Ok((builder.serve_at(OBJECT, interface).build().await?, peer))
}

/// Offers the interface on the system bus, where there is one, for as long as the agent runs.
pub async fn serve_system_bus(bus: Bus) {
    let signals = bus.signals.subscribe();
    let interface = Interface { calls: bus.calls.clone(), peer: String::new() };
    let serve = async { connection::Builder::system().name(NAME).serve_at(OBJECT, interface).build().await };
    match serve.await {
        Ok(connection) => {
            tracing::info!(name = NAME, "on the system bus");
            let owners = watch_owners(connection.clone(), bus.calls);
            tokio::spawn(async move {
                if let Err(error) = owners.await {
                    tracing::warn!(%error, "holds of programs that leave the system bus last until their time is over");
                }
            });
            attend(connection, signals).await;
        }
        Err(error) => tracing::info!(%error, "not on the system bus; the Unix socket serves the command line"),
    }
}

fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What other programs are built against: `packaging/org.lsm.Guest1.xml`. LSM_BLESS=1 writes it anew.
    #[tokio::test]
    async fn the_shipped_description_is_what_the_agent_offers() {
        let (agent, caller) = UnixStream::pair().unwrap();
        let serve = serve_peer(agent, mpsc::unbounded_channel().0);
        let call = connection::Builder::unix_stream(caller.into_std().unwrap()).p2p().build();
        let (served, connection) = tokio::join!(serve, call);
        let (_served, connection) = (served.unwrap(), connection.unwrap());
        let introspectable = Some("org.freedesktop.DBus.Introspectable");
        let answer = connection.call_method(None::<&str>, OBJECT, introspectable, "Introspect", &()).await.unwrap();
        let all: String = answer.body().deserialize().unwrap();
        let start = all.find(&format!("<interface name=\"{NAME}\">")).unwrap();
        let ours = &all[start..start + all[start..].find("</interface>").unwrap()];
        let description = format!(
            "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\"\n \"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n<node>\n  {ours}</interface>\n</node>\n"
        );
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/org.lsm.Guest1.xml");
        if std::env::var_os("LSM_BLESS").is_some() {
            fs::write(&file, &description).unwrap();
        }
        assert_eq!(fs::read_to_string(&file).unwrap_or_default(), description, "LSM_BLESS=1 writes it anew");
    }
}
