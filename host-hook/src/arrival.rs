//! A VM comes to this host: the destination's machine and what it orders.

mod ends;
mod frames;

use std::{collections::VecDeque, rc::Rc, time::Duration};

use lsm_protocol::{
    Addresses, FromGuest, GuestFailure, Join, Offer, Peer, WireguardEnd,
    destination::{Destination, Event, Order, Refused},
    forecast::Forecast,
    report::Ended,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::{
    admission::Turn,
    clock::{self, now},
    divert::Diversion,
    foresight::Foresight,
    guest_line::GuestLine,
    hook::HookAnswer,
    host::Host,
    inventory::{Vm, write_json},
    moved::Move,
    peer_line::{PeerHandle, PeerNews},
    replay::{Outlet, Recorder},
    report::Account,
    story,
    stream::{Passage, Role},
};

/// Added to the round trip when frames are replayed: how long libvirt and the source took to notice the stop, and how long
/// the word of it waited on its way behind the last of the VM's memory. With 25 ms, 2 frames of 20 moves were lost.
const NOTICE: Duration = Duration::from_millis(60);

/// A prepared guest is left alone for so long after its arrival: its CPUs have a pause to make up for.
const WAKING: Duration = Duration::from_millis(150);

/// What the service passes on to an arrival.
pub enum News {
    /// The hook `prepare`: libvirt goes on.
    Begun,
    /// The hook `started`: QEMU waits for the memory, the taps are up.
    Started(Vm),
    Resumed,
    VmGone,
    /// libvirt was asked and does not know the VM: it is gone, or has not come yet.
    NotHere,
    Release,
    /// The VM is asked for by the host that it came from. Dropped when its guest is somebody else's to speak to.
    Departs(oneshot::Sender<()>),
    /// No more.
    Stays,
    Status(oneshot::Sender<crate::status::Migration>),
    /// What would become of the VM's connections.
    Foresee(oneshot::Sender<Forecast>),
    /// The service goes, and goes on when it is started again. Dropped when the guest was told goodbye.
    Leave(oneshot::Sender<()>),
}

/// What is kept of it on disk.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    pub machine: Destination,
    pub name: String,
    pub vm: Option<Vm>,
    pub peer: String,
    /// The source's end of the tunnels.
    pub remote: std::net::IpAddr,
    /// MTU of the LAN that the VM leaves, in bytes.
    pub home_mtu: u16,
    pub round_trip: Duration,
    /// For the report.
    #[serde(default)]
    pub account: Account,
    /// The addresses that the guest has got from the LAN, by its own word.
    #[serde(default)]
    pub addressed: Option<Addresses>,
    /// The source's end of WireGuard, where the tunnels are inside.
    #[serde(default)]
    pub wireguard: Option<WireguardEnd>,
}

/// The hook that waits in `migrate begin`, and what it prints if all goes well.
pub struct Waiting {
    pub answer: oneshot::Sender<HookAnswer>,
    pub xml: String,
}

/// One arrival.
pub struct Arrival {
    host: Rc<Host>,
    saved: Saved,
    waiting: Option<Waiting>,
    peer: PeerHandle,
    guest: Option<GuestLine>,
    recorder: Option<Recorder>,
    divert: Option<(Diversion, Outlet)>,
    /// What is found out beside the machine's work: the vNIC heard on its tap, the tunnels tried.
    facts: (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    /// The advance tunnel's removal.
    parting: clock::Later,
    foresight: Foresight,
    /// Until the copy is over.
    stream: Option<Passage>,
    /// What had come out of the home tunnel when it was looked at last.
    crossed: Option<u64>,
    /// Until both hosts' ends stand.
    turn: Option<Turn>,
}

impl Arrival {
    pub fn new(
        host: Rc<Host>,
        saved: Saved,
        waiting: Option<Waiting>,
        peer: PeerHandle,
        turn: Option<Turn>,
    ) -> Arrival {
        Arrival {
            host,
            saved,
            waiting,
            peer,
            guest: None,
            recorder: None,
            divert: None,
            facts: mpsc::unbounded_channel(),
            parting: clock::Later::default(),
            foresight: Foresight::default(),
            stream: None,
            crossed: None,
            turn,
        }
    }

