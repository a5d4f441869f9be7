//! The source's machine: the host that the VM leaves.
//!
//! ```text
//!  Offer        ends built        guest prepared       Suspended       Arrived, VM gone       TakeDown, Abort, lease
//! -----> Building -----> Preparing -----> Copying <===============> Stopped -----> Departed -----------------> Gone
//!            |               |               |         Resumed         |              ^
//!            |               +---------------+- Arrived, the VM gone --|--------------+ (Suspended was missed)
//!            +---------------+---------------+----- abort, lease: Undoing ------------------------------------> Gone
//! ```
//!
//! No hook runs here when a migration starts or is cancelled, so all of it hangs on the destination's word, on libvirt's
//! Suspended and Resumed, and on leases.

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{Counts, Decline, FromGuest, GuestFailure, Join, Millis, Offer, Peer, Refusal, Side, ToGuest, guest};

/// The guest answers a `Prepare` within this: its own deadlines, and a slow transport.
pub const GUEST: Millis = guest::GATEWAY + guest::JOINS * guest::ANNOUNCEMENTS as Millis + 2_000;

/// With addresses that it has to get first, so much longer.
fn patience(offer: &Offer) -> Millis {
    GUEST + if offer.addressing.is_obtained() { guest::OBTAIN } else { 0 }
}

/// An early flip is ordered when the copy has about this much left: the order's way into the guest, both priorities on
/// their way to every client, and the last data on the old path back, at 300 ms RTT; and as much again, since the copy's
/// end comes suddenly where the last of the memory holds zeros.
pub const EARLY: Millis = 2_000;
/// After an abort the guest flips back, drains and withdraws within this.
pub const UNDO: Millis = guest::DRAIN + 2_000;
/// An abort that the guest has not answered is said again after this.
pub const REPEAT: Millis = 500;

/// When the traffic is flipped to the new path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// Early if that costs most connections little, else at arrival.
    Auto,
    /// Shortly before the VM stops.
    Early,
    /// The first thing that the guest does at the destination.
    Arrival,
}

/// What the shell is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Both tunnels' ends here, filters, the spare's tap into its tunnel. Ends in [`Event::Built`] or
    /// [`Event::BuildFailed`].
    BuildEnds,
    /// Follow the copy ([`Event::Progress`]) and record the frames for the old vNIC.
    Follow,
    TellGuest(ToGuest),
    TellPeer(Peer),
    /// The old vNIC's MAC into the home tunnel, with what the VM has not read.
    Divert,
    /// The old vNIC's MAC back at its tap.
    UndoDivert,
    /// The copy's own connection is ended if it hangs: nobody else could call the migration off.
    EndStream,
    /// This host's end of the advance tunnel goes.
    RemoveAdvance,
    /// This host's end of the home tunnel goes.
    RemoveHome,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Built,
    BuildFailed(Decline),
    Guest(FromGuest),
    /// The copy will stop the VM in about this long; 0 where nobody can say.
    Progress {
        left: Millis,
    },
    /// libvirt: the VM is paused.
    Suspended,
    /// libvirt: the VM runs again, here.
    Resumed,
    /// libvirt: the VM is not here any more.
    VmGone,
    Peer(Peer),
    /// The time of [`Source::deadline`] has come.
    Deadline,
    /// The service was started and found this state on disk. What it missed follows: `Suspended`, `Resumed` or
    /// `VmGone`, as libvirt finds the VM now.
    Restarted,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Source {
    Building(Building),
    Preparing(Preparing),
    Copying(Copying),
    Stopped(Stopped),
    Departed {
        offer: Offer,
        lease: Millis,
    },
    /// The guest leaves the tunnels; then they go.
    Undoing {
        offer: Offer,
        repeat: Millis,
        until: Millis,
    },
    Gone,
}

/// This host's ends are being built.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Building {
    offer: Offer,
    switch: Switch,
    lease: Millis,
}

/// The guest has been told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Preparing {
    offer: Offer,
    switch: Switch,
    lease: Millis,
    left: Option<Millis>,
    until: Millis,
}

