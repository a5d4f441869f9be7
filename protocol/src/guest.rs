//! The guest's machine: from a spare vNIC to the one that carries everything, and back if the move does not happen.
//!
//! ```text
//!         Prepare          path, gateway, announcement, joins              Switch / arrival
//!  Idle ----------> Preparing -------------------------> Prepared --------------------------> Switched
//!   ^  ^                |  ^ arrived: straight to Switched  |   ^           flip back |           |
//!   |  |        failure |                     abort, lease  |   +---------------------+           | arrival sure,
//!   |  +---- Undoing <--+-----------------------------------+-------- abort before arrival -------+ all moved
//!   |                                                                                             v
//!   +------------------------------- old address released ------------------------------------ Settling
//! ```
//!
//! Programs in the VM may hold the step from Preparing to Prepared back for a while ([`HOLD`]); an arrival does not wait
//! for them.
//!
//! Where the new path is dead at the new site, Switched prefers the old one again until it lives ([`fallback`]).
//!
//! A VM may return to the site whose address it still holds ([`returning`]): Switched and Settling are set aside then, and
//! Undoing leads back to them.
//!
//! The point of no return is the old endpoint's withdrawal, in [`Settling`]: it is ordered only when the VM is surely at
//! the destination and each connection has a subflow on the new address (or the drain policy's time is over).

mod asked;
pub mod fallback;
pub mod holds;
mod preparing;
pub mod returning;
mod settling;
mod switched;

use alloc::{boxed::Box, vec, vec::Vec};
use core::net::IpAddr;

use serde::{Deserialize, Serialize};

use self::fallback::{Fallback, Progress};

use crate::{Counts, Drain, FromGuest, MigrationId, Millis, Prepare, Refusal, Side, ToGuest};

/// Whoever gets the addresses of the new LAN has a patience of its own, and says what it waited for. This ends it all.
pub const OBTAIN: Millis = 15_000;
/// The gateway of the new LAN must answer within this: a tunnel at 300 ms RTT with three ARP requests lost.
pub const GATEWAY: Millis = 3_000;
/// Joins take one round trip through the tunnel after the announcement; whoever has not joined by then is announced to
/// again (a peer does not retry after host-unreachable or RST), unless [`MANY`] have joined meanwhile.
pub const JOINS: Millis = 1_500;
/// A join costs both ends together 110 us or more: fewer than these are done long before [`JOINS`] is over.
pub const MANY: u32 = 500;
/// How often stragglers are announced to again before the answer names them.
pub const ANNOUNCEMENTS: u8 = 2;
/// Between the demotion of a path and its withdrawal: what is in flight on it must land first.
pub const DRAIN: Millis = 300;
/// A flip the kernel refused is tried again after this.
pub const RETRY: Millis = 200;
/// A tear-down that the kernel refuses is tried again so often, each time after twice as long, from [`RETRY`] on: a dozen
/// seconds in all. What then is left is in the log.
pub const TRIES: u8 = 6;
/// Connections are counted again this long after the flip, doubling up to [`RECOUNT_MAX`]; changes of subflows count
/// at once.
pub const RECOUNT: Millis = 50;
/// The slowest count.
pub const RECOUNT_MAX: Millis = 1_000;
/// After the flip, whoever has not joined is invited this often, each time after twice as long, up to [`INVITE_MAX`].
pub const INVITE: Millis = 2_000;
/// So long after its beginning programs in the VM may hold a preparation's answer back, however many they are. With it the
/// answer comes before the destination stops waiting (`prepare_wait_ms`, 5 s unless set) and the source takes the guest
/// for silent.
pub const HOLD: Millis = 4_000;
/// An invitation costs every connection a subflow (110 us, both ends together): once in five minutes does no harm.
pub const INVITE_MAX: Millis = 5 * 60_000;

