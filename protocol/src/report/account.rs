//! Collects a [`Report`]: follows the guest's machine and looks at each count of the connections. It decides what became
//! of each; the shell only tells what it saw.

use alloc::{
    boxed::Box,
    collections::BTreeMap,
    string::{String, ToString},
    vec::Vec,
};
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Became, Connection, Gap, LISTED, NAMED, Outcome, Readdressed, Report, STEPS, Script, Step, Sums};
use crate::{
    FromGuest, MigrationId, Millis, Side,
    forecast::Obstacle,
    guest::{self, Guest, Notice, Order},
};

/// Data within this time before the switch makes a connection busy: a longer wait for more is not the move's.
const BUSY: Millis = 1_000;

/// Names a connection from one count to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// By its token.
    Mptcp(u32),
    /// By its ends.
    Tcp { local: SocketAddr, remote: SocketAddr },
}

/// What one count tells of a connection that uses either address of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub key: Key,
    pub peer: SocketAddr,
    /// It has a path on the old address.
    pub on_old: bool,
    /// One of its halves is closed. Subflows that the kernel is closing look like plain TCP then.
    pub closing: bool,
    /// Why it has none on the new one.
    pub obstacle: Option<Obstacle>,
    /// Round-trip times in microseconds, 0 before the first sample.
    pub rtt_old: u32,
    pub rtt_new: u32,
    /// Payload received so far, in bytes, on all its paths.
    pub received: u64,
    /// Since the last of it, in milliseconds.
    pub silent: Millis,
}

/// The report of the migration under way, as far as it is known. What is kept of single connections goes with the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    migration: MigrationId,
    lan: String,
    began_unix: u64,
    began: Millis,
    addresses: Vec<Readdressed>,
    steps: Vec<Step>,
    sums: Sums,
    listed: Vec<Connection>,
    gap: Option<Gap>,
    rtt_before: Option<u32>,
    /// At the last count that found any connection there.
    rtt_after: Option<u32>,
    datagrams: Option<Vec<SocketAddr>>,
    /// The new path is preferred.
    switched: bool,
    restarted: bool,
    /// Of the migration that is set aside.
    #[serde(default)]
    aside: Option<Box<Account>>,
    #[serde(skip)]
    known: BTreeMap<Key, Known>,
    /// The number of the last count.
    #[serde(skip)]
    count: u32,
    /// Errors that subflows ended with since then, by token: a connection that is still there did not end of it.
    #[serde(skip)]
    errors: BTreeMap<u32, u8>,
}

/// A connection at the last count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    count: u32,
    peer: SocketAddr,
    obstacle: Option<Obstacle>,
    joined_late: bool,
    /// The old path was left while it needed it.
    cut: bool,
    rtt: u32,
    busy: bool,
    received: u64,
    /// When its last data came.
    last_data: Millis,
    /// The longest that a count saw it wait since.
    waited: Millis,
}

impl Account {
    /// Takes down what the machine has come to and orders. A preparation opens an account; its end closes it and gives
    /// the report, and so does the return of the VM while the old address is held. `unix`: milliseconds since 1970.
    pub fn follow(
        open: &mut Option<Account>,
        now: Millis,
        unix: u64,
        guest: &Guest,
        orders: &[Order],
    ) -> Option<Report> {
        if orders.contains(&Order::Notify(Notice::Preparing))
            && let Some(plan) = guest.plan()
        {
            let aside = open.take().filter(|_| guest.is_on_way_back()).map(Box::new);
            *open = Some(Account { aside, ..Account::begin(now, unix, plan.migration, &plan.lan) });
        }
        let account = open.as_mut()?;
        let goes_on = guest.migration() == Some(account.migration);
        if goes_on || guest.migration().is_none() {
            account.mark(now, guest.name());
        }
        for order in orders {
            match order {
                Order::Do(step) => account.ordered(now, *step, guest),
                Order::Reply(reply) => {
                    let (about, outcome) = match reply {
                        FromGuest::Settled { migration } => (*migration, Outcome::Settled),
                        FromGuest::Aborted { migration } => (*migration, Outcome::Aborted),
                        FromGuest::Refused { migration, why } => (*migration, Outcome::Refused(why.clone())),
                        _ => continue,
                    };
                    if !goes_on && about == account.migration {
                        let mut account = open.take()?;
                        *open = account.aside.take().map(|aside| *aside);
                        return Some(account.close(outcome));
                    }
                }
                Order::Notify(Notice::Switched { sure: true, .. }) => {
                    if let Some(aside) = account.aside.take() {
                        return Some(aside.close(Outcome::Returned));
                    }
                }
                _ => {}
            }
        }
        None
    }