/// The VM runs here; the copy is under way or about to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Copying {
    offer: Offer,
    /// Flip before the VM stops.
    early: bool,
    lease: Millis,
    left: Option<Millis>,
    flipped: bool,
    /// The VM was paused and runs again: said until the end, lest the destination keep the new MAC at its tap.
    resumed: bool,
}

/// The VM is paused; both MACs lead to the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stopped {
    offer: Offer,
    flipped: bool,
    lease: Millis,
    /// An earlier service may have undone the diversion and died before it wrote that down.
    #[serde(default)]
    doubt: bool,
}

impl Source {
    /// A destination's offer is taken up. `busy` is the migration of the same VM that has not settled here yet.
    pub fn new(now: Millis, offer: Offer, switch: Switch) -> (Source, Vec<Order>) {
        let lease = now + offer.lease;
        (Source::Building(Building { offer, switch, lease }), vec![Order::BuildEnds])
    }

    /// One event in, the next state and the shell's orders out. `now` never goes back.
    #[must_use]
    pub fn handle(self, now: Millis, event: Event) -> (Source, Vec<Order>) {
        match (self, event) {
            // ---- Building
            (Source::Building(s), Event::Built) => s.built(now),
            (Source::Building(s), Event::BuildFailed(why)) => {
                let migration = s.offer.migration;
                let decline = Order::TellPeer(Peer::Declined { migration, why });
                (Source::Gone, vec![decline, Order::RemoveAdvance, Order::RemoveHome])
            }
            (Source::Building(mut s), Event::Restarted) => {
                s.lease = now + s.offer.lease;
                (Source::Building(s), vec![Order::BuildEnds])
            }

            // ---- Preparing
            (Source::Preparing(s), Event::Guest(FromGuest::Prepared { migration, counts }))
                if migration == s.offer.migration =>
            {
                s.prepared(counts)
            }
            (Source::Preparing(s), Event::Guest(FromGuest::Switched { migration, to: Side::New, counts }))
                if migration == s.offer.migration =>
            {
                s.switched(counts) // it took the end of an earlier service for the arrival
            }
            (Source::Preparing(s), Event::Guest(FromGuest::Refused { migration, why }))
                if migration == s.offer.migration =>
            {
                s.unprepared(GuestFailure::Refused(why))
            }
            (Source::Preparing(s), Event::Guest(FromGuest::Aborted { migration }))
                if migration == s.offer.migration =>
            {
                s.unprepared(GuestFailure::Refused(Refusal::NoSuchMigration))
            }
            (Source::Preparing(s), Event::Deadline) if now >= s.until => {
                let silent = GuestFailure::Silent(patience(&s.offer));
                s.unprepared(silent)
            }
            (Source::Preparing(mut s), Event::Progress { left }) => {
                s.left = Some(left);
                (Source::Preparing(s), vec![])
            }
            (Source::Preparing(mut s), Event::Restarted) => {
                (s.lease, s.until) = (now + s.offer.lease, now + patience(&s.offer));
                let prepare = Order::TellGuest(ToGuest::Prepare(s.offer.prepare(false)));
                (Source::Preparing(s), vec![prepare, Order::Follow])
            }
            (Source::Preparing(Preparing { offer, lease, .. }), Event::Suspended) => {
                stop(Stopped { offer, flipped: false, lease, doubt: false })
            }

            // ---- Copying
            (Source::Copying(mut s), Event::Progress { left }) => {
                s.left = Some(left);
                let (state, flip) = s.flip_if_due();
                let (state, kept) = state.kept_by_the_copy(now);
                (state, [flip, kept].concat())
            }
            (Source::Copying(mut s), Event::Guest(FromGuest::Switched { migration, to: Side::New, .. }))
                if migration == s.offer.migration =>
            {
                s.flipped = true;
                (Source::Copying(s), vec![Order::TellPeer(Peer::Flipped { migration })])
            }
            (Source::Copying(s), Event::Guest(FromGuest::Prepared { migration, counts }))
                if migration == s.offer.migration =>
            {
                (Source::Copying(s), vec![Order::TellPeer(Peer::GuestPrepared { migration, counts })])
            }
            (
                Source::Copying(s),
                Event::Guest(
                    FromGuest::Refused { migration, why: Refusal::NoSuchMigration } | FromGuest::Aborted { migration },
                ),
            ) if migration == s.offer.migration => {
                // The agent was replaced under us, or its lease ran out: nothing is prepared any more.
                let migration = s.offer.migration;
                let why = GuestFailure::Refused(Refusal::NoSuchMigration);
                let s = Copying { early: false, flipped: false, ..s };
                (Source::Copying(s), vec![Order::TellPeer(Peer::GuestRefused { migration, why })])
            }
            (Source::Copying(Copying { offer, flipped, lease, .. }), Event::Suspended) => {
                stop(Stopped { offer, flipped, lease, doubt: false })
            }
            (Source::Copying(mut s), Event::Restarted) => {
                s.lease = now + s.offer.lease;
                let back = if s.offer.join == Join::Before && !s.flipped { flip_back(&s.offer) } else { vec![] };
                (Source::Copying(s), [vec![Order::Follow], back].concat())
            }

            // ---- Stopped
            (Source::Stopped(s), Event::Resumed) => {
                let resumed = Order::TellPeer(Peer::Resumed { migration: s.offer.migration });
                let Stopped { offer, flipped, lease, .. } = s;
                // The destination may be gone with the new path, and the peer's word of it may not come for a lease.
                let back = if flipped { flip_back(&offer) } else { vec![] };
                let state = Copying { offer, early: false, lease, left: None, flipped: false, resumed: true };
                (Source::Copying(state), [vec![Order::UndoDivert, resumed], back].concat())
            }
            (Source::Stopped(s), Event::Peer(Peer::Arrived { migration })) if migration == s.offer.migration => {
                depart(now, s.offer, false)
            }
            (Source::Stopped(s), Event::VmGone) => depart(now, s.offer, false),
            // A VM that is paused here may run there: only its resumption or the peer's word ends that doubt.
            (Source::Stopped(mut s), Event::Deadline) if now >= s.lease => {
                s.lease = now + s.offer.lease;
                let ask = Order::TellPeer(Peer::Stopped { migration: s.offer.migration });
                (Source::Stopped(s), vec![ask, Order::EndStream])
            }
            // Where libvirt says anew that it is paused, it may have run in between.
            (Source::Stopped(s), Event::Suspended) if s.doubt => stop(Stopped { doubt: false, ..s }),
            // Diverted it is since before this state was written down. That it is paused still, libvirt must say.
            (Source::Stopped(mut s), Event::Restarted) => {
                (s.lease, s.doubt) = (now + s.offer.lease, true);
                (Source::Stopped(s), vec![Order::Follow])
            }

            // ---- Departed
            (Source::Departed { lease, .. }, Event::Deadline) if now >= lease => {
                (Source::Gone, vec![Order::UndoDivert, Order::RemoveHome])
            }
            (Source::Departed { offer, .. }, Event::Peer(Peer::Abort { migration }))
                if migration == offer.migration =>
            {
                // It left, but did not get there.
                (
                    Source::Gone,
                    vec![Order::UndoDivert, Order::RemoveHome, Order::TellPeer(Peer::TakenDown { migration })],
                )
            }
            (Source::Departed { offer, .. }, Event::Restarted) => {
                let lease = now + offer.lease;
                (Source::Departed { offer, lease }, vec![Order::RemoveAdvance]) // it may not have come to that
            }

            // ---- Undoing
            (
                Source::Undoing { offer, .. },
                Event::Guest(FromGuest::Aborted { migration } | FromGuest::Refused { migration, .. }),
            ) if migration == offer.migration => undone(&offer),
            (Source::Undoing { offer, .. }, Event::VmGone) => undone(&offer),
            (Source::Undoing { offer, until, .. }, Event::Deadline) if now >= until => undone(&offer),
            (Source::Undoing { offer, repeat, until }, Event::Deadline) if now >= repeat => {
                let abort = Order::TellGuest(ToGuest::Abort { migration: offer.migration });
                (Source::Undoing { offer, repeat: now + REPEAT, until }, vec![abort])
            }
            (Source::Undoing { offer, .. }, Event::Restarted) => {
                let abort = Order::TellGuest(ToGuest::Abort { migration: offer.migration });
                (Source::Undoing { offer, repeat: now + REPEAT, until: now + UNDO }, vec![abort])
            }

            // ---- any state: the peer keeps us, asks again, or gives up
            (state @ Source::Undoing { .. }, Event::Peer(Peer::KeepAlive { migration }))
                if state.is_about(migration) =>
            {
                (state, vec![Order::TellPeer(Peer::Abort { migration })]) // it has not heard of it
            }
            (state, Event::Peer(Peer::KeepAlive { migration })) if state.is_about(migration) => state.renew(now),
            (state, Event::Peer(Peer::Offer(offer))) if state.is_about(offer.migration) => {
                let migration = offer.migration;
                let orders = match &state {
                    Source::Building(_) => vec![],
                    _ => vec![Order::TellPeer(Peer::Accepted { migration })],
                };
                (state, orders)
            }
            (state @ Source::Departed { .. }, Event::Peer(Peer::Arrived { migration }))
                if state.is_about(migration) =>
            {
                let (state, _) = state.renew(now);
                (state, vec![Order::TellPeer(Peer::KeepAlive { migration })]) // the home tunnel has this end still
            }
            // The destination saw the VM run before libvirt told us that it stopped; or after we had given up.
            (
                Source::Preparing(Preparing { offer, .. })
                | Source::Copying(Copying { offer, .. })
                | Source::Undoing { offer, .. },
                Event::Peer(Peer::Arrived { migration }),
            ) if offer.migration == migration => depart(now, offer, true),
            // Where it went, nobody has said yet: the home tunnel stays until somebody does, or for a lease.
            (Source::Preparing(Preparing { offer, .. }) | Source::Copying(Copying { offer, .. }), Event::VmGone) => {
                depart(now, offer, true)
            }
            // Said of a VM that has arrived and settled, whatever of that we missed.
            (state, Event::Peer(Peer::TakeDown { migration })) if state.is_about(migration) => {
                let taken_down = Order::TellPeer(Peer::TakenDown { migration });
                (Source::Gone, vec![Order::UndoDivert, Order::RemoveAdvance, Order::RemoveHome, taken_down])
            }
            // We may have been restarted while it was paused.
            (state @ (Source::Preparing(_) | Source::Copying(_)), Event::Resumed) => {
                let resumed = state.offer().map(|offer| Order::TellPeer(Peer::Resumed { migration: offer.migration }));
                (state, [Order::UndoDivert].into_iter().chain(resumed).collect())
            }
            (state @ (Source::Building(_) | Source::Preparing(_) | Source::Copying(_) | Source::Stopped(_)), event)
                if state.is_abort(now, &event) =>
            {
                state.undo(now, event)
            }

            // ---- late, repeated, or of no consequence here
            (state, _) => (state, vec![]),
        }
    }