/// Work for the shell that ends in [`Event::Done`] or [`Event::Failed`]. Each can be repeated: what is so already is
/// done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// New vNIC up; its addresses got from the LAN. Done in the background.
    Obtain,
    /// New vNIC up; addresses; rules and tables for those of both vNICs.
    RaisePath,
    /// The new LAN's gateways, one of each family, answer through the new vNIC. Done in the background.
    ProbeGateway,
    /// Endpoint for each new address: `signal subflow backup`.
    Announce,
    /// The same withdrawn and made again.
    Reannounce,
    /// The new address announced once more, with a port of its own: those who have joined it lose nothing by it.
    Invite,
    /// The flip: this side's endpoints are preferred, the other's are backup; in one netlink write.
    Prefer(Side),
    /// Neighbours on the new LAN told, the gateways probed afresh, the main default routes moved.
    TakeOver,
    /// This side's endpoints deleted: RM_ADDR, their subflows close.
    Withdraw(Side),
    /// Undoes `RaisePath`, entry by entry.
    LowerPath,
    /// Old addresses, their rules and tables gone, old vNIC down: it is the spare now.
    ReleaseOld,
}

/// What programs in the VM, and the operator's scripts, are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Notice {
    /// A preparation begins; it may be held back for a while.
    Preparing,
    /// The traffic is on this side's path. `sure`: the VM is at its new site for certain, which nothing takes back but an
    /// operator. Said at an early flip without, and again with it.
    Switched { to: Side, sure: bool },
    /// The old path is left.
    Settled { migration: MigrationId },
    /// Everything is as it was before [`Notice::Preparing`].
    Aborted { migration: MigrationId },
}

/// What the shell is to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    Do(Step),
    /// Dump the connections and come back with [`Event::Counted`].
    Count,
    /// Take down who has joined and who has not, by peer, as the last count saw it: evidence for later forecasts.
    Learn,
    /// Say this to the host (and whoever listens on D-Bus).
    Reply(FromGuest),
    /// Tell the VM.
    Notify(Notice),
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Told(ToGuest),
    Done(Step),
    Failed(Step, Refusal),
    /// An address that was got from the LAN is lost: its server wants it back, or it could not be kept alive.
    Lost(Refusal),
    /// Of the gateways that are asked, this one has not answered yet. Repeated when it is another's turn.
    Silent(IpAddr),
    Counted(Counts),
    /// What the same dump tells of the paths. Said before it.
    Carried(Progress),
    /// The path manager says that subflows came or went: worth a count.
    SubflowsChanged,
    /// The channel to the host was reset under us: in all likelihood the VM has just arrived.
    TransportReset,
    /// The time of [`Guest::deadline`] has come.
    Deadline,
    /// Programs in the VM hold the preparation's answer back until then, as far as [`HOLD`] lets them; a time that is over:
    /// none does.
    Held {
        until: Millis,
    },
    /// The agent was started and found this state on disk.
    Restarted,
}

/// What is known of the VM's whereabouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Arrival {
    /// Still at the source, as far as anybody knows.
    No,
    /// The transport was reset. A flip on this evidence is harmless; a withdrawal is not.
    Guessed,
    /// The destination said so.
    Sure,
}

/// How the last migration ended, kept to answer those who missed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Ended {
    Settled(MigrationId),
    Aborted(MigrationId),
}

/// Which part of the preparation is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stage {
    Obtaining {
        until: Millis,
    },
    Raising,
    Probing {
        until: Millis,
    },
    Announcing,
    /// `joined`: those who had when `until` was set.
    Joining {
        until: Millis,
        announced: u8,
        joined: u32,
    },
    /// All is ready, but for programs in the VM that hold the answer back.
    Held {
        until: Millis,
    },
}

/// On the way to [`Prepared`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Preparing {
    pub plan: Prepare,
    pub stage: Stage,
    pub arrival: Arrival,
    pub counts: Counts,
    /// Programs in the VM hold the answer back until then.
    #[serde(default)]
    pub held: Option<Millis>,
    /// After this nobody does.
    #[serde(default)]
    pub held_most: Millis,
    /// The gateway that has not answered yet, as far as the shell has said.
    #[serde(default)]
    pub silent: Option<IpAddr>,
    /// What an abort leads back to, where that is more than idle: see [`returning`].
    #[serde(default)]
    pub aside: Option<Box<Guest>>,
}

