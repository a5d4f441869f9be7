//! `lsm-guest run`: events to the machine, its orders to the kernel and the host. Decides nothing.

mod asked;
mod background;
mod log;
mod obtaining;
mod orders;
mod release;
mod reports;
mod telling;

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use lsm_protocol::{
    FromGuest, Millis,
    forecast::Forecast,
    guest::{Event, Guest, holds::Holds},
};
use tokio::sync::{Notify, broadcast, mpsc};

use self::{obtaining::Progress, release::Release, reports::Reports};
use crate::{
    bus::{self, Bus},
    callers::Callers,
    changes,
    config::{Config, Force, Mptcp},
    force,
    kernel::Kernel,
    key,
    mptcp::{Events, Limits},
    path::{self, chain},
    record::Record,
    signals::{self, Signal},
    switched::{self, Move},
    tally::Tally,
    transport::{serial, vsock},
};

/// The kernel's maxima.
const LIMITS: Limits = Limits { subflows: 8, add_addr_accepted: 8 };
/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration or the key is wrong, the kernel lacks MPTCP, the state cannot be kept, or the sockets cannot be made.
pub async fn run(directory: &Path, file: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(file)?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let key = key::load(file, credentials.as_deref())?;
    tracing::info!(key = key.is_some(), "whether hosts must prove a key");
    force_plain_programs(&config.mptcp, directory);
    let record = Record::open(directory).map_err(|error| {
        let place = directory.display();
        format!("cannot keep state in {place}: {error}; see that it can be written and has room: df {place}; mount | grep run")
    })?;
    let under_way = record.guest.migration();
    let (news_in, mut news) = mpsc::unbounded_channel();
    let (calls_in, mut calls) = mpsc::unbounded_channel();
    let (facts_in, mut facts) = mpsc::unbounded_channel();
    let (failures_in, mut failures) = mpsc::unbounded_channel();
    let (moves, moves_out) = mpsc::unbounded_channel();
    let (told_in, mut told) = mpsc::unbounded_channel();
    let (progress_in, mut progress) = mpsc::unbounded_channel();
    let bus = Bus { calls: calls_in, signals: broadcast::channel(signals::BACKLOG).0 };
    let mut daemon = Daemon {
        kernel: Kernel::open()?,
        record,
        tally: Tally::default(),
        hosts: Vec::new(),
        callers: Callers::default(),
        facts: facts_in.clone(),
        probe: None,
        closures: None,
        misled: None,
        forecast: Forecast::default(),
        counting: Rc::default(),
        holds: Holds::new(config.hold_limit),
        signals: bus.signals.clone(),
        moves,
        reports: Reports::open(directory, &config.reports, under_way),
        obtaining: None,
        progress: progress_in,
        release: Release::new(),
    };
    daemon.set_up()?;
    tokio::task::spawn_local(changes::watch_subflows(Events::open()?, facts_in, failures_in, daemon.counting.clone()));
    let routes_changed = Rc::new(Notify::new());
    tokio::task::spawn_local(changes::tell_routes(path::upkeep::watch()?, routes_changed.clone()));
    tokio::spawn(vsock::listen(key.clone(), news_in.clone()));
    tokio::spawn(serial::serve(key, news_in));
    tokio::spawn(bus::serve_socket(directory.join("guest.sock"), bus.clone()));
    tokio::spawn(bus::serve_system_bus(bus));
    tokio::task::spawn_local(switched::tell(directory.to_owned(), moves_out, told_in, config.script_deadline));
    daemon.go_on_extending();
    daemon.tell_scripts(); // what an agent that died left undone
    daemon.holds.begin(now()); // for a preparation that goes on
    daemon.feed(Event::Restarted).await;

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let deadline = daemon.record.guest.deadline();
        let extension = daemon.next_extension();
        let sleep = Duration::from_millis(deadline.map_or(0, |d| d.at.saturating_sub(now())));
        tokio::select! {
            // First what cannot wait: the reset of the transport is the arrival.
            biased;
            Some(news) = news.recv() => daemon.hear(news).await,
            // Before the count that they are worth.
            Some((token, errno)) = failures.recv() => daemon.subflow_failed(token, errno),
            Some(fact) = facts.recv() => daemon.feed(fact).await,
            Some(call) = calls.recv() => daemon.call(call).await,
            Some(one) = told.recv() => daemon.told(one),
            () = routes_changed.notified() => daemon.look_after_paths().await,
            Some(one) = progress.recv() => daemon.hear_of(one).await,
            () = daemon.release.due() => daemon.release_old().await,
            () = tokio::time::sleep_until(daemon.release.quiet()), if daemon.record.left_up.is_some() => {
                daemon.set_spare_down().await;
            }
            () = obtaining::sleep_until(extension), if extension.is_some() => daemon.extend(),
            () = tokio::time::sleep(sleep), if deadline.is_some() => {
                if let Some(d) = deadline {
                    tracing::debug!(awaited = d.awaited, "the time for this has come");
                }
                daemon.feed(Event::Deadline).await;
            }
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    daemon.leave().await;
    Ok(())
}

/// As systemd's unit for it does, with more rights than the agent has there; elsewhere the agent is the one to do it.
fn force_plain_programs(wanted: &Mptcp, directory: &Path) {
    let as_wanted = match force::standing(directory) {
        None => wanted.force == Force::Off,
        Some(standing) => standing.as_ref() == Some(wanted),
    };
    if as_wanted {
        return;
    }
    match force::apply(wanted, directory) {
        Ok(()) => tracing::info!(force = ?wanted.force, "changed which plain programs get Multipath TCP"),
        Err(error) => tracing::warn!(
            error = %chain(&error),
            "plain programs do not get Multipath TCP as configured; try: systemctl restart lsm-guest-force"
        ),
    }
}

/// Milliseconds since boot: goes on through the agent's restarts.
fn now() -> Millis {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| t.tv_sec() as u64 * 1_000 + t.tv_nsec() as u64 / 1_000_000)
}