    /// When the machine wants [`Event::Deadline`], and what it waits for until then.
    pub fn deadline(&self) -> Option<guest::Deadline> {
        let (at, awaited) = match self {
            Source::Building(s) => (s.lease, "this host's tunnel ends"),
            Source::Preparing(s) => (s.until.min(s.lease), "the guest's preparation"),
            Source::Copying(s) => (s.lease, "a word from the destination"),
            Source::Stopped(s) => (s.lease, "the VM's arrival"),
            Source::Departed { lease, .. } => (*lease, "a word from the destination"),
            Source::Undoing { repeat, until, .. } => (*repeat.min(until), "the guest to put everything back"),
            Source::Gone => return None,
        };
        Some(guest::Deadline { at, awaited })
    }

    /// The state's name, as logs and `status` print it.
    pub fn name(&self) -> &'static str {
        match self {
            Source::Building(_) => "building",
            Source::Preparing(_) => "preparing",
            Source::Copying(s) if s.flipped => "copying, flipped",
            Source::Copying(_) => "copying",
            Source::Stopped(_) => "stopped",
            Source::Departed { .. } => "departed",
            Source::Undoing { .. } => "undoing",
            Source::Gone => "gone",
        }
    }

    /// What the destination proposed.
    pub fn offer(&self) -> Option<&Offer> {
        match self {
            Source::Building(Building { offer, .. })
            | Source::Preparing(Preparing { offer, .. })
            | Source::Copying(Copying { offer, .. })
            | Source::Stopped(Stopped { offer, .. })
            | Source::Departed { offer, .. }
            | Source::Undoing { offer, .. } => Some(offer),
            Source::Gone => None,
        }
    }

    fn into_offer(self) -> Option<Offer> {
        match self {
            Source::Building(Building { offer, .. })
            | Source::Preparing(Preparing { offer, .. })
            | Source::Copying(Copying { offer, .. })
            | Source::Stopped(Stopped { offer, .. })
            | Source::Departed { offer, .. }
            | Source::Undoing { offer, .. } => Some(offer),
            Source::Gone => None,
        }
    }

    fn is_about(&self, migration: crate::MigrationId) -> bool {
        self.offer().is_some_and(|offer| offer.migration == migration)
    }

    fn is_abort(&self, now: Millis, event: &Event) -> bool {
        match event {
            Event::Peer(Peer::Abort { migration }) => self.is_about(*migration),
            Event::VmGone => true,
            Event::Deadline => self.deadline().is_some_and(|d| now >= d.at),
            _ => false,
        }
    }

    /// Everything as before the move, the guest first: its traffic leaves the tunnels before they go.
    fn undo(self, now: Millis, event: Event) -> (Source, Vec<Order>) {
        let stopped = matches!(self, Source::Stopped(_));
        let Some(offer) = self.into_offer() else { return (Source::Gone, vec![]) };
        let migration = offer.migration;
        let mut orders = vec![];
        if stopped {
            orders.push(Order::UndoDivert);
        }
        if !matches!(event, Event::Peer(_)) {
            orders.push(Order::TellPeer(Peer::Abort { migration }));
        }
        if offer.join != Join::Before || event == Event::VmGone {
            let (state, rest) = undone(&offer);
            return (state, [orders, rest].concat());
        }
        orders.push(Order::TellGuest(ToGuest::Abort { migration }));
        (Source::Undoing { offer, repeat: now + REPEAT, until: now + UNDO }, orders)
    }

    /// What is copied is taken by somebody: the destination lives, though its service has been silent for half a lease.
    fn kept_by_the_copy(self, now: Millis) -> (Source, Vec<Order>) {
        match &self {
            Source::Copying(s) if s.lease < now + s.offer.lease / 2 => self.renew(now),
            _ => (self, vec![]),
        }
    }

    fn renew(mut self, now: Millis) -> (Source, Vec<Order>) {
        let mut orders = vec![];
        match &mut self {
            Source::Building(Building { offer, lease, .. })
            | Source::Stopped(Stopped { offer, lease, .. })
            | Source::Departed { offer, lease } => *lease = now + offer.lease,
            Source::Preparing(Preparing { offer, lease, .. }) | Source::Copying(Copying { offer, lease, .. }) => {
                *lease = now + offer.lease;
                if offer.join == Join::Before {
                    orders.push(Order::TellGuest(ToGuest::KeepAlive { migration: offer.migration }));
                }
                if let Source::Copying(Copying { offer, resumed: true, .. }) = &self {
                    orders.push(Order::TellPeer(Peer::Resumed { migration: offer.migration }));
                }
            }
            Source::Undoing { .. } | Source::Gone => {}
        }
        (self, orders)
    }
}