/// The new path stands and the clients have joined, as backup.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prepared {
    pub plan: Prepare,
    pub counts: Counts,
    pub arrival: Arrival,
    /// Before arrival: when the silence of the host has lasted too long.
    pub lease: Option<Millis>,
    #[serde(default)]
    pub aside: Option<Box<Guest>>,
}

/// What the VM has been told of the switch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Told {
    #[default]
    Nothing,
    Flipped,
    Sure,
}

/// The new path is preferred, unless it is dead.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Switched {
    pub plan: Prepare,
    pub counts: Counts,
    pub arrival: Arrival,
    /// The kernel has confirmed the flip: to the new path, or back to the old one.
    pub confirmed: bool,
    /// Since the arrival, the new LAN has been told and the default route moved.
    pub taken_over: bool,
    /// When to look again.
    pub recount: Millis,
    /// How long after that to look once more.
    pub pause: Millis,
    /// Before sure arrival: when the silence of the hosts has lasted too long.
    pub lease: Option<Millis>,
    /// It has. If the arrival is guessed, the new LAN's gateway is asked whether the new path leads anywhere.
    pub proving: bool,
    /// When the drain policy cuts what is left; counted from sure arrival.
    pub cut: Option<Millis>,
    /// Those who have not joined, if any.
    pub stragglers: Option<Stragglers>,
    /// Since then everybody who has joined has moved, however many have not joined.
    #[serde(default)]
    pub moved: Option<Millis>,
    /// What the VM has been told.
    #[serde(default)]
    pub told: Told,
    /// Whether the new path has to be done without.
    #[serde(default)]
    pub fallback: Fallback,
    /// Until the arrival is sure.
    #[serde(default)]
    pub aside: Option<Box<Guest>>,
}

/// How those who have not joined are asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stragglers {
    /// When they are invited next.
    pub invite: Millis,
    /// How long after that once more.
    pub pause: Millis,
    /// Invitations so far.
    pub invited: u8,
}

/// Which part of the settling is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Leaving {
    /// What is in flight on the old path lands. Then (`landed`) a count must show that nobody came late and has only
    /// the old path.
    Draining { until: Millis, landed: bool },
    /// The old endpoint is being deleted.
    Withdrawing,
    /// Legacy connections hold the old address.
    Holding { recount: Millis },
    /// The old address is being removed.
    Releasing,
}

/// All that can move has moved; the old path is being left.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Settling {
    pub plan: Prepare,
    pub counts: Counts,
    pub leaving: Leaving,
    pub cut: Option<Millis>,
    /// How often the kernel has refused the step that is due.
    #[serde(default)]
    pub failed: u8,
}

/// Everything is being put back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Undoing {
    pub plan: Prepare,
    /// After a flip: when what is in flight on the new path has landed; after a refusal by the kernel: when it is asked
    /// again. `None`: the tear-down is ordered.
    pub drain: Option<Millis>,
    /// Why, if the guest itself gave up.
    pub why: Option<Refusal>,
    /// How often the kernel has refused a part of the tear-down, and whether it has this time.
    #[serde(default)]
    pub failed: u8,
    #[serde(default)]
    pub refused: bool,
    /// What this leads back to.
    #[serde(default)]
    pub aside: Option<Box<Guest>>,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Guest {
    Idle { last: Option<Ended> },
    Preparing(Preparing),
    Prepared(Prepared),
    Switched(Switched),
    Settling(Settling),
    Undoing(Undoing),
}

/// How long the old path stays, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    pub drain: Drain,
    /// When it is cut, if a time is set.
    pub cut: Option<Millis>,
    pub stragglers: Option<Stragglers>,
}

/// When the machine wants [`Event::Deadline`], and what it waits for until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    pub at: Millis,
    pub awaited: &'static str,
}

impl Default for Guest {
    fn default() -> Self {
        Guest::Idle { last: None }
    }
}

