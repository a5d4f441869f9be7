//! The destination's machine: the host that the VM moves to. It begins in libvirt's `migrate begin` hook, once the
//! host that runs the VM has been found.
//!
//! ```text
//!         both ends built      guest prepared, refused or waited for;     the VM runs      guest: Settled
//!                              full frames have crossed
//! Building ----------> Waiting ---------------------------> Incoming ----------> Arrived -----------> TakingDown -> Gone
//!     |                   |             the hook is answered    |  ^ Stopped: new MAC at the own tap; Resumed: undone
//!     +--- refused: the hook says why, nothing has moved -------+--- the VM gone, peer's abort: Undoing -> Gone
//! ```

mod refused;
mod steps;
mod words;

use alloc::{vec, vec::Vec};

use serde::{Deserialize, Serialize};

use self::steps::{arrive, begin_by, both, give_up, keep_alive_again, lost, ready, refuse, take_down, undo};
pub use self::{
    refused::{Impassable, Refused, Short, Way},
    words::{Event, Order},
};
use crate::{
    Counts, FromGuest, GuestFailure, Join, MigrationId, Millis, Offer, Peer, Refusal, Side, ToGuest,
    forecast::Survival, guest,
};

/// The source builds its ends within this, also where the end of the VM's last move, or other VMs, come first; libvirt waits
/// in the hook meanwhile.
pub const ACCEPT: Millis = 10_000;
/// Frames that are to show what the tunnels carry have come back within this: several tries at 300 ms RTT.
pub const TRIAL: Millis = 2_000;
/// libvirt starts the VM's QEMU within this, or a lease if that is longer: it may have much memory to lay out.
pub const BEGIN: Millis = 60_000;
/// So often in a lease the source hears of us: some may be lost, and we may be restarted in between.
const KEEP_ALIVES: Millis = 6;
/// What got no answer is said again after this.
pub const REPEAT: Millis = 2_000;
/// The source asks the guest for a forecast and answers within this.
pub const FORESEE: Millis = 2_000;
/// Connections that a refusal names; the rest is counted.
pub const NAMED: usize = 10;
/// The guest leaves the old path within this when the operator ends it.
pub const RELEASE: Millis = guest::DRAIN + 5_000;
/// So many leases without a word from the source and without a frame through the home tunnel, and its end is taken for gone:
/// after one of them the source itself takes its end down.
const LOST: Millis = 2;
/// After an abort the source has its guest leave the tunnels, and says when; without its word they go after this.
pub const UNDO: Millis = crate::source::UNDO + 2_000;

/// What to do when the guest could not be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unprepared {
    /// Refuse the migration.
    Refuse,
    /// Go on, and join after arrival.
    PostJoin,
}

/// The part of the host's policy that this machine applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Policy {
    pub unprepared: Unprepared,
    /// How long libvirt may be held for the guest's preparation.
    pub prepare_wait: Millis,
    /// How many connections must have joined once the guest is prepared.
    #[serde(default)]
    pub survival: Survival,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Destination {
    Building {
        offer: Offer,
        policy: Policy,
        built: bool,
        accepted: bool,
        until: Millis,
    },
    Waiting {
        offer: Offer,
        policy: Policy,
        keep_alive: Millis,
        /// Until when full frames must have crossed; `None`: they have.
        trial: Option<Millis>,
        guest: Preparation,
    },
    Incoming {
        offer: Offer,
        diverted: bool,
        keep_alive: Millis,
        /// Until when libvirt must have gone on after the hook was answered; `None`: it has, and tells how it ends.
        begin: Option<Millis>,
    },
    /// `leave`: the old path is ended, by the operator or with the source, at the latest then. `heard`: when something came
    /// from the source last. `aside`: the VM is on its way back to where it came from, and its guest is another migration's
    /// to speak to; the home tunnel stays meanwhile.
    Arrived {
        offer: Offer,
        switched: Option<Counts>,
        repeat: Millis,
        leave: Option<Millis>,
        #[serde(default)]
        heard: Millis,
        #[serde(default)]
        aside: bool,
    },
    TakingDown {
        offer: Offer,
        repeat: Millis,
        lease: Millis,
    },
    Undoing {
        offer: Offer,
        repeat: Millis,
        until: Millis,
    },
    Gone,
}

/// How far the guest is, while the hook waits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Preparation {
    Awaited {
        until: Millis,
    },
    /// Too few have joined; the source is asked which have not.
    Short {
        short: Short,
        until: Millis,
    },
    /// Prepared, or not to be waited for.
    Over {
        warning: Option<GuestFailure>,
    },
}