    /// Runs until the machine is gone.
    pub async fn run(
        mut self,
        first: Vec<Order>,
        mut from_peer: mpsc::UnboundedReceiver<PeerNews>,
        mut inbox: mpsc::UnboundedReceiver<News>,
    ) {
        let Some(offer) = self.saved.machine.offer().cloned() else { return };
        self.save(&offer); // before anybody hears of it: who restarts must know of what was promised
        if self.copies() {
            self.stream = self.host.streams.enter(Role::Destination).await;
        }
        self.host.claims.stands(offer.migration, &self.saved.machine);
        if self.saved.machine.is_aside() {
            self.host.claims.give_up(offer.migration, offer.advance.vni); // long ago
        }
        let events = self.carry_out(first, &offer).await;
        self.feed(events, &offer).await;
        // Where the frames of a VM go that is on its way back is the departure's to say.
        if let Some(vm) = self.saved.vm.clone().filter(|_| !self.saved.machine.is_aside()) {
            self.watch(&vm, &offer).await;
        }
        while self.saved.machine != Destination::Gone {
            let deadline = self.saved.machine.deadline();
            let event = tokio::select! {
                // First what cannot wait: the stop, then the arrival.
                biased;
                Some(news) = from_peer.recv() => match news {
                    PeerNews::Said(Peer::GuestAddressed { addresses, .. }) => {
                        self.addressed(&offer, addresses);
                        continue;
                    }
                    PeerNews::Said(message) => Event::Peer(message),
                    PeerNews::RoundTrip(time) => {
                        self.saved.round_trip = time;
                        continue;
                    }
                    PeerNews::Failed(_) => continue, // the machine has its deadlines
                },
                Some(fact) = self.facts.1.recv() => fact,
                news = inbox.recv() => match news {
                    Some(News::Started(vm)) => {
                        self.saved.account.steps.mark("started");
                        self.watch(&vm, &offer).await;
                        self.saved.vm = Some(vm);
                        self.save(&offer);
                        Event::Begun
                    }
                    Some(News::Begun) => Event::Begun,
                    Some(News::Resumed) => Event::Arrived,
                    Some(News::VmGone) => Event::VmGone,
                    Some(News::NotHere) if self.saved.vm.is_some() => Event::VmGone,
                    Some(News::NotHere) => continue,
                    Some(News::Release) => Event::Release,
                    Some(News::Departs(_alone)) => {
                        self.feed(vec![Event::Departs], &offer).await;
                        if let Some(guest) = self.guest.take() {
                            guest.leave().await;
                        }
                        continue;
                    }
                    Some(News::Stays) => Event::Stays,
                    Some(News::Status(answer)) => {
                        let _ = answer.send(self.status(&offer));
                        continue;
                    }
                    Some(News::Foresee(answer)) => {
                        // Before its arrival the guest does not listen here.
                        if let (Some(vm), Some(line)) = (&self.saved.vm, &self.guest) {
                            self.foresight.ask(line, vm.macs(), answer);
                        }
                        continue;
                    }
                    Some(News::Leave(_left)) => {
                        self.save(&offer);
                        if let Some(guest) = self.guest.take() {
                            guest.leave().await;
                        }
                        return;
                    }
                    None => return, // the service stops; the state file says where to go on
                },
                reply = hear(&mut self.guest) => match (reply, &self.guest) {
                    (FromGuest::Forecast(page), Some(line)) => {
                        self.foresight.hear(line, page);
                        continue;
                    }
                    (FromGuest::Addressed { migration, addresses }, _) => {
                        if migration == offer.migration {
                            self.addressed(&offer, addresses);
                        }
                        continue;
                    }
                    (reply, _) => Event::Guest(reply),
                },
                () = clock::sleep_until(deadline) => {
                    if self.has_crossed(&offer).await {
                        self.feed(vec![Event::Crossed], &offer).await;
                    }
                    Event::Deadline
                }
                () = self.parting.due() => {
                    self.part(&offer).await;
                    continue;
                }
            };
            self.feed(vec![event], &offer).await;
        }
        self.host.disconnect(offer.migration).await;
        self.finish(&offer);
    }

    /// Whether anything has come from the source's end of the home tunnel since the last look: the sign that it stands.
    async fn has_crossed(&mut self, offer: &Offer) -> bool {
        if !matches!(self.saved.machine, Destination::Arrived { .. }) {
            return false;
        }
        match self.host.tunnels.received(offer.home.vni).await {
            Ok(packets) => self.crossed.replace(packets) != Some(packets),
            Err(error) => {
                tracing::debug!(migration = %offer.migration, error = story(&error), "nobody knows what the home tunnel carries");
                false
            }
        }
    }