struct Daemon {
    kernel: Kernel,
    record: Record,
    tally: Tally,
    /// Hosts that are listening.
    hosts: Vec<(u64, mpsc::UnboundedSender<FromGuest>)>,
    callers: Callers,
    facts: mpsc::UnboundedSender<Event>,
    /// The question to the new LAN's gateway, while somebody waits for the answer.
    probe: Option<tokio::task::AbortHandle>,
    /// The watch for connections that end, while the old path is being left.
    closures: Option<tokio::task::AbortHandle>,
    /// What was said last of packets that leave by the wrong vNIC.
    misled: Option<String>,
    /// How long the last dump of the connections took.
    counting: Rc<Cell<Duration>>,
    /// The last one made for a host, which asks for it page by page.
    forecast: Forecast,
    holds: Holds,
    signals: broadcast::Sender<Signal>,
    /// To whoever runs the scripts.
    moves: mpsc::UnboundedSender<Move>,
    reports: Reports,
    /// The work for addresses of the new LAN, while there is any.
    obtaining: Option<tokio::task::JoinHandle<()>>,
    /// What it has come to.
    progress: mpsc::UnboundedSender<Progress>,
    release: Release,
}

impl Daemon {
    /// What holds for the namespace as long as the agent runs: limits count for connections made from now on.
    fn set_up(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let found = self.kernel.path_manager.limits()?;
        self.record.limits.get_or_insert(found);
        let mine = std::mem::take(&mut self.record.changes);
        // Seconds until an unanswered ADD_ADDR is repeated, on kernels that do not go by the round-trip time.
        path::set_parameter(&mut self.record, "net/mptcp/add_addr_timeout", "1");
        let parameters = std::mem::replace(&mut self.record.changes, mine);
        if self.record.parameters.is_empty() {
            self.record.parameters = parameters;
        }
        self.record.save()?;
        let most = Limits {
            subflows: found.subflows.max(LIMITS.subflows),
            add_addr_accepted: found.add_addr_accepted.max(LIMITS.add_addr_accepted),
        };
        self.kernel.path_manager.set_limits(most)?;
        Ok(())
    }

    /// Puts back what was set up, unless a migration is under way: then the next start goes on with it.
    async fn leave(&mut self) {
        if !matches!(self.record.guest, Guest::Idle { .. }) {
            tracing::warn!(
                state = self.record.guest.name(),
                "stopping in the middle of a migration; the next start goes on with it"
            );
            return;
        }
        while self.record.left_up.is_some() {
            tokio::time::sleep_until(self.release.quiet()).await;
            self.set_spare_down().await;
        }
        if let Some(limits) = self.record.limits.take()
            && let Err(error) = self.kernel.path_manager.set_limits(limits)
        {
            tracing::warn!(error = %chain(&error), "limits stay raised");
        }
        let parameters = std::mem::take(&mut self.record.parameters);
        for failure in path::take_back(&mut self.kernel, parameters).await {
            tracing::warn!(failure, "a kernel parameter stays as it is");
        }
        if let Err(error) = self.record.save() {
            tracing::warn!(%error, "cannot save the state");
        }
    }

    fn save(&self) {
        self.reports.save();
        if let Err(error) = self.record.save() {
            tracing::warn!(%error, "cannot save the state; a crash now would lose it");
        }
    }
}
