//! `lsm-guest run`: events to the machine, its orders to the kernel and the host. Decides nothing.

use std::{cell::Cell, collections::VecDeque, path::Path, rc::Rc, time::Duration};

use lsm_protocol::{
    Addressing, FromGuest, Mac, Millis, Refusal, Side, ToGuest,
    forecast::Forecast,
    guest::{Ended, Event, Guest, Notice, Order, Step, holds::Holds},
};
use tokio::sync::{broadcast, mpsc};

use crate::{
    bus::{self, Bus, Call},
    callers::Callers,
    changes,
    config::{Config, Force, Mptcp},
    endpoints, force, foresight, invitation,
    kernel::Kernel,
    mptcp::{Events, Limits},
    neighbours,
    path::{self, chain},
    record::Record,
    signals::{self, Signal},
    switched::{self, Move},
    tally::Tally,
    transport::{News, serial, vsock},
};

/// The kernel's maxima.
const LIMITS: Limits = Limits { subflows: 8, add_addr_accepted: 8 };
/// A gratuitous ARP or unsolicited NA may be lost; it is said again after these.
const ANNOUNCE_AGAIN: [Duration; 3] = [Duration::from_millis(100), Duration::from_millis(500), Duration::from_secs(2)];

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// When the configuration is wrong, the kernel lacks MPTCP, the state cannot be kept, or the sockets cannot be made.
pub async fn run(directory: &Path, config: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let config = Config::load(config)?;
    force_plain_programs(&config.mptcp, directory);
    let record = Record::open(directory)?;
    let (news_in, mut news) = mpsc::unbounded_channel();
    let (calls_in, mut calls) = mpsc::unbounded_channel();
    let (facts_in, mut facts) = mpsc::unbounded_channel();
    let (moves, moves_out) = mpsc::unbounded_channel();
    let (told_in, mut told) = mpsc::unbounded_channel();
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
        forecast: Forecast::default(),
        counting: Rc::default(),
        holds: Holds::new(config.hold_limit),
        signals: bus.signals.clone(),
        moves,
    };
    daemon.set_up()?;
    tokio::task::spawn_local(changes::watch_subflows(Events::open()?, facts_in, daemon.counting.clone()));
    tokio::spawn(vsock::listen(news_in.clone()));
    tokio::spawn(serial::serve(news_in));
    tokio::spawn(bus::serve_socket(directory.join("guest.sock"), bus.clone()));
    tokio::spawn(bus::serve_system_bus(bus));
    tokio::task::spawn_local(switched::tell(moves_out, told_in, config.script_deadline));
    daemon.tell_scripts(); // what an agent that died left undone
    daemon.holds.begin(now()); // for a preparation that goes on
    daemon.feed(Event::Restarted).await;

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        let deadline = daemon.record.guest.deadline();
        let sleep = Duration::from_millis(deadline.map_or(0, |d| d.at.saturating_sub(now())));
        tokio::select! {
            // First what cannot wait: the reset of the transport is the arrival.
            biased;
            Some(news) = news.recv() => daemon.hear(news).await,
            Some(fact) = facts.recv() => daemon.feed(fact).await,
            Some(call) = calls.recv() => daemon.call(call).await,
            Some(one) = told.recv() => daemon.told(one),
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
    /// How long the last dump of the connections took.
    counting: Rc<Cell<Duration>>,
    /// The last one made for a host, which asks for it page by page.
    forecast: Forecast,
    holds: Holds,
    signals: broadcast::Sender<Signal>,
    /// To whoever runs the scripts.
    moves: mpsc::UnboundedSender<Move>,
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

    async fn hear(&mut self, news: News) {
        match news {
            News::Opened { session, outbox } => self.hosts.push((session, outbox)),
            News::Said { told: ToGuest::Query, session } => {
                self.answer(session, FromGuest::Status(self.record.guest.status()));
            }
            News::Said { told: ToGuest::Forecast { vnics, skip }, session } => {
                if skip == 0 {
                    self.manage(vnics);
                    match self.foresee().await {
                        Ok(forecast) => self.forecast = forecast,
                        Err(error) => return tracing::warn!(error, "cannot make a forecast; the host gets no answer"),
                    }
                }
                self.answer(session, FromGuest::Forecast(self.forecast.page(skip)));
            }
            News::Said { told, .. } => self.feed(Event::Told(told)).await,
            News::Succeeded => self.feed(Event::TransportReset).await,
            News::Closed { session, reset } => {
                self.hosts.retain(|(s, _)| *s != session);
                if reset {
                    self.feed(Event::TransportReset).await;
                }
            }
        }
    }

    /// To the one host that asked.
    fn answer(&self, session: u64, answer: FromGuest) {
        self.hosts.iter().filter(|(s, _)| *s == session).for_each(|(_, host)| drop(host.send(answer.clone())));
    }

    fn manage(&mut self, vnics: Vec<Mac>) {
        if !vnics.is_empty() && vnics != self.record.managed {
            self.record.managed = vnics;
            self.save();
        }
    }

    async fn foresee(&mut self) -> Result<Forecast, String> {
        foresight::look(&mut self.kernel, &self.record, now()).await
    }

    async fn call(&mut self, call: Call) {
        match call {
            Call::Status { answer } => {
                let stragglers = self.tally.outcomes().filter(|one| !one.joined).map(|one| one.peer).collect();
                let _ = answer.send(bus::Status::of(&self.record, stragglers, self.holds.all(), now()));
            }
            Call::Forecast { answer } => {
                let _ = answer.send(self.foresee().await);
            }
            Call::Rehearse { told, answer } => {
                let (_, orders) = self.record.guest.clone().handle(now(), Event::Told(told));
                let _ = answer.send(crate::rehearse::steps(&orders, self.record.paths.as_ref()));
            }
            Call::Tell { told, answer } => match told.migration() {
                Some(migration) => {
                    self.callers.wait(migration, answer);
                    self.feed(Event::Told(told)).await;
                }
                None => drop(answer),
            },
            Call::Hold { owner, reason, milliseconds, answer } => {
                let taken = self.holds.take(now(), &owner, &reason, milliseconds.into());
                tracing::info!(owner, reason, milliseconds, refused = taken.is_err(), "asked to hold moves back");
                let _ = answer.send(taken.map_err(|error| error.to_string()));
                self.hold_back().await;
            }
            Call::Release { owner, cookie, answer } => {
                let released = self.holds.release(&owner, cookie);
                if let Ok(hold) = &released {
                    tracing::info!(%hold, "released");
                }
                let _ = answer.send(released.map(drop).map_err(|error| error.to_string()));
                self.hold_back().await;
            }
            Call::Gone { owner } => {
                if self.holds.gone(&owner) {
                    tracing::info!(owner, "gone, and holds moves back no more");
                    self.hold_back().await;
                }
            }
        }
    }

    /// What the holds mean for a preparation under way.
    async fn hold_back(&mut self) {
        self.feed(Event::Held { until: self.holds.until() }).await;
    }

    /// The scripts have run.
    fn told(&mut self, one: Move) {
        let is = |moved: &Move| (moved.migration, moved.to) == (one.migration, one.to);
        if self.record.moved.as_ref().is_some_and(is) {
            self.record.moved = Some(one);
            self.save();
        }
    }

    /// Has the scripts run for a switch that they have not been run for.
    fn tell_scripts(&self) {
        if let Some(one @ Move { scripts: None, .. }) = &self.record.moved {
            let _ = self.moves.send(one.clone());
        }
    }

    /// Before the state is written down: the scripts are owed from the same moment on.
    fn note_moves(&mut self, orders: &[Order]) {
        for order in orders {
            if let (Order::Notify(Notice::Switched { to, sure: true }), Some(plan), Some(paths)) =
                (order, self.record.guest.plan(), &self.record.paths)
            {
                self.record.moved = Some(Move::to(*to, plan.migration, &plan.lan, paths));
            }
        }
    }

    fn notify(&mut self, notice: Notice) -> Option<Event> {
        let migration = match &self.record.guest {
            Guest::Idle { last: Some(Ended::Settled(migration) | Ended::Aborted(migration)) } => Some(*migration),
            guest => guest.migration(),
        }?;
        let about = migration.to_string();
        let signal = match notice {
            Notice::Preparing => {
                self.holds.begin(now());
                let plan = self.record.guest.plan()?;
                let address = match plan.addressing {
                    Addressing::Static { address, .. } => address.to_string(),
                    _ => String::new(),
                };
                Signal::Preparing {
                    migration: about,
                    lan: plan.lan.clone(),
                    address,
                    most_ms: self.holds.limit() as u32,
                }
            }
            Notice::Switched { to, sure } => {
                let Move { from, to, .. } = Move::to(to, migration, "", self.record.paths.as_ref()?);
                if sure && let Some(moved) = &self.record.moved {
                    let message = moved.message();
                    self.hosts.retain(|(_, host)| host.send(message.clone()).is_ok());
                    self.tell_scripts();
                }
                Signal::Switched { migration: about, from: from.to_string(), to: to.to_string(), sure }
            }
            Notice::Settled => Signal::Settled { migration: about },
            Notice::Aborted => Signal::Aborted { migration: about },
        };
        let _ = self.signals.send(signal); // an error: nobody is there to hear it
        (notice == Notice::Preparing).then(|| Event::Held { until: self.holds.until() })
    }

    /// One event, and whatever follows from it at once.
    async fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let was = self.record.guest.name();
            let was_awaiting = self.record.guest.deadline().map(|d| d.awaited);
            let why = summary(&event);
            let in_time = event != Event::Deadline;
            let was_held = self.record.guest.is_held();
            let (state, orders) = std::mem::take(&mut self.record.guest).handle(now(), event);
            self.record.guest = state;
            if !matches!(self.record.guest, Guest::Preparing(_) | Guest::Switched(_)) {
                self.stop_probe();
            }
            if was_held && !self.record.guest.is_held() && !in_time {
                tracing::warn!(by = self.holders(), "held back for as long as may be; going on without them");
            }
            self.watch_closures();
            self.note_moves(&orders);
            // The flip goes first and is written down after: it can be repeated, the time cannot.
            let urgent = orders.first() == Some(&Order::Do(Step::Prefer(Side::New)));
            // What orders nothing can be learnt again.
            if !urgent && !orders.is_empty() {
                self.save();
            }
            for order in orders {
                events.extend(self.carry_out(order).await);
            }
            if urgent {
                self.save();
            }
            self.log(was, was_awaiting, &why);
        }
    }

    async fn carry_out(&mut self, order: Order) -> Option<Event> {
        match order {
            Order::Do(step) => {
                if step == Step::ProbeGateway {
                    self.probe_gateway();
                    return None;
                }
                let done = self.perform(step).await;
                if let Err(why) = &done {
                    tracing::warn!(?step, %why, "a step failed");
                }
                Some(match done {
                    Ok(()) => Event::Done(step),
                    Err(why) => Event::Failed(step, why),
                })
            }
            Order::Count => {
                let paths = self.record.paths?;
                let flipped = matches!(self.record.guest, Guest::Switched(_) | Guest::Settling(_));
                let begun = std::time::Instant::now();
                let snapshot = self.kernel.diag.snapshot();
                self.counting.set(begun.elapsed());
                match snapshot {
                    Ok(snapshot) => Some(Event::Counted(self.tally.count(&snapshot, &paths, flipped))),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "cannot count the connections; trying again on schedule");
                        None
                    }
                }
            }
            Order::Learn => {
                self.record.evidence.learn(now(), self.tally.outcomes());
                if let Err(error) = self.record.save_evidence() {
                    tracing::warn!(%error, "cannot write down who has joined; a restart would forget it");
                }
                None
            }
            Order::Reply(reply) => {
                self.reply(reply);
                None
            }
            Order::Notify(notice) => self.notify(notice),
        }
    }

    async fn perform(&mut self, step: Step) -> Result<(), Refusal> {
        let (kernel, record) = (&mut self.kernel, &mut self.record);
        match step {
            Step::RaisePath => {
                let plan = record.guest.plan().cloned().ok_or(Refusal::NoSuchMigration)?;
                path::raise(kernel, record, &plan).await
            }
            Step::ProbeGateway => Ok(()),
            Step::Announce => endpoints::announce(kernel, record),
            Step::Reannounce => endpoints::announce_again(kernel, record),
            Step::Invite => invitation::invite(kernel, record),
            Step::Prefer(side) => endpoints::prefer(kernel, record, side),
            Step::TakeOver => {
                self.announce_again_later();
                path::take_over(&mut self.kernel, &mut self.record)
            }
            Step::Withdraw(side) => endpoints::withdraw(kernel, record, side),
            Step::LowerPath => path::lower(kernel, record).await,
            Step::ReleaseOld => path::release_old(kernel, record).await,
        }
    }

    /// In the background: an abort must not wait for a silent gateway.
    fn probe_gateway(&mut self) {
        let Some(paths) = self.record.paths else { return };
        let facts = self.facts.clone();
        self.stop_probe();
        let probe = tokio::task::spawn_local(async move {
            let (mac, exit) = (paths.new.mac, paths.new.exit);
            match neighbours::probe(exit.ifindex, mac, exit.source, exit.gateway).await {
                Ok(_) => drop(facts.send(Event::Done(Step::ProbeGateway))),
                Err(error) => {
                    let detail = chain(&error);
                    drop(facts.send(Event::Failed(Step::ProbeGateway, Refusal::Path { mac, detail })));
                }
            }
        });
        self.probe = Some(probe.abort_handle());
    }

    /// An answer that comes late must not count for the next migration.
    fn stop_probe(&mut self) {
        if let Some(probe) = self.probe.take() {
            probe.abort();
        }
    }

    /// While the old path is being left, each end of a connection to its address is worth a count.
    fn watch_closures(&mut self) {
        let old =
            self.record.paths.filter(|_| self.record.guest.holding().is_some()).map(|paths| paths.old.exit.source);
        match (old, &self.closures) {
            (Some(old), None) => {
                let facts = self.facts.clone();
                let task = tokio::task::spawn_local(async move {
                    if let Err(error) = changes::tell_closures(old, &facts).await {
                        tracing::warn!(error = %chain(&error), "counting on schedule only");
                    }
                });
                self.closures = Some(task.abort_handle());
            }
            (None, Some(task)) => {
                task.abort();
                self.closures = None;
            }
            _ => {}
        }
    }

    fn announce_again_later(&self) {
        let Some(paths) = self.record.paths else { return };
        tokio::task::spawn_local(async move {
            let (mac, exit) = (paths.new.mac, paths.new.exit);
            for wait in ANNOUNCE_AGAIN {
                tokio::time::sleep(wait).await;
                let _ = neighbours::announce(exit.ifindex, mac, exit.source);
            }
        });
    }

    fn reply(&mut self, reply: FromGuest) {
        let about = match &reply {
            FromGuest::Prepared { migration, .. }
            | FromGuest::Refused { migration, .. }
            | FromGuest::Switched { migration, .. }
            | FromGuest::Settled { migration }
            | FromGuest::Aborted { migration } => *migration,
            FromGuest::Status(_) | FromGuest::Forecast(_) | FromGuest::Moved { .. } => return,
        };
        // A host that was not listening when the VM moved hears of it with every answer since.
        let moved = self.record.moved.as_ref().filter(|moved| moved.migration == about).map(Move::message);
        if let (FromGuest::Switched { .. } | FromGuest::Settled { .. }, Some(moved)) = (&reply, moved) {
            self.hosts.retain(|(_, host)| host.send(moved.clone()).is_ok());
        }
        self.callers.answer(about, &reply);
        self.hosts.retain(|(_, host)| host.send(reply.clone()).is_ok());
    }

    fn holders(&self) -> String {
        self.holds.all().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    fn save(&self) {
        if let Err(error) = self.record.save() {
            tracing::warn!(%error, "cannot save the state; a crash now would lose it");
        }
    }

    fn log(&self, was: &str, was_awaiting: Option<&str>, why: &str) {
        let guest = &self.record.guest;
        let awaiting = guest.deadline().map(|d| d.awaited);
        if was == guest.name() && was_awaiting == awaiting {
            return;
        }
        let migration = guest.migration().map(|m| m.to_string());
        let counts = guest.status().counts;
        tracing::info!(
            from = was,
            to = guest.name(),
            why,
            migration,
            awaiting,
            held_by = guest.is_held().then(|| self.holders()),
            joined = counts.joined,
            waiting = counts.waiting,
            legacy = counts.legacy,
            "state"
        );
    }
}

