//! A VM leaves this host: the source's machine and what it orders.

mod ends;
mod following;

use std::{collections::VecDeque, net::SocketAddr, rc::Rc, time::Duration};

use lsm_protocol::{
    FromGuest, Join, Offer, Peer, WireguardEnd,
    forecast::Forecast,
    report::Ended,
    source::{Event, Order, Source},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
};

use crate::{
    clock::{self, now},
    config,
    divert::Diversion,
    foresight::Foresight,
    guest_line::GuestLine,
    host::Host,
    inventory::{Vm, write_json},
    peer_line::PeerHandle,
    replay::{Outlet, Recorder},
    report::Account,
    story,
    stream::{Passage, Role, stalled},
    tunnel::{self, full_frames::Answering},
};

pub use self::following::Followed;

/// What the service passes on to a departure.
pub enum News {
    /// And the name of the peer that says it.
    Peer(String, Peer, PeerHandle),
    Suspended,
    Resumed,
    /// libvirt was asked: it runs here.
    Runs,
    VmGone,
    Status(oneshot::Sender<crate::status::Migration>),
    /// What would become of the VM's connections.
    Foresee(oneshot::Sender<Forecast>),
    /// The service goes, and goes on when it is started again. Dropped when the guest was told goodbye.
    Leave(oneshot::Sender<()>),
}

/// What is kept of it on disk.
#[derive(Serialize, Deserialize)]
pub struct Saved {
    pub machine: Source,
    pub vm: Vm,
    pub peer: String,
    /// For the report.
    #[serde(default)]
    pub account: Account,
    /// The destination's end of WireGuard, where the tunnels are inside.
    #[serde(default)]
    pub wireguard: Option<WireguardEnd>,
}

/// One departure.
pub struct Departure {
    host: Rc<Host>,
    saved: Saved,
    peer: Option<PeerHandle>,
    guest: Option<GuestLine>,
    follower: Option<AbortHandle>,
    progress: (mpsc::UnboundedSender<u64>, mpsc::UnboundedReceiver<u64>),
    divert: Option<Divert>,
    /// The destination tries the tunnels until the VM is let go.
    answering: Vec<Answering>,
    /// The advance tunnel's removal.
    parting: clock::Later,
    foresight: Foresight,
    /// Until the copy is over.
    stream: Option<Passage>,
    /// An earlier service may have diverted the VM's frames and died before it wrote that down.
    in_doubt: bool,
}

/// All that the stop needs, opened while there is time.
struct Divert {
    diversion: Diversion,
    recorder: Recorder,
    outlet: Outlet,
}

impl Departure {
    pub fn new(host: Rc<Host>, saved: Saved, peer: Option<PeerHandle>) -> Departure {
        let progress = mpsc::unbounded_channel();
        let in_doubt = peer.is_none(); // only a departure found on disk has not heard from its peer
        Departure {
            host,
            saved,
            peer,
            guest: None,
            follower: None,
            progress,
            divert: None,
            answering: Vec::new(),
            parting: clock::Later::default(),
            foresight: Foresight::default(),
            stream: None,
            in_doubt,
        }
    }