impl Building {
    fn built(self, now: Millis) -> (Source, Vec<Order>) {
        let Building { offer, switch, lease } = self;
        let accepted = Order::TellPeer(Peer::Accepted { migration: offer.migration });
        if offer.join == Join::Before {
            let prepare = Order::TellGuest(ToGuest::Prepare(offer.prepare(false)));
            let until = now + patience(&offer);
            let state = Preparing { offer, switch, lease, left: None, until };
            (Source::Preparing(state), vec![accepted, prepare, Order::Follow])
        } else {
            let state = Copying { offer, early: false, lease, left: None, flipped: false, resumed: false };
            (Source::Copying(state), vec![accepted, Order::Follow])
        }
    }
}

impl Preparing {
    fn prepared(self, counts: Counts) -> (Source, Vec<Order>) {
        let early = self.is_early(counts);
        let Preparing { offer, lease, left, .. } = self;
        let tell = Order::TellPeer(Peer::GuestPrepared { migration: offer.migration, counts });
        let (state, orders) = Copying { offer, early, lease, left, flipped: false, resumed: false }.flip_if_due();
        (state, [vec![tell], orders].concat())
    }

    fn is_early(&self, counts: Counts) -> bool {
        match self.switch {
            Switch::Early => true,
            Switch::Arrival => false,
            Switch::Auto => counts.joined > 0 && counts.early * 2 >= counts.joined,
        }
    }