    async fn feed(&mut self, events: Vec<Event>, offer: &Offer) {
        let mut events = VecDeque::from(events);
        while let Some(event) = events.pop_front() {
            let was = self.saved.machine.name();
            let why = summary(&event);
            let settled = matches!(event, Event::Guest(FromGuest::Settled { .. }));
            if let Event::Guest(FromGuest::Moved { migration, from, to }) = event
                && migration == offer.migration
            {
                self.tell_moved(offer, from, to);
            }
            if let Event::Guest(FromGuest::Report(report)) = &event {
                self.saved.account.hear(offer, report.clone());
            }
            let machine = std::mem::replace(&mut self.saved.machine, Destination::Gone);
            let before = machine.clone();
            let (machine, orders) = machine.handle(now(), event.clone());
            let ended = Ended::at_destination(&before, &event, &machine, &orders);
            self.saved.account.ended = ended.or(self.saved.account.ended);
            self.saved.machine = machine;
            self.host.claims.stands(offer.migration, &self.saved.machine);
            let name = self.saved.machine.name();
            if was != name {
                let awaiting = self.saved.machine.deadline().map(|d| d.awaited);
                self.saved.account.steps.mark(name);
                tracing::info!(vm = self.saved.name, migration = %offer.migration, from = was, to = name, why, awaiting, "state at the destination");
                if settled {
                    self.host.inventory.borrow_mut().settle(offer.vm, offer.home.mac);
                }
            }
            events.extend(self.carry_out(orders, offer).await);
            if !matches!(self.saved.machine, Destination::Building { .. }) {
                self.turn = None;
            }
            if !self.copies()
                && let Some(stream) = self.stream.take()
            {
                self.saved.account.stream = stream.carried();
            }
            if was != name {
                self.save(offer);
            }
        }
    }

    /// Whether libvirt copies the VM, or may yet.
    fn copies(&self) -> bool {
        matches!(
            self.saved.machine,
            Destination::Building { .. } | Destination::Waiting { .. } | Destination::Incoming { .. }
        )
    }

    async fn carry_out(&mut self, orders: Vec<Order>, offer: &Offer) -> Vec<Event> {
        let mut events = Vec::new();
        for order in orders {
            match order {
                Order::BuildEnds => events.push(match self.build(offer).await {
                    Ok(()) => {
                        self.saved.account.steps.mark("tunnel ends built");
                        Event::Built
                    }
                    Err(why) => Event::BuildFailed(why),
                }),
                Order::TryTunnels => self.try_tunnels(offer),
                Order::TellPeer(message) => self.peer.tell(message),
                Order::TellGuest(order) => {
                    if let Some(vm) = &self.saved.vm {
                        let address = vm.address(&self.host.config.keys);
                        // A guest that is prepared sees its arrival by itself, sooner than anybody could tell it.
                        let patience = if offer.join == Join::Before { WAKING } else { Duration::ZERO };
                        self.guest.get_or_insert_with(|| GuestLine::open(address, patience)).tell(order);
                    }
                }
                Order::Admit { warning } => self.admit(warning),
                Order::Refuse(why) => self.refuse(&why),
                Order::PointAtTap => self.point_at_tap(offer),
                Order::PointAtTunnel => self.point_at_tunnel(offer),
                Order::RemoveAdvance => {
                    self.parting.put_off();
                    // Where no VM wakes up, there is nothing to wait for. A service that dies meanwhile is told again.
                    if !matches!(self.saved.machine, Destination::Arrived { .. }) {
                        self.part(offer).await;
                    }
                }
                Order::RemoveHome => {
                    self.part(offer).await;
                    self.remove(offer.home, offer).await;
                    self.saved.account.steps.mark("home tunnel removed");
                }
                Order::SourceLost(silent) => {
                    let why = format!(
                        "nothing has come from the source host {} for {} s: the old path is left, and what still used it is cut",
                        self.saved.peer,
                        silent / 1_000
                    );
                    tracing::warn!(vm = self.saved.name, migration = %offer.migration, peer = self.saved.peer, "{why}");
                    self.saved.account.why = Some(why);
                }
            }
        }
        events
    }

    fn settled(&self) -> bool {
        matches!(self.saved.machine, Destination::TakingDown { .. })
    }

    fn addressed(&mut self, offer: &Offer, addresses: Addresses) {
        tracing::info!(vm = self.saved.name, migration = %offer.migration, %addresses, "the guest has got addresses of this LAN");
        self.saved.addressed = Some(addresses);
        self.save(offer);
    }

    /// The operator's scripts hear of it. The old addresses are the guest's word; the new ones are known here, as far as they
    /// were given, and a guest has no others.
    fn tell_moved(&self, offer: &Offer, from: Addresses, to: Addresses) {
        let given = self.saved.addressed.unwrap_or_else(|| offer.addressing.addresses());
        if (from == given) == (to == given) {
            tracing::debug!(vm = self.saved.name, %from, %to, "not the addresses that the VM was given");
            return;
        }
        let (vm, peer, lan) = (self.saved.name.clone(), self.saved.peer.clone(), offer.lan.clone());
        let moved =
            Move { migration: offer.migration.to_string(), vm, peer, lan, from, to, scripts: None, over: false };
        self.host.moves.heard(offer.migration, moved);
    }