    /// Runs until the machine is gone.
    pub async fn run(mut self, first: Vec<Order>, mut inbox: mpsc::UnboundedReceiver<News>) {
        let Some(offer) = self.saved.machine.offer().cloned() else { return };
        self.save(&offer); // before anybody hears of it: who restarts must know of what was promised
        if self.copies() {
            self.stream = self.host.streams.enter(Role::Source).await;
        }
        let events = self.carry_out(first, &offer).await;
        self.feed(events, &offer).await;
        while self.saved.machine != Source::Gone {
            let deadline = self.saved.machine.deadline();
            let event = tokio::select! {
                // First what cannot wait: the stop.
                biased;
                news = inbox.recv() => match news {
                    Some(News::Peer(name, ..)) if name != self.saved.peer => {
                        let migration = offer.migration;
                        tracing::warn!(%migration, peer = name, with = self.saved.peer, "a peer speaks of a migration of another; not heard");
                        continue;
                    }
                    Some(News::Peer(_, message, handle)) => {
                        self.peer = Some(handle); // whichever line it came by is the one that works
                        Event::Peer(message)
                    }
                    // Said to a machine that knows it, it would be an order to undo what is not done.
                    Some(News::Runs) if !self.in_doubt && !matches!(self.saved.machine, Source::Stopped(_)) => continue,
                    Some(News::Runs) => {
                        self.in_doubt = false;
                        Event::Resumed
                    }
                    Some(News::Suspended) => Event::Suspended,
                    Some(News::Resumed) => Event::Resumed,
                    Some(News::VmGone) => Event::VmGone,
                    Some(News::Status(answer)) => {
                        let _ = answer.send(self.status(&offer));
                        continue;
                    }
                    Some(News::Foresee(_)) if matches!(self.saved.machine, Source::Departed { .. }) => continue,
                    Some(News::Foresee(answer)) => {
                        let (vm, keys) = (&self.saved.vm, &self.host.config.keys);
                        let line = self.guest.get_or_insert_with(|| GuestLine::open(vm.address(keys), Duration::ZERO));
                        self.foresight.ask(line, vm.macs(), answer);
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
                        if let Some(peer) = self.peer.as_ref().filter(|_| migration == offer.migration) {
                            tracing::info!(%migration, %addresses, "the guest has got addresses of the new LAN");
                            peer.tell(Peer::GuestAddressed { migration, addresses });
                        }
                        continue;
                    }
                    (reply, _) => Event::Guest(reply),
                },
                Some(left) = self.progress.1.recv() => Event::Progress { left },
                () = clock::sleep_until(deadline) => Event::Deadline,
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

    async fn feed(&mut self, events: Vec<Event>, offer: &Offer) {
        let mut events = VecDeque::from(events);
        while let Some(event) = events.pop_front() {
            let was = self.saved.machine.name();
            let why = summary(&event);
            if let Event::Guest(FromGuest::Report(report)) = &event {
                self.saved.account.hear(offer, report.clone());
            }
            let machine = std::mem::replace(&mut self.saved.machine, Source::Gone);
            let before = machine.clone();
            let (machine, orders) = machine.handle(now(), event.clone());
            let ended = Ended::at_source(&before, &event, &machine);
            self.saved.account.ended = ended.or(self.saved.account.ended);
            self.saved.machine = machine;
            let name = self.saved.machine.name();
            if was != name {
                let awaiting = self.saved.machine.deadline().map(|d| d.awaited);
                self.saved.account.steps.mark(name);
                tracing::info!(vm = self.saved.vm.name, migration = %offer.migration, from = was, to = name, why, awaiting, "state at the source");
            }
            events.extend(self.carry_out(orders, offer).await);
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
            Source::Building(_) | Source::Preparing(_) | Source::Copying(_) | Source::Stopped(_)
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
                    Err(why) => {
                        self.saved.account.why = Some(why.to_string());
                        Event::BuildFailed(why)
                    }
                }),
                Order::Follow => {
                    self.answer_trials(offer);
                    self.follow(offer);
                }
                Order::TellGuest(order) => {
                    let address = self.saved.vm.address(&self.host.config.keys);
                    self.guest.get_or_insert_with(|| GuestLine::open(address, Duration::ZERO)).tell(order);
                }
                Order::TellPeer(message) => {
                    if let Some(peer) = &self.peer {
                        peer.tell(message);
                    }
                }
                Order::Divert => self.divert(offer),
                Order::UndoDivert => self.undo_divert(offer),
                Order::EndStream => self.end_stream(offer),
                Order::RemoveAdvance => {
                    self.parting.put_off();
                    // Where no VM wakes up elsewhere, there is nothing to wait for.
                    if !matches!(self.saved.machine, Source::Departed { .. }) {
                        self.part(offer).await;
                    }
                }
                Order::RemoveHome => {
                    self.part(offer).await;
                    self.remove(offer.home, offer).await;
                }
            }
        }
        events
    }

    /// The peer has been silent for a lease: most of that time nobody has acknowledged what the copy sends either.
    fn end_stream(&self, offer: &Offer) {
        let literal = |peer: &config::Peer| Some(peer.address.parse::<SocketAddr>().ok()?.ip());
        let peer = self.host.config.peers.get(&self.saved.peer).and_then(literal);
        let to: Vec<_> = [offer.underlay].into_iter().chain(peer).collect();
        let (vm, migration, silent) = (self.saved.vm.name.clone(), offer.migration, Duration::from_millis(offer.lease));
        tokio::task::spawn_local(async move {
            match stalled::end(&to, silent / 2).await {
                Ok(ended) if ended.is_empty() => {}
                Ok(ended) => {
                    tracing::warn!(vm, %migration, ?ended, "the VM stands, its copy hangs, and its destination is silent: the copy's connection is ended, so that the VM runs on here")
                }
                Err(error) => tracing::warn!(vm, %migration, %error, "cannot look whether the copy's connection hangs"),
            }
        });
    }