/// An event in a few words, for the log.
fn summary(event: &Event) -> String {
    match event {
        Event::Told(told) => match told {
            ToGuest::Prepare(plan) => format!("told to prepare for LAN {}", plan.lan),
            ToGuest::Switch { to: Side::New, .. } => "told to switch".to_owned(),
            ToGuest::Switch { to: Side::Old, .. } => "told to switch back".to_owned(),
            ToGuest::Arrived { .. } => "told that the VM has arrived".to_owned(),
            ToGuest::Abort { .. } => "told to abort".to_owned(),
            ToGuest::KeepAlive { .. } => "kept alive".to_owned(),
            ToGuest::Query => "asked".to_owned(),
            ToGuest::Release { .. } | ToGuest::Settle { .. } => "told to leave the old path".to_owned(),
            ToGuest::Forecast { .. } => "asked for a forecast".to_owned(),
        },
        Event::Done(step) => format!("{step:?} done"),
        Event::Failed(step, why) => format!("{step:?} failed: {why}"),
        Event::Counted(_) => "connections counted".to_owned(),
        Event::SubflowsChanged => "subflows changed".to_owned(),
        Event::TransportReset => "the host's channel was reset".to_owned(),
        Event::Deadline => "the deadline came".to_owned(),
        Event::Restarted => "started".to_owned(),
        Event::Held { .. } => "programs in the VM hold it back, or no more".to_owned(),
    }
}