    /// Prepared, and flipped as well: where policy would not have it so before the arrival, it flips back.
    fn switched(self, counts: Counts) -> (Source, Vec<Order>) {
        let early = self.is_early(counts);
        let Preparing { offer, lease, left, .. } = self;
        let migration = offer.migration;
        if !early {
            let mut orders = flip_back(&offer);
            orders.insert(0, Order::TellPeer(Peer::GuestPrepared { migration, counts }));
            let state = Copying { offer, early, lease, left, flipped: false, resumed: false };
            return (Source::Copying(state), orders);
        }
        let tell = [Peer::GuestPrepared { migration, counts }, Peer::Flipped { migration }];
        let state = Copying { offer, early: true, lease, left, flipped: true, resumed: false };
        (Source::Copying(state), tell.map(Order::TellPeer).into())
    }

    fn unprepared(self, why: GuestFailure) -> (Source, Vec<Order>) {
        let Preparing { offer, lease, left, .. } = self;
        let tell = Order::TellPeer(Peer::GuestRefused { migration: offer.migration, why });
        (Source::Copying(Copying { offer, early: false, lease, left, flipped: false, resumed: false }), vec![tell])
    }
}

impl Copying {
    fn flip_if_due(mut self) -> (Source, Vec<Order>) {
        if !self.early || self.flipped || self.left.is_none_or(|left| left > EARLY) {
            return (Source::Copying(self), vec![]);
        }
        self.flipped = true;
        let flip = ToGuest::Switch { migration: self.offer.migration, to: Side::New };
        (Source::Copying(self), vec![Order::TellGuest(flip)])
    }
}

