//! `lsm-hook serve`: takes libvirt's hook calls, peers' calls and libvirt's events, and gives each to the migration it
//! is about. Gone when idle, if systemd's sockets can start it again.

mod afresh;
mod hooks;
mod inlets;
mod offers;
mod questions;
mod restart;
mod sockets;

use std::{
    collections::HashMap,
    path::Path,
    rc::Rc,
    time::{Duration, Instant},
};

use lsm_protocol::{
    MigrationId, Peer, Running, Uuid,
    forecast::{Forecast, Shown},
};
use tokio::sync::{mpsc, oneshot};

use self::{
    afresh::{Found, Question},
    inlets::{take_events, take_hooks, take_peers},
    offers::Parked,
    questions::Questions,
    sockets::Sockets,
};
use crate::{
    admission::{self, Door},
    arrival::{self, Arrival},
    claims::Claims,
    config::Config,
    departure,
    divert::Fdb,
    filters, foresight,
    hook::{HookAnswer, HookRequest},
    host::Host,
    inventory::{Inventory, Vm},
    libvirt::{What, Whose},
    moved::Moves,
    peer::Identity,
    peer_line::PeerHandle,
    report::Reports,
    status::{Crossed, Status},
    stream::Streams,
    tunnel::{
        Tunnels,
        wireguard::{self, Wireguard},
    },
};

/// State and sockets, unless the command line says otherwise.
pub const DIRECTORY: &str = "/run/lsm";

/// With nothing to do for this long, a service that systemd's sockets can start again goes.
const IDLE: Duration = Duration::from_secs(60);

/// What is under way has this long to say goodbye when the service goes.
const LEAVE: Duration = Duration::from_secs(1);

type Failure = Box<dyn std::error::Error>;

/// Something happened that concerns one migration, or begins one.
enum Input {
    Hook(HookRequest, oneshot::Sender<HookAnswer>),
    Peer {
        name: String,
        handle: PeerHandle,
        message: Peer,
    },
    Libvirt(Whose, What),
    /// The connection to libvirt is there, perhaps again.
    Connected,
    /// What libvirt said when it was asked for all VMs.
    Found(Box<Found>),
    /// An admission has come to an offer.
    Admitted(Box<admission::Admitted>),
    Over(MigrationId),
    /// What waits for the end of this migration has waited long enough.
    NoLonger(MigrationId),
}