    /// The account of this migration: this one, or the one that is set aside.
    pub fn of(self, migration: MigrationId) -> Option<Account> {
        if self.migration == migration { Some(self) } else { self.aside?.of(migration) }
    }

    fn begin(now: Millis, unix: u64, migration: MigrationId, lan: &str) -> Account {
        Account {
            migration,
            lan: lan.into(),
            began_unix: unix,
            began: now,
            addresses: Vec::new(),
            steps: Vec::new(),
            sums: Sums::default(),
            listed: Vec::new(),
            gap: None,
            rtt_before: None,
            rtt_after: None,
            datagrams: None,
            switched: false,
            restarted: false,
            aside: None,
            known: BTreeMap::new(),
            count: 0,
            errors: BTreeMap::new(),
        }
    }

    /// Of which it is.
    pub fn migration(&self) -> MigrationId {
        self.migration
    }

    /// The agent was started anew and found this.
    pub fn resume(&mut self) {
        self.restarted = true;
    }

    /// A step, or a state; each once, until another.
    fn mark(&mut self, now: Millis, step: &str) {
        let again = |last: &Step| last.step == step || (self.steps.len() >= STEPS);
        if !self.steps.last().is_some_and(again) {
            self.steps.push(Step { step: step.to_string(), at: now.saturating_sub(self.began) });
        }
    }

    fn ordered(&mut self, now: Millis, step: guest::Step, guest: &Guest) {
        use guest::Step::{
            Announce, Invite, LowerPath, Obtain, Prefer, ProbeGateway, RaisePath, Reannounce, ReleaseOld, TakeOver,
            Withdraw,
        };
        // Of a move that has happened the old path is a part.
        let has_fallen_back = matches!(guest, Guest::Switched(_));
        self.mark(
            now,
            match step {
                Obtain => "getting addresses",
                RaisePath => "raising the new path",
                ProbeGateway => "asking the new gateway",
                Announce => "announcing the new address",
                Reannounce => "announcing it again",
                Invite => "inviting stragglers",
                Prefer(Side::New) => "switching",
                Prefer(Side::Old) if has_fallen_back => "falling back",
                Prefer(Side::Old) => "switching back",
                TakeOver => "telling the new LAN",
                Withdraw(Side::Old) => "withdrawing the old address",
                Withdraw(Side::New) => "withdrawing the new address",
                LowerPath => "taking the new path down",
                ReleaseOld => "releasing the old address",
            },
        );
        match step {
            Prefer(Side::New) if !self.switched => {
                self.rtt_before = median(self.known.values().map(|known| known.rtt));
                self.switched = true;
            }
            Prefer(Side::Old) if !has_fallen_back => self.switched = false,
            Withdraw(Side::Old) if matches!(guest, Guest::Settling(_)) => {
                self.cut(|why| matches!(why, Obstacle::NotJoined { .. } | Obstacle::Full));
            }
            ReleaseOld => self.cut(|_| true),
            _ => {}
        }
    }

    fn cut(&mut self, whom: impl Fn(Obstacle) -> bool) {
        for known in self.known.values_mut() {
            known.cut |= known.obstacle.is_some_and(&whom);
        }
    }

    /// A subflow of this connection ended with an error.
    pub fn failed(&mut self, token: u32, errno: u8) {
        if self.known.contains_key(&Key::Mptcp(token)) {
            self.errors.insert(token, errno);
        }
    }

    /// Which addresses it is about, and who is bound to the old one.
    pub fn about(&mut self, addresses: Vec<Readdressed>, datagrams: Option<Vec<SocketAddr>>) {
        self.addresses = addresses;
        self.datagrams = datagrams;
        if let Some(sockets) = &mut self.datagrams {
            sockets.truncate(NAMED);
        }
    }