/// For a guest that has flipped, by order or since it took the end of this host's service for its arrival: whoever hears this
/// channel has not arrived.
fn flip_back(offer: &Offer) -> Vec<Order> {
    let migration = offer.migration;
    // In this order: the first takes the guess back, so that the real arrival is seen for what it is.
    [ToGuest::KeepAlive { migration }, ToGuest::Switch { migration, to: Side::Old }].map(Order::TellGuest).into()
}

fn undone(offer: &Offer) -> (Source, Vec<Order>) {
    let done = Order::TellPeer(Peer::TakenDown { migration: offer.migration });
    (Source::Gone, vec![Order::RemoveAdvance, Order::RemoveHome, done])
}

/// The VM is not here any more. Its old address lives on through the home tunnel.
fn depart(now: Millis, offer: Offer, divert: bool) -> (Source, Vec<Order>) {
    let lease = now + offer.lease;
    let divert = divert.then_some(Order::Divert);
    (Source::Departed { offer, lease }, divert.into_iter().chain([Order::RemoveAdvance]).collect())
}

fn stop(state: Stopped) -> (Source, Vec<Order>) {
    let stopped = Order::TellPeer(Peer::Stopped { migration: state.offer.migration });
    (Source::Stopped(state), vec![stopped, Order::Divert])
}