/// Serves until SIGTERM, or until idle.
///
/// # Errors
/// When the configuration or the PKI is not good, or a socket cannot be had.
pub async fn serve(config: &Path, directory: &Path) -> Result<(), Failure> {
    let config = Config::load(config)?;
    let unusable = |error| unusable(directory, &error);
    std::fs::create_dir_all(directory.join("migrations")).map_err(unusable)?;
    if config.encrypts() {
        wireguard::supported()?;
    }
    let identity = Identity::load(&config.tls)?;
    let sockets = Sockets::open(&config, directory)?;
    let tunnels = Tunnels::open()?;
    let host = Rc::new(Host {
        identity,
        wireguard: Wireguard::new(&tunnels, config.tunnel.map_or(0, |tunnel| tunnel.wireguard_port)),
        tunnels,
        fdb: Fdb::open()?,
        inventory: Inventory::open(directory).map_err(unusable)?.into(),
        claims: Claims::default(),
        door: Door::default(),
        moves: Rc::new(Moves::open(directory, config.script_deadline).map_err(unusable)?),
        reports: Rc::new(Reports::open(&config.reports)),
        streams: Streams::new(&config.stream, directory),
        followed: Rc::default(),
        directory: directory.to_owned(),
        state: directory.join("migrations"),
        config,
    });
    let (inputs, mut inbox) = mpsc::unbounded_channel();
    let mut service = Service {
        host: host.clone(),
        inputs: inputs.clone(),
        departures: HashMap::new(),
        arrivals: HashMap::new(),
        printed: HashMap::new(),
        question: Question::default(),
        questions: Questions::default(),
        parked: HashMap::new(),
    };
    service.resume().await;
    host.moves.resume();
    tokio::task::spawn_local(take_hooks(sockets.hook, inputs.clone()));
    tokio::task::spawn_local(take_peers(host.clone(), sockets.peers, inputs.clone()));
    tokio::task::spawn_local(take_events(inputs));
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    tracing::info!(host = host.config.name, listen = %host.config.listen, "serving");

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut again = tokio::time::interval(afresh::AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let nothing_moves = service.departures.is_empty() && service.arrivals.is_empty();
        let idle = sockets.activated && nothing_moves;
        if nothing_moves {
            again.reset();
        }
        tokio::select! {
            Some(input) = inbox.recv() => service.take(input).await,
            () = tokio::time::sleep(IDLE), if idle => {
                if !host.moves.is_busy() {
                    break;
                }
            }
            _ = again.tick(), if !nothing_moves => service.ask_afresh(),
            _ = terminate.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    tracing::info!("going");
    service.leave().await;
    Ok(())
}

/// What must outlive the service has no place.
fn unusable(directory: &Path, error: &std::io::Error) -> String {
    let place = directory.display();
    format!(
        "cannot keep state in {place}: {error}; see that it can be written and has room: df {place}; mount | grep run"
    )
}

struct Service {
    host: Rc<Host>,
    inputs: mpsc::UnboundedSender<Input>,
    departures: HashMap<MigrationId, (Uuid, mpsc::UnboundedSender<departure::News>)>,
    arrivals: HashMap<MigrationId, (Uuid, mpsc::UnboundedSender<arrival::News>)>,
    /// What was printed for each VM that comes: where the hook is installed twice, it comes back as the second one's input.
    printed: HashMap<MigrationId, String>,
    question: Question,
    questions: Questions,
    /// Offers, by the migration whose end they wait for.
    parked: HashMap<MigrationId, Vec<Parked>>,
}

impl Service {
    async fn take(&mut self, input: Input) {
        match input {
            Input::Hook(request, answer) => self.hook(request, answer).await,
            Input::Peer { name, handle, message } => self.peer(name, handle, message),
            Input::Libvirt(whose, what) => self.event(&whose, what),
            Input::Connected => self.ask_afresh(),
            Input::Found(found) => self.found(*found),
            Input::Admitted(admitted) => self.admitted(*admitted),
            Input::NoLonger(migration) => self.unpark(migration),
            Input::Over(migration) => {
                if let Some((vm, _)) = self.departures.remove(&migration) {
                    self.tell_arrivals(vm, || arrival::News::Stays);
                }
                self.arrivals.remove(&migration);
                self.printed.remove(&migration);
                self.unpark(migration);
            }
        }
    }

    fn started(&self, vm: Vm, known: bool) {
        self.tell_arrivals(vm.uuid, || arrival::News::Started(vm.clone()));
        if !known {
            self.host.inventory.borrow_mut().put(vm);
        }
    }

    fn moves(&self, vm: Uuid) -> bool {
        let departs = self.departures.values().any(|(of, _)| *of == vm);
        departs || self.arrivals.values().any(|(of, _)| *of == vm)
    }

    fn runs(&self, vm: Uuid) {
        self.tell_departures(vm, || departure::News::Resumed);
        self.tell_arrivals(vm, || arrival::News::Resumed);
    }

    fn gone(&self, vm: Uuid) {
        self.host.inventory.borrow_mut().remove(vm);
        self.tell_departures(vm, || departure::News::VmGone);
        self.tell_arrivals(vm, || arrival::News::VmGone);
    }

    fn tell_departures(&self, vm: Uuid, news: impl Fn() -> departure::News) {
        let inboxes = self.departures.values().filter(|(of, _)| *of == vm);
        inboxes.for_each(|(_, inbox)| drop(inbox.send(news())));
    }

    fn tell_arrivals(&self, vm: Uuid, news: impl Fn() -> arrival::News) {
        let inboxes = self.arrivals.values().filter(|(of, _)| *of == vm);
        inboxes.for_each(|(_, inbox)| drop(inbox.send(news())));
    }

    /// An admission found the source and made an offer.
    fn admitted(&mut self, admitted: admission::Admitted) {
        let admission::Admitted { saved, orders, waiting_xml, answer, peer, news, turn, expected } = admitted;
        let Some(offer) = saved.machine.offer() else { return };
        let (migration, vm) = (offer.migration, offer.vm);
        let waiting = answer.map(|answer| {
            self.printed.insert(migration, waiting_xml.clone());
            arrival::Waiting { answer, xml: waiting_xml }
        });
        let (inbox_in, inbox) = mpsc::unbounded_channel();
        self.arrivals.insert(migration, (vm, inbox_in));
        self.host.claims.begin(offer, &saved.peer);
        drop(expected);
        let arrival = Arrival::new(self.host.clone(), saved, waiting, peer, turn);
        let inputs = self.inputs.clone();
        tokio::task::spawn_local(async move {
            arrival.run(orders, news, inbox).await;
            let _ = inputs.send(Input::Over(migration));
        });
    }

    fn peer(&mut self, name: String, handle: PeerHandle, message: Peer) {
        match message {
            Peer::Locate { .. } if !self.questions.may_locate(&name, Instant::now()) => {}
            Peer::Locate { vm } => {
                let running = self.running(vm);
                handle.tell(Peer::Located { vm, running });
            }
            Peer::Foresee { vm } => {
                let may = self.questions.may_foresee(&name, vm, Instant::now());
                let forecast = self.host.inventory.borrow().get(vm).filter(|_| may).map(|vm| self.foresee(vm));
                tokio::task::spawn_local(async move {
                    let forecast = match forecast {
                        Some(forecast) => forecast.await.map(|forecast| forecast.page(0)),
                        None => None,
                    };
                    handle.tell(Peer::Foreseen { vm, forecast });
                });
            }
            Peer::Encrypt { .. } if !self.questions.may_locate(&name, Instant::now()) => {}
            Peer::Encrypt { migration, end } => self.encrypt(name, handle, migration, end),
            Peer::Offer(offer) if !self.departures.contains_key(&offer.migration) => {
                self.offered(name, handle, offer, false);
            }
            message => {
                let Some(migration) = message.migration() else { return };
                match (self.departures.get(&migration), &message) {
                    (Some((_, inbox)), _) => drop(inbox.send(departure::News::Peer(name, message, handle))),
                    // Gone already: so it is taken down.
                    (None, Peer::TakeDown { .. } | Peer::Abort { .. }) => {
                        self.withdrawn(migration);
                        handle.tell(Peer::TakenDown { migration });
                    }
                    // It has arrived there, and nothing of it is left here: not its old path either.
                    (None, Peer::Arrived { .. }) => handle.tell(Peer::TakenDown { migration }),
                    // We gave it up, and it has not heard of that.
                    (None, Peer::KeepAlive { .. }) => handle.tell(Peer::Abort { migration }),
                    (None, _) => tracing::debug!(%migration, peer = name, "about a migration that is over"),
                }
            }
        }
    }

    fn running(&self, vm: Uuid) -> Option<Running> {
        let inventory = self.host.inventory.borrow();
        let vm = inventory.get(vm)?;
        let underlay = self.host.config.tunnel?.address;
        let lan = vm.vnic(vm.active)?.lan.as_ref().and_then(|lan| self.host.config.lans.get(lan));
        let mtu = lan.map_or(1_500, |lan| lan.mtu) as u16;
        Some(Running { vnics: vm.places(), active: vm.active, underlay, mtu })
    }

    fn event(&mut self, whose: &Whose, what: What) {
        let uuid = match whose {
            Whose::Uuid(uuid) => crate::inventory::parse_uuid(uuid),
            Whose::Name(name) => self.host.inventory.borrow().by_name(name).map(|vm| vm.uuid),
        };
        let Some(uuid) = uuid else { return };
        self.question.overtaken(uuid);
        match what {
            What::Suspended { .. } | What::CpusStopped => self.tell_departures(uuid, || departure::News::Suspended),
            What::Resumed { .. } | What::CpusRun => self.runs(uuid),
            What::Stopped(ending) => {
                if !self.moves(uuid) {
                    self.host.inventory.borrow_mut().ended(uuid, ending);
                }
                self.gone(uuid);
            }
            _ => {}
        }
    }

    /// Every migration is asked at its own task, which may be busy for a while: nobody else waits for that.
    fn status(&self) -> impl Future<Output = Status> + use<> {
        let (host, mut asked) = (self.host.clone(), Vec::new());
        for (_, inbox) in self.departures.values() {
            let (answer, answered) = oneshot::channel();
            let _ = inbox.send(departure::News::Status(answer));
            asked.push(answered);
        }
        for (_, inbox) in self.arrivals.values() {
            let (answer, answered) = oneshot::channel();
            let _ = inbox.send(arrival::News::Status(answer));
            asked.push(answered);
        }
        async move {
            let answered = futures_util::future::join_all(asked).await;
            let migrations = answered.into_iter().flatten().collect();
            let tunnels = host.tunnels.list_ours().await.unwrap_or_default();
            let mut crossed = Vec::new();
            for tunnel in &tunnels {
                if let Ok(Some(counts)) = filters::counts(*tunnel).await {
                    crossed.push(Crossed { tunnel: *tunnel, counts });
                }
            }
            let vms = host.inventory.borrow().all().cloned().collect();
            let (moved, last) = (host.moves.all(), host.reports.last());
            Status { host: host.config.name.clone(), vms, migrations, tunnels, crossed, moved, last }
        }
    }

    /// What would become of a VM's connections, asked by way of whoever has a line to the guest: a virtio-serial port
    /// takes one at a time.
    fn foresee(&self, vm: &Vm) -> impl Future<Output = Option<Forecast>> + use<> {
        let (address, macs) = (vm.address(&self.host.config.keys), vm.macs());
        let (answer, answered) = oneshot::channel();
        let departing = self.departures.values().find(|(of, _)| *of == vm.uuid);
        let arriving = self.arrivals.iter().find(|(_, (of, _))| *of == vm.uuid);
        let by_line = match (departing, arriving) {
            // Whichever began last; the other of the two is set aside.
            (_, Some((migration, (_, inbox)))) if !self.host.claims.is_aside(*migration) => {
                inbox.send(arrival::News::Foresee(answer)).is_ok()
            }
            (Some((_, inbox)), _) => inbox.send(departure::News::Foresee(answer)).is_ok(),
            (None, Some((_, (_, inbox)))) => inbox.send(arrival::News::Foresee(answer)).is_ok(),
            (None, None) => false,
        };
        async move { if by_line { foresight::answered(answered).await } else { foresight::ask(address, macs).await } }
    }

    fn forecast(&self, name: String, answer: oneshot::Sender<HookAnswer>) {
        let vm = self.host.inventory.borrow().by_name(&name).cloned();
        let refuse = |why: &str| HookAnswer { exit: 1, stdout: String::new(), stderr: format!("lsm-hook: {why}\n") };
        let Some(vm) = vm else {
            let _ = answer.send(refuse(&format!("no managed VM {name} runs here; see \"lsm-hook status\"")));
            return;
        };
        let forecast = self.foresee(&vm);
        tokio::task::spawn_local(async move {
            let _ = answer.send(match forecast.await {
                Some(forecast) => {
                    let stdout = serde_json::to_string(&Shown::from(&forecast)).unwrap_or_default();
                    HookAnswer { exit: 0, stdout, stderr: String::new() }
                }
                None => refuse(&format!(
                    "the guest of VM {name} gave no forecast; is lsm-guest running in it, as new as this program, and has it a vsock device or the channel org.lsm.guest.0?"
                )),
            });
        });
    }

    /// The operator ends a tunnel that policy would keep.
    fn release(&self, name: &str) -> HookAnswer {
        let uuid = self.host.inventory.borrow().by_name(name).map(|vm| vm.uuid);
        if self.departures.values().any(|(vm, _)| Some(*vm) == uuid) {
            let stderr = format!(
                "lsm-hook: VM {name} is being moved on; wait for that, or cancel it first: virsh domjobabort {name}\n"
            );
            return HookAnswer { exit: 1, stdout: String::new(), stderr };
        }
        let released = self.arrivals.values().filter(|(vm, _)| Some(*vm) == uuid);
        let count = released.map(|(_, inbox)| drop(inbox.send(arrival::News::Release))).count();
        if count == 0 {
            let stderr = format!(
                "lsm-hook: no tunnel of VM {name} ends on this host; see \"lsm-hook status\" on the host where it runs\n"
            );
            return HookAnswer { exit: 1, stdout: String::new(), stderr };
        }
        HookAnswer {
            exit: 0,
            stdout: format!("the old path of VM {name} is being taken down\n"),
            stderr: String::new(),
        }
    }
}