impl Destination {
    /// The host that runs the VM was found; this is what it is offered.
    pub fn new(now: Millis, offer: Offer, policy: Policy) -> (Destination, Vec<Order>) {
        let orders = vec![Order::TellPeer(Peer::Offer(offer.clone())), Order::BuildEnds];
        (Destination::Building { offer, policy, built: false, accepted: false, until: now + ACCEPT }, orders)
    }

    /// One event in, the next state and the shell's orders out. `now` never goes back.
    #[must_use]
    pub fn handle(self, now: Millis, event: Event) -> (Destination, Vec<Order>) {
        use Destination::{Arrived, Building, Gone, Incoming, TakingDown, Undoing, Waiting};
        match (self, event) {
            // ---- any state: the peer speaks of another migration
            (state, Event::Peer(peer)) if peer.migration().is_some_and(|m| !state.is_about(m)) => (state, vec![]),

            // ---- Building
            (Building { offer, policy, accepted, until, .. }, Event::Built) => {
                both(now, offer, policy, true, accepted, until)
            }
            (Building { offer, policy, built, until, .. }, Event::Peer(Peer::Accepted { .. })) => {
                both(now, offer, policy, built, true, until)
            }
            (Building { offer, .. }, Event::BuildFailed(why)) => refuse(now, offer, Refused::Build(why)),
            (Building { offer, .. }, Event::Peer(Peer::Declined { why, .. })) => {
                refuse(now, offer, Refused::Declined(why))
            }
            (Building { offer, until, .. }, Event::Deadline) if now >= until => {
                refuse(now, offer, Refused::SourceSilent(ACCEPT))
            }
            (Building { offer, .. } | Waiting { offer, .. }, Event::Peer(Peer::Abort { .. })) => {
                refuse(now, offer, Refused::Aborted)
            }
            (Building { offer, .. } | Waiting { offer, .. }, Event::VmGone | Event::Release) => {
                refuse(now, offer, Refused::CalledOff)
            }
            // The hook that waited for us died with the service: libvirt has refused the migration already.
            (Building { offer, .. } | Waiting { offer, .. }, Event::Restarted) => undo(now, offer, true),

            // ---- Waiting
            (Waiting { offer, policy, keep_alive, guest, .. }, Event::Carries) => {
                ready(now, Waiting { offer, policy, keep_alive, trial: None, guest })
            }
            (Waiting { offer, .. }, Event::Impassable(why)) => refuse(now, offer, Refused::Impassable(why)),
            (
                Waiting { offer, guest: Preparation::Short { short, .. }, .. },
                Event::Peer(Peer::Foreseen { forecast: Some(forecast), .. }),
            ) => refuse(now, offer, Refused::Connections { short, named: forecast.in_doubt(NAMED) }),
            (Waiting { offer, guest: Preparation::Short { short, until }, .. }, Event::Deadline) if now >= until => {
                let named = "the source host did not say which cannot".into();
                refuse(now, offer, Refused::Connections { short, named })
            }
            (Waiting { offer, policy, keep_alive, trial, guest }, Event::Peer(Peer::GuestPrepared { counts, .. }))
                if !matches!(guest, Preparation::Short { .. }) =>
            {
                match Short::after(counts, policy.survival) {
                    None => {
                        let guest = Preparation::Over { warning: None };
                        ready(now, Waiting { offer, policy, keep_alive, trial, guest })
                    }
                    Some(short) => {
                        let ask = Order::TellPeer(Peer::Foresee { vm: offer.vm });
                        let guest = Preparation::Short { short, until: now + FORESEE };
                        (Waiting { offer, policy, keep_alive, trial, guest }, vec![ask])
                    }
                }
            }
            (Waiting { offer, policy, keep_alive, trial, .. }, Event::Peer(Peer::GuestRefused { why, .. })) => {
                match policy.unprepared {
                    Unprepared::Refuse => refuse(now, offer, Refused::Guest(why)),
                    Unprepared::PostJoin if policy.survival.demands_any() => {
                        refuse(now, offer, Refused::Uncounted { why, needed: policy.survival })
                    }
                    Unprepared::PostJoin => {
                        let guest = Preparation::Over { warning: Some(why) };
                        ready(now, Waiting { offer, policy, keep_alive, trial, guest })
                    }
                }
            }
            (Waiting { offer, trial: Some(until), .. }, Event::Deadline) if now >= until => {
                refuse(now, offer, Refused::Impassable(Impassable::Unknown(TRIAL)))
            }
            (Waiting { offer, policy, keep_alive, trial, guest: Preparation::Awaited { until } }, Event::Deadline)
                if now >= until =>
            {
                match policy.unprepared {
                    Unprepared::Refuse => refuse(now, offer, Refused::GuestSlow(policy.prepare_wait)),
                    Unprepared::PostJoin if policy.survival.demands_any() => {
                        let (waited, needed) = (policy.prepare_wait, policy.survival);
                        refuse(now, offer, Refused::UncountedYet { waited, needed })
                    }
                    Unprepared::PostJoin => {
                        let guest = Preparation::Over { warning: None };
                        ready(now, Waiting { offer, policy, keep_alive, trial, guest })
                    }
                }
            }
            (Waiting { offer, policy, keep_alive, trial, guest }, Event::Deadline) if now >= keep_alive => {
                let (keep_alive, say) = keep_alive_again(now, &offer);
                (Waiting { offer, policy, keep_alive, trial, guest }, vec![say])
            }

            // ---- Incoming
            (Incoming { offer, diverted, keep_alive, .. }, Event::Begun) => {
                (Incoming { offer, diverted, keep_alive, begin: None }, vec![])
            }
            (Incoming { offer, keep_alive, begin, .. }, Event::Peer(Peer::Stopped { .. })) => {
                (Incoming { offer, diverted: true, keep_alive, begin }, vec![Order::PointAtTap])
            }
            (Incoming { offer, keep_alive, begin, .. }, Event::Peer(Peer::Resumed { .. })) => {
                (Incoming { offer, diverted: false, keep_alive, begin }, vec![Order::PointAtTunnel])
            }
            // A guest that speaks to us runs here. Nothing else may say so after a restart.
            (Incoming { offer, diverted, .. }, Event::Arrived | Event::Guest(_)) => arrive(now, offer, diverted),
            (Incoming { offer, diverted, begin, .. }, Event::Restarted) => {
                let (keep_alive, say) = keep_alive_again(now, &offer);
                let begin = begin.map(|_| begin_by(now, &offer)); // libvirt's word for it may have found nobody
                let ask = Order::TellGuest(ToGuest::Query);
                (Incoming { offer, diverted, keep_alive, begin }, vec![say, ask])
            }
            (Incoming { offer, diverted, begin: Some(begin), .. }, Event::Deadline) if now >= begin => {
                give_up(now, offer, diverted, true)
            }
            (Incoming { offer, diverted, keep_alive, begin }, Event::Deadline) if now >= keep_alive => {
                let (keep_alive, say) = keep_alive_again(now, &offer);
                (Incoming { offer, diverted, keep_alive, begin }, vec![say])
            }
            (Incoming { offer, diverted, .. }, Event::Peer(Peer::Abort { .. })) => give_up(now, offer, diverted, false),
            (Incoming { offer, diverted, .. }, Event::VmGone | Event::Release) => give_up(now, offer, diverted, true),

            // ---- Arrived, and on the way back
            (Arrived { offer, switched: Some(counts), repeat, leave: None, heard, aside: false }, Event::Departs) => {
                (Arrived { offer, switched: Some(counts), repeat, leave: None, heard, aside: true }, vec![])
            }
            (Arrived { offer, switched, leave, aside: true, .. }, Event::Stays) => {
                (Arrived { offer, switched, repeat: now, leave, heard: now, aside: false }, vec![])
            }
            // Nobody may tell the guest now; it is said again.
            (state @ Arrived { aside: true, .. }, Event::Release | Event::Peer(Peer::TakenDown { .. })) => {
                (state, vec![])
            }
            (Arrived { offer, switched, repeat, leave, heard, aside: true }, Event::Deadline) if now >= repeat => {
                let arrived = Order::TellPeer(Peer::Arrived { migration: offer.migration });
                (Arrived { offer, switched, repeat: now + REPEAT, leave, heard, aside: true }, vec![arrived])
            }
            // Where the new vNIC's frames go is the other migration's to say.
            (Arrived { offer, switched, repeat, leave, heard, aside: true }, Event::Restarted) => {
                let arrived = Order::TellPeer(Peer::Arrived { migration: offer.migration });
                (Arrived { offer, switched, repeat, leave, heard, aside: true }, vec![arrived])
            }

            // ---- Arrived
            (
                Arrived { offer, repeat, leave, heard, aside, .. },
                Event::Guest(FromGuest::Switched { migration, to: Side::New, counts }),
            ) if migration == offer.migration => {
                (Arrived { offer, switched: Some(counts), repeat, leave, heard, aside }, vec![])
            }
            (
                Arrived { offer, switched, repeat, leave, heard, aside: false },
                Event::Guest(
                    FromGuest::Refused { migration, why: Refusal::NoSuchMigration } | FromGuest::Aborted { migration },
                ),
            ) if migration == offer.migration && offer.join != Join::Never => match leave {
                Some(_) => take_down(now, offer), // nothing of it is left there
                None => {
                    let prepare = Order::TellGuest(ToGuest::Prepare(offer.prepare(true)));
                    (Arrived { offer, switched, repeat, leave, heard, aside: false }, vec![prepare])
                }
            },
            (Arrived { offer, .. }, Event::Guest(FromGuest::Settled { migration })) if migration == offer.migration => {
                take_down(now, offer)
            }
            (Arrived { offer, .. }, Event::VmGone) => take_down(now, offer),
            // By the operator; or the source has no end of the home tunnel any more, and what is left of the old path is dead.
            (Arrived { offer, .. }, Event::Release | Event::Peer(Peer::TakenDown { .. }))
                if offer.join == Join::Never =>
            {
                take_down(now, offer)
            }
            (
                Arrived { offer, switched, leave, heard, aside, .. },
                Event::Release | Event::Peer(Peer::TakenDown { .. }),
            ) => {
                let release = Order::TellGuest(ToGuest::Release { migration: offer.migration });
                let leave = leave.or(Some(now + RELEASE));
                (Arrived { offer, switched, repeat: now + REPEAT, leave, heard, aside }, vec![release])
            }
            // Its host is gone, or cut off for good: whoever is left on the old path waits for nothing.
            (Arrived { offer, switched, leave: None, heard, aside, .. }, Event::Deadline)
                if now >= lost(heard, &offer) =>
            {
                let said = Order::SourceLost(now - heard);
                let (state, orders) = if offer.join == Join::Never {
                    take_down(now, offer)
                } else {
                    let release = Order::TellGuest(ToGuest::Release { migration: offer.migration });
                    (
                        Arrived { offer, switched, repeat: now + REPEAT, leave: Some(now + RELEASE), heard, aside },
                        vec![release],
                    )
                };
                (state, [vec![said], orders].concat())
            }
            (Arrived { offer, leave: Some(leave), .. }, Event::Deadline) if now >= leave => take_down(now, offer),
            (Arrived { offer, switched, repeat, leave, heard, aside }, Event::Deadline) if now >= repeat => {
                let migration = offer.migration;
                let mut orders = vec![Order::TellPeer(Peer::Arrived { migration })];
                if offer.join != Join::Never {
                    let say =
                        if leave.is_some() { ToGuest::Release { migration } } else { ToGuest::Arrived { migration } };
                    orders.push(Order::TellGuest(say));
                }
                (Arrived { offer, switched, repeat: now + REPEAT, leave, heard, aside }, orders)
            }
            // The source has not heard of it yet.
            (Arrived { offer, switched, repeat, leave, aside, .. }, Event::Peer(Peer::Stopped { migration })) => {
                let state = Arrived { offer, switched, repeat, leave, heard: now, aside };
                (state, vec![Order::TellPeer(Peer::Arrived { migration })])
            }
            (
                Arrived { offer, switched, repeat, leave, aside, .. },
                Event::Peer(Peer::KeepAlive { .. }) | Event::Crossed,
            ) => (Arrived { offer, switched, repeat, leave, heard: now, aside }, vec![]),
            (Arrived { offer, switched, repeat, leave, aside, .. }, Event::Restarted) => {
                let arrived = Order::TellPeer(Peer::Arrived { migration: offer.migration });
                let state = Arrived { offer, switched, repeat, leave, heard: now, aside }; // nobody listened meanwhile
                (state, vec![Order::PointAtTap, Order::RemoveAdvance, arrived])
            }

            // ---- TakingDown
            (TakingDown { .. }, Event::Peer(Peer::TakenDown { .. })) => (Gone, vec![]),
            (TakingDown { lease, .. }, Event::Deadline) if now >= lease => (Gone, vec![]),
            (TakingDown { offer, repeat, lease }, Event::Deadline) if now >= repeat => {
                let say = Order::TellPeer(Peer::TakeDown { migration: offer.migration });
                (TakingDown { offer, repeat: now + REPEAT, lease }, vec![say])
            }
            (TakingDown { offer, repeat, lease }, Event::Restarted) => {
                let say = Order::TellPeer(Peer::TakeDown { migration: offer.migration });
                (TakingDown { offer, repeat, lease }, vec![Order::RemoveAdvance, Order::RemoveHome, say])
            }

            // ---- Undoing
            // It was given up too early: the VM runs here. What still stands is kept.
            (Undoing { offer, .. }, Event::Arrived) => arrive(now, offer, false),
            (Undoing { .. }, Event::Peer(Peer::TakenDown { .. })) => {
                (Gone, vec![Order::RemoveAdvance, Order::RemoveHome])
            }
            (Undoing { until, .. }, Event::Deadline) if now >= until => {
                (Gone, vec![Order::RemoveAdvance, Order::RemoveHome])
            }

            (Undoing { offer, repeat, until }, Event::Deadline) if now >= repeat => {
                let say = Order::TellPeer(Peer::Abort { migration: offer.migration });
                (Undoing { offer, repeat: now + REPEAT, until }, vec![say])
            }

            // ---- late, repeated, or of no consequence here
            (state, _) => (state, vec![]),
        }
    }