    fn admit(&mut self, warning: Option<GuestFailure>) {
        let Some(Waiting { answer, xml }) = self.waiting.take() else { return };
        let mut stderr = String::new();
        if let Some(why) = warning {
            tracing::warn!(vm = self.saved.name, %why, "the guest is not prepared; its clients will join after arrival");
            stderr = format!(
                "lsm-hook: VM {} is not prepared: {why}; its clients will join after arrival\n",
                self.saved.name
            );
            self.saved.account.why = Some(format!("the guest was not prepared: {why}"));
        }
        let _ = answer.send(HookAnswer { exit: 0, stdout: xml, stderr });
    }

    fn refuse(&mut self, why: &Refused) {
        let text =
            format!("lsm-hook: VM {} cannot move here from {}: {}\n", self.saved.name, self.saved.peer, story(why));
        tracing::warn!(vm = self.saved.name, why = story(why), "migration refused");
        self.saved.account.why = Some(story(why));
        if let Some(Waiting { answer, .. }) = self.waiting.take() {
            let _ = answer.send(HookAnswer { exit: 1, stdout: String::new(), stderr: text });
        }
    }

    fn finish(&mut self, offer: &Offer) {
        let _ = std::fs::remove_file(self.file(offer));
        self.host.moves.over(offer.migration);
        self.host.claims.end(offer.migration);
        self.host.release_addresses(offer.vm);
        tracing::info!(vm = self.saved.name, migration = %offer.migration, "arrival over");
        let account = std::mem::take(&mut self.saved.account);
        let came = matches!(account.ended, Some(Ended::Settled | Ended::Released)).then(|| offer.vm.to_string());
        let mut report = account.close("destination", &self.saved.name, &self.saved.peer, offer);
        report.round_trip_ms = Some(self.saved.round_trip.as_secs_f64() * 1_000.0);
        report.scripts = self.host.moves.scripts(offer.migration);
        self.host.reports.hand_in(report, came);
    }

    fn save(&self, offer: &Offer) {
        if self.saved.machine == Destination::Gone {
            return;
        }
        if let Err(error) = write_json(&self.file(offer), &self.saved) {
            let file = self.file(offer);
            tracing::warn!(migration = %offer.migration, %error, file = %file.display(), "cannot save the state; a restart now would lose it; is its disk full?");
        }
    }

    fn file(&self, offer: &Offer) -> std::path::PathBuf {
        self.host.state.join(format!("arrival-{}.json", offer.migration))
    }

    fn status(&self, offer: &Offer) -> crate::status::Migration {
        let machine = &self.saved.machine;
        crate::status::Migration::new(
            "destination",
            &self.saved.name,
            &self.saved.peer,
            offer,
            machine.name(),
            machine.deadline(),
            &self.saved.account.steps,
        )
        .counted(machine.counts())
    }
}

/// What the guest says, on a line that may not be open.
async fn hear(guest: &mut Option<GuestLine>) -> FromGuest {
    match guest {
        Some(line) => line.hear().await,
        None => std::future::pending().await,
    }
}

fn summary(event: &Event) -> String {
    match event {
        Event::Built => "the tunnel ends stand".to_owned(),
        Event::BuildFailed(why) => format!("the tunnel ends could not be built: {why}"),
        Event::Carries => "full frames cross the tunnels".to_owned(),
        Event::Impassable(why) => why.to_string(),
        Event::Peer(Peer::GuestRefused { why, .. }) => format!("the guest is not prepared: {why}"),
        Event::Peer(Peer::Declined { why, .. }) => format!("the source declines: {why}"),
        Event::Peer(message) => crate::status::peer_word(message).to_owned(),
        Event::Begun => "libvirt goes on".to_owned(),
        Event::Arrived => "the VM runs here".to_owned(),
        Event::Guest(FromGuest::Switched { counts, .. }) => {
            format!(
                "the guest has switched: {} joined, {} waiting, {} legacy",
                counts.joined, counts.waiting, counts.legacy
            )
        }
        Event::Guest(FromGuest::Settled { .. }) => "the guest has settled".to_owned(),
        Event::Guest(FromGuest::Refused { why, .. }) => format!("the guest refused: {why}"),
        Event::Guest(_) => "the guest spoke".to_owned(),
        Event::VmGone => "the VM is not here any more".to_owned(),
        Event::Crossed => "frames come through the home tunnel".to_owned(),
        Event::Release => "released by the operator".to_owned(),
        Event::Departs => "the VM is asked for by the host that it came from".to_owned(),
        Event::Stays => "the VM stays".to_owned(),
        Event::Deadline => "the deadline came".to_owned(),
        Event::Restarted => "the service was started".to_owned(),
    }
}