    /// It has been told.
    pub fn knows_addresses(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// All connections, as a count sees them.
    pub fn looked(&mut self, now: Millis, looks: impl IntoIterator<Item = Look>) {
        let first = self.known.is_empty();
        self.count = self.count.wrapping_add(1);
        for look in looks {
            if let Some(known) = self.known.get_mut(&look.key) {
                if known.obstacle.is_some() && look.obstacle.is_none() {
                    known.joined_late = self.switched;
                }
                let gap = known.look(now, &look, self.count, self.switched);
                self.gap = longest(self.gap, gap);
            } else if look.on_old && !look.closing {
                // After a restart it is not known who was late.
                let joined_late = self.switched && look.obstacle.is_none() && !(first && self.restarted);
                self.known.insert(look.key, Known::new(now, &look, self.count, joined_late));
            }
        }
        if self.switched {
            let there = self.known.values().filter(|known| known.count == self.count && known.obstacle.is_none());
            self.rtt_after = median(there.map(|known| known.rtt)).or(self.rtt_after);
        }
        let errors = core::mem::take(&mut self.errors);
        let (count, switched) = (self.count, self.switched);
        let mut over = Vec::new();
        self.known.retain(|key, known| {
            if known.count == count {
                return true;
            }
            let error = match key {
                Key::Mptcp(token) => errors.get(token).copied(),
                Key::Tcp { .. } => None,
            };
            over.push(Connection { peer: known.peer, became: known.ended(error, switched) });
            false
        });
        over.into_iter().for_each(|one| self.list(one));
    }

    fn list(&mut self, one: Connection) {
        self.sums.count(one.became);
        self.listed.push(one);
        if self.listed.len() > 2 * LISTED {
            self.shorten();
        }
    }

    fn shorten(&mut self) {
        self.listed.sort_by_key(|one| one.became.rank());
        self.listed.truncate(LISTED);
    }

    fn close(mut self, outcome: Outcome) -> Report {
        let moved = matches!(outcome, Outcome::Settled | Outcome::Returned);
        for known in core::mem::take(&mut self.known).into_values() {
            let became = if moved { known.ended(None, true) } else { Became::Kept };
            self.list(Connection { peer: known.peer, became });
        }
        self.mark(self.began.saturating_add(self.steps.last().map_or(0, |s| s.at)), outcome.name());
        self.shorten();
        Report {
            migration: self.migration,
            lan: self.lan,
            began: self.began_unix,
            outcome,
            addresses: self.addresses,
            steps: self.steps,
            sums: self.sums,
            connections: self.listed,
            gap: self.gap.filter(|_| moved),
            rtt_before: self.rtt_before,
            rtt_after: self.rtt_after.filter(|_| moved),
            datagrams: self.datagrams,
            scripts: None,
            restarted: self.restarted,
        }
    }
}

impl Report {
    /// With what became of the scripts.
    pub fn with_scripts(mut self, scripts: impl IntoIterator<Item = Script>) -> Report {
        self.scripts = Some(scripts.into_iter().take(NAMED).collect());
        self
    }
}

impl Known {
    fn new(now: Millis, look: &Look, count: u32, joined_late: bool) -> Known {
        Known {
            count,
            peer: look.peer,
            obstacle: look.obstacle,
            joined_late,
            cut: false,
            rtt: look.rtt_old,
            busy: look.silent <= BUSY,
            received: look.received,
            last_data: now.saturating_sub(look.silent),
            waited: look.silent,
        }
    }

    /// What a count sees; gives the gap that it shows, if that was the switch's.
    fn look(&mut self, now: Millis, look: &Look, count: u32, switched: bool) -> Option<Gap> {
        self.count = count;
        self.obstacle = look.obstacle.filter(|_| self.obstacle.is_some());
        self.rtt = if switched { look.rtt_new } else { look.rtt_old };
        if !switched {
            self.busy = look.silent <= BUSY;
        }
        let last_data = now.saturating_sub(look.silent);
        if look.received == self.received {
            self.waited = self.waited.max(look.silent);
            return None;
        }
        let gap = Gap { at_least: self.waited, at_most: last_data.saturating_sub(self.last_data).max(self.waited) };
        (self.received, self.last_data, self.waited) = (look.received, last_data, look.silent);
        (switched && self.busy).then_some(gap)
    }

    /// What became of it, when it is not there any more. `error`: of the path manager.
    fn ended(&self, error: Option<u8>, switched: bool) -> Became {
        match (self.obstacle, error) {
            (Some(why), _) if self.cut => Became::Cut(why),
            (_, Some(errno)) => Became::Lost(errno),
            _ if !switched => Became::Ended,
            (Some(why), None) => Became::Stayed(why),
            (None, None) if self.joined_late => Became::MovedLate,
            (None, None) => Became::Moved,
        }
    }
}

fn longest(a: Option<Gap>, b: Option<Gap>) -> Option<Gap> {
    match (a, b) {
        (Some(a), Some(b)) => Some(Gap { at_least: a.at_least.max(b.at_least), at_most: a.at_most.max(b.at_most) }),
        (a, b) => a.or(b),
    }
}

/// Of those that are known.
fn median(samples: impl Iterator<Item = u32>) -> Option<u32> {
    let mut samples: Vec<u32> = samples.filter(|sample| *sample > 0).collect();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied()
}

#[cfg(test)]
mod tests;