    /// Opens what the stop needs, and asks how far the copy is.
    fn follow(&mut self, offer: &Offer) {
        match self.prepare_divert(offer) {
            Ok(divert) => self.divert = Some(divert),
            Err(error) => {
                tracing::warn!(migration = %offer.migration, error, "frames for the old vNIC will be lost during the stop")
            }
        }
        if offer.join == Join::Before {
            let following = following::follow(self.host.followed.clone(), offer.vm, self.progress.0.clone());
            self.follower = Some(tokio::task::spawn_local(following).abort_handle());
        }
    }

    fn prepare_divert(&self, offer: &Offer) -> Result<Divert, String> {
        let vnic = self.saved.vm.vnic(offer.home.mac).ok_or("the VM has no such vNIC")?;
        let tap = vnic.tap.as_deref().ok_or("the old vNIC has no tap")?;
        let bridge = vnic.bridge.as_deref().ok_or("the old vNIC is in no bridge")?;
        let port = tunnel::port(offer.home.vni);
        let diversion = self.host.fdb.prepare(bridge, vnic.mac, &port, Some(tap)).map_err(|e| story(&e))?;
        let recorder = Recorder::start(tap, vnic.mac).map_err(|e| story(&e))?;
        let outlet = Outlet::open(&port).map_err(|e| story(&e))?;
        Ok(Divert { diversion, recorder, outlet })
    }

    fn divert(&mut self, offer: &Offer) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        self.answering.clear();
        let Some(divert) = &self.divert else { return };
        if let Err(error) = self.host.fdb.divert(&divert.diversion) {
            tracing::warn!(migration = %offer.migration, error = story(&error), "cannot divert the old vNIC's frames");
        }
        match divert.recorder.replay_unread(&divert.outlet) {
            Ok(replayed) => {
                self.saved.account.frames_replayed += replayed.sent;
                tracing::info!(migration = %offer.migration, frames = replayed.sent, "diverted, with what the VM had not read")
            }
            Err(error) => {
                tracing::warn!(migration = %offer.migration, error = story(&error), "cannot replay what the VM had not read")
            }
        }
    }

    fn undo_divert(&mut self, offer: &Offer) {
        let Some(divert) = &self.divert else { return };
        if let Err(error) = self.host.fdb.undo(&divert.diversion) {
            // The tap, and its entries with it, may have gone with the VM.
            tracing::debug!(migration = %offer.migration, error = story(&error), "no diversion to undo");
        }
    }

    fn finish(&mut self, offer: &Offer) {
        if let Some(follower) = self.follower.take() {
            follower.abort();
        }
        let _ = std::fs::remove_file(self.file(offer));
        self.host.claims.end(offer.migration);
        self.host.release_addresses(offer.vm);
        tracing::info!(vm = self.saved.vm.name, migration = %offer.migration, "departure over");
        let account = std::mem::take(&mut self.saved.account);
        let report = account.close("source", &self.saved.vm.name, &self.saved.peer, offer);
        self.host.reports.hand_in(report, None);
    }

    fn save(&self, offer: &Offer) {
        if self.saved.machine == Source::Gone {
            return;
        }
        if let Err(error) = write_json(&self.file(offer), &self.saved) {
            let file = self.file(offer);
            tracing::warn!(migration = %offer.migration, %error, file = %file.display(), "cannot save the state; a restart now would lose it; is its disk full?");
        }
    }

    fn file(&self, offer: &Offer) -> std::path::PathBuf {
        self.host.state.join(format!("departure-{}.json", offer.migration))
    }

    fn status(&self, offer: &Offer) -> crate::status::Migration {
        crate::status::Migration::new(
            "source",
            &self.saved.vm.name,
            &self.saved.peer,
            offer,
            self.saved.machine.name(),
            self.saved.machine.deadline(),
            &self.saved.account.steps,
        )
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
        Event::Guest(FromGuest::Prepared { counts, .. }) => {
            format!(
                "the guest is prepared: {} joined, {} waiting, {} legacy",
                counts.joined, counts.waiting, counts.legacy
            )
        }
        Event::Guest(FromGuest::Refused { why, .. }) => format!("the guest refused: {why}"),
        Event::Guest(_) => "the guest spoke".to_owned(),
        Event::Progress { left } => format!("the copy has {left} ms left"),
        Event::Suspended => "the VM is paused".to_owned(),
        Event::Resumed => "the VM runs again, here".to_owned(),
        Event::VmGone => "the VM is not here any more".to_owned(),
        Event::Peer(message) => crate::status::peer_word(message).to_owned(),
        Event::Deadline => "the deadline came".to_owned(),
        Event::Restarted => "the service was started".to_owned(),
    }
}