impl Guest {
    /// One event in, the next state and the shell's orders out. `now` never goes back.
    #[must_use]
    pub fn handle(self, now: Millis, event: Event) -> (Guest, Vec<Order>) {
        let kernel_refused = matches!(event, Event::Failed(..));
        match (self, event) {
            // ---- any state: questions, and messages about a migration that is not ours
            (state, Event::Told(ToGuest::Query)) => {
                let status = FromGuest::Status(state.status());
                (state, vec![Order::Reply(status)])
            }
            (state, Event::Told(told)) if told.migration() != state.migration() => state.handle_foreign(now, told),

            // ---- Preparing
            (Guest::Preparing(s), event) => s.handle(now, event),

            // ---- Prepared
            (Guest::Prepared(s), Event::Told(ToGuest::Switch { to: Side::New, .. })) => s.switch(now, Arrival::No),
            (Guest::Prepared(s), Event::TransportReset) if s.arrival == Arrival::No => s.switch(now, Arrival::Guessed),
            // Who is sure already was switched back by the operator, and stays so.
            (Guest::Prepared(s), Event::Told(ToGuest::Arrived { .. })) if s.arrival < Arrival::Sure => {
                s.switch(now, Arrival::Sure)
            }
            (Guest::Prepared(mut s), Event::Told(ToGuest::Release { .. })) => {
                s.plan.drain = Drain::For(0);
                s.switch(now, Arrival::Sure)
            }
            (Guest::Prepared(s), Event::Told(ToGuest::Abort { .. })) if s.arrival < Arrival::Sure => {
                undo(s.plan, None, s.aside)
            }
            (Guest::Prepared(s), Event::Lost(why)) if s.arrival == Arrival::No => undo(s.plan, Some(why), s.aside),
            (Guest::Prepared(s), Event::Deadline) if s.lease.is_some_and(|at| now >= at) => undo(s.plan, None, s.aside),
            (Guest::Prepared(mut s), Event::Told(ToGuest::Prepare(_) | ToGuest::KeepAlive { .. })) => {
                if s.arrival < Arrival::Sure {
                    s.arrival = Arrival::No;
                    s.lease = Some(now + s.plan.lease);
                }
                let answer = s.answer();
                (Guest::Prepared(s), vec![answer])
            }
            (Guest::Prepared(s), Event::Told(ToGuest::Arrived { .. } | ToGuest::Switch { to: Side::Old, .. })) => {
                let answer =
                    Order::Reply(FromGuest::Switched { migration: s.plan.migration, to: Side::Old, counts: s.counts });
                (Guest::Prepared(s), vec![answer])
            }
            (Guest::Prepared(s), Event::SubflowsChanged) => (Guest::Prepared(s), vec![Order::Count]),
            (Guest::Prepared(mut s), Event::Restarted) => {
                s.lease = s.lease.map(|_| now + s.plan.lease); // the hosts could not reach us meanwhile
                (Guest::Prepared(s), vec![Order::Count])
            }
            (Guest::Prepared(s), Event::Counted(counts)) => (Guest::Prepared(Prepared { counts, ..s }), vec![]),

            // ---- Switched
            (Guest::Switched(s), event) => s.handle(now, event),

            // ---- Settling
            (Guest::Settling(s), event) => s.handle(now, event),

            // ---- Undoing
            (Guest::Undoing(s), Event::Deadline) if s.drain.is_some_and(|at| now >= at) => s.tear_down(),
            (Guest::Undoing(s), Event::Restarted) => s.tear_down(),
            (Guest::Undoing(mut s), Event::Failed(Step::Prefer(_) | Step::Withdraw(_), _)) if s.drain.is_none() => {
                s.refused = true;
                (Guest::Undoing(s), vec![])
            }
            (Guest::Undoing(mut s), Event::Done(Step::LowerPath) | Event::Failed(Step::LowerPath, _))
                if s.drain.is_none() && s.failed + 1 < TRIES && (s.refused || kernel_refused) =>
            {
                s.failed += 1;
                s.drain = Some(now + later(s.failed));
                (Guest::Undoing(s), vec![])
            }
            (Guest::Undoing(s), Event::Done(Step::LowerPath) | Event::Failed(Step::LowerPath, _)) => {
                let migration = s.plan.migration;
                let reply = match s.why {
                    Some(why) => FromGuest::Refused { migration, why },
                    None => FromGuest::Aborted { migration },
                };
                let orders = vec![Order::Reply(reply), Order::Notify(Notice::Aborted { migration })];
                match s.aside {
                    Some(aside) => aside.taken_up(now, orders),
                    None => (Guest::Idle { last: Some(Ended::Aborted(migration)) }, orders),
                }
            }

            // ---- late, repeated, or of no consequence here
            (state, Event::Told(ToGuest::Settle { migration, .. })) => {
                (state, vec![Order::Reply(FromGuest::Refused { migration, why: Refusal::NotArrived })])
            }
            (state, Event::Told(ToGuest::Abort { migration })) if !matches!(state, Guest::Undoing(_)) => {
                (state, vec![Order::Reply(FromGuest::Refused { migration, why: Refusal::Arrived })])
            }
            (state, _) => (state, vec![]),
        }
    }