    /// When the machine wants [`Event::Deadline`], and what it waits for until then.
    pub fn deadline(&self) -> Option<guest::Deadline> {
        let (at, awaited) = match self {
            Destination::Building { until, .. } => (*until, "both hosts' tunnel ends"),
            Destination::Waiting { keep_alive, guest, trial, .. } => {
                let (at, awaited) = match guest {
                    Preparation::Awaited { until } => (*until, "the guest's preparation"),
                    Preparation::Short { until, .. } => (*until, "the source to say which connections cannot move"),
                    Preparation::Over { .. } => (*keep_alive, "full frames through the tunnels"),
                };
                (trial.map_or(at, |trial| trial.min(at)).min(*keep_alive), awaited)
            }
            Destination::Incoming { keep_alive, begin: Some(begin), .. } => {
                (*keep_alive.min(begin), "libvirt to start the VM's QEMU")
            }
            Destination::Incoming { keep_alive, .. } => (*keep_alive, "the VM's arrival"),
            Destination::Arrived { leave: Some(leave), repeat, .. } => {
                (*repeat.min(leave), "the guest to leave the old path")
            }
            Destination::Arrived { repeat, aside: true, .. } => (*repeat, "the VM's way back to be over"),
            Destination::Arrived { repeat, offer, heard, .. } => {
                ((*repeat).min(lost(*heard, offer)), "the guest to settle")
            }
            Destination::TakingDown { repeat, lease, .. } => (*repeat.min(lease), "the source to take its end down"),
            Destination::Undoing { repeat, until, .. } => (*repeat.min(until), "the source to undo its part"),
            Destination::Gone => return None,
        };
        Some(guest::Deadline { at, awaited })
    }

    /// The state's name, as logs and `status` print it.
    pub fn name(&self) -> &'static str {
        match self {
            Destination::Building { .. } => "building",
            Destination::Waiting { .. } => "waiting",
            Destination::Incoming { diverted: true, .. } => "incoming, stopped",
            Destination::Incoming { begin: Some(_), .. } => "admitted",
            Destination::Incoming { .. } => "incoming",
            Destination::Arrived { aside: true, .. } => "arrived, set aside",
            Destination::Arrived { leave: Some(_), .. } => "arrived, leaving the old path",
            Destination::Arrived { switched: Some(_), .. } => "arrived, switched",
            Destination::Arrived { .. } => "arrived",
            Destination::TakingDown { .. } => "taking down",
            Destination::Undoing { .. } => "undoing",
            Destination::Gone => "gone",
        }
    }

    /// The VM's connections since the flip, as the guest said last.
    pub fn counts(&self) -> Option<Counts> {
        match self {
            Destination::Arrived { switched, .. } => *switched,
            _ => None,
        }
    }

    /// The VM may go back from here while its old address is held.
    pub fn holds(&self) -> bool {
        matches!(self, Destination::Arrived { switched: Some(_), leave: None, aside: false, .. })
    }

    /// The VM is on its way back, or was when the service was last here.
    pub fn is_aside(&self) -> bool {
        matches!(self, Destination::Arrived { aside: true, .. })
    }

    /// What the source was offered.
    pub fn offer(&self) -> Option<&Offer> {
        match self {
            Destination::Building { offer, .. }
            | Destination::Waiting { offer, .. }
            | Destination::Incoming { offer, .. }
            | Destination::Arrived { offer, .. }
            | Destination::TakingDown { offer, .. }
            | Destination::Undoing { offer, .. } => Some(offer),
            Destination::Gone => None,
        }
    }

    fn is_about(&self, migration: MigrationId) -> bool {
        self.offer().is_some_and(|offer| offer.migration == migration)
    }
}