    /// A message about another migration than the one under way: each gets its answer, none changes anything but a
    /// `Prepare` that finds the guest idle.
    fn handle_foreign(self, now: Millis, told: ToGuest) -> (Guest, Vec<Order>) {
        let refuse = |migration, why| vec![Order::Reply(FromGuest::Refused { migration, why })];
        match (self, told) {
            (state @ Guest::Idle { .. }, ToGuest::Prepare(plan)) => {
                if state.has_settled(plan.migration) {
                    // Late or repeated. To prepare this again would take down the only path there is.
                    return (state, vec![Order::Reply(FromGuest::Settled { migration: plan.migration })]);
                }
                if plan.old == plan.new {
                    let why = Refusal::NoSuchVnic(plan.new);
                    return (state, refuse(plan.migration, why));
                }
                Preparing::begin(now, plan, state)
            }
            (state, ToGuest::Prepare(plan)) if state.leads_back(&plan) => Preparing::begin(now, plan, state),
            (state, told) if state.aside().is_some_and(|aside| aside.migration() == told.migration()) => {
                state.tell_aside(now, told)
            }
            (state, ToGuest::Prepare(plan)) => {
                let busy = state.migration().map_or(Refusal::NoSuchMigration, Refusal::Busy);
                (state, refuse(plan.migration, busy))
            }
            (
                state,
                ToGuest::Arrived { migration } | ToGuest::Release { migration } | ToGuest::Settle { migration, .. },
            ) if state.has_settled(migration) => (state, vec![Order::Reply(FromGuest::Settled { migration })]),
            (state @ Guest::Idle { .. }, ToGuest::Abort { migration }) => {
                (state, vec![Order::Reply(FromGuest::Aborted { migration })]) // nothing of it is here: already so
            }
            (state, told) => match told.migration() {
                Some(migration) => (state, refuse(migration, Refusal::NoSuchMigration)),
                None => (state, vec![]),
            },
        }
    }

    fn has_settled(&self, migration: MigrationId) -> bool {
        let before = self.aside().unwrap_or(self);
        matches!(before, Guest::Idle { last: Some(Ended::Settled(m)) } if *m == migration)
    }
}

/// Tears down what was prepared; the traffic is on the old path already.
fn undo(plan: Prepare, why: Option<Refusal>, aside: Option<Box<Guest>>) -> (Guest, Vec<Order>) {
    Undoing { plan, drain: None, why, failed: 0, refused: false, aside }.tear_down()
}

impl Undoing {
    fn tear_down(self) -> (Guest, Vec<Order>) {
        let steps = [Step::Prefer(Side::Old), Step::Withdraw(Side::New), Step::LowerPath];
        (Guest::Undoing(Undoing { drain: None, refused: false, ..self }), steps.map(Order::Do).into())
    }
}

/// How long after its last refusal the kernel is asked again.
fn later(failed: u8) -> Millis {
    RETRY << failed
}

impl ToGuest {
    /// The migration it is about.
    pub fn migration(&self) -> Option<MigrationId> {
        match self {
            ToGuest::Prepare(plan) => Some(plan.migration),
            ToGuest::Switch { migration, .. }
            | ToGuest::Arrived { migration }
            | ToGuest::Abort { migration }
            | ToGuest::KeepAlive { migration }
            | ToGuest::Release { migration }
            | ToGuest::Settle { migration, .. } => Some(*migration),
            ToGuest::Query | ToGuest::Forecast { .. } => None,
        }
    }
}
