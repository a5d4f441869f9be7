//! The transition tables as text, to be read in a diff: every state with every event.

mod destination;
mod guest;
mod source;
#[path = "../world/world.rs"]
mod world;

use std::fmt::Debug;

use lsm_protocol::{
    Drain, Join, Millis,
    guest::{Deadline, fallback::Fallback},
};

use world::{BEFORE, FOREIGN, OURS, START, brief, holding, offer, relative};

/// A machine that a table is made of.
trait Machine: Clone + PartialEq + Debug {
    type Event: Clone + Debug;
    type Order: Debug;
    fn take(self, now: Millis, event: Self::Event) -> (Self, Vec<Self::Order>);
    fn awaits(&self) -> Option<Deadline>;
    fn is_deadline(event: &Self::Event) -> bool;
}

/// A state of the table: how it is called, what leads to it, and from where on.
struct Row<M: Machine> {
    name: &'static str,
    state: M,
    now: Millis,
}

impl<M: Machine> Row<M> {
    fn new(name: &'static str, mut state: M, events: Vec<M::Event>) -> Row<M> {
        let mut now = START;
        for event in events {
            if let (true, Some(deadline)) = (M::is_deadline(&event), state.awaits()) {
                now = now.max(deadline.at);
            }
            state = state.take(now, event).0;
        }
        Row { name, state, now }
    }
}

/// What does not change from row to row is left out; times are told from the event's.
fn short(of: &impl Debug, now: Millis) -> String {
    let mut text = format!("{of:?}");
    for (name, join, drain) in [("", Join::Before, Drain::UntilIdle), (" for a time", Join::Before, Drain::For(5_000))]
    {
        for (arrived, said) in [(false, ""), (true, ", arrived")] {
            let plan = offer(join, drain).prepare(arrived);
            text = text.replace(&format!("plan: {plan:?}"), &format!("plan{name}{said}"));
            text = text.replace(&format!("Prepare({plan:?})"), &format!("Prepare{name}{said}"));
        }
    }
    for (name, join) in [("", Join::Before), (" after", Join::After), (" never", Join::Never)] {
        let offer = offer(join, Drain::UntilIdle);
        text = text.replace(&format!("offer: {offer:?}"), &format!("offer{name}"));
        text = text.replace(&format!("Offer({offer:?})"), &format!("Offer{name}"));
    }
    let text = text.replace(&format!("aside: Some({:?})", holding(Drain::UntilIdle)), "aside: the one that holds");
    let text = brief(&relative(&text, now));
    let text = ["joined", "waiting", "moved", "legacy", "early"].iter().fold(text, |text, count| {
        text.replace(&format!("{count}: 0, "), "")
            .replace(&format!(", {count}: 0 }}"), " }")
            .replace(&format!(" {count}: 0 }}"), " }")
    });
    let text = text
        .replace(", aside: None", "")
        .replace(&format!(", fallback: {:?}", Fallback::default()), "")
        .replace(", aside: false", "")
        .replace("counts: Counts { }", "no counts")
        .replace("Counts { }", "none")
        .replace("counts: Counts", "counts");
    text.replace(&format!("{{ migration: {FOREIGN} }}"), "of another migration")
        .replace(&format!("migration: {FOREIGN}"), "of another migration")
        .replace(&format!("{{ migration: {BEFORE} }}"), "of the one before")
        .replace(&format!("migration: {BEFORE}"), "of the one before")
        .replace(&OURS.to_string(), "ours")
        .replace(&FOREIGN.to_string(), "another")
}

fn table<M: Machine>(rows: Vec<Row<M>>, events: &[M::Event]) -> String {
    let mut text = String::from(
        "Every state with every event: what it becomes, and in the lines below it the orders. Times are from the event on.\n",
    );
    for Row { name, state, now } in rows {
        text.push_str(&format!("\n== {name}\n   {}\n", short(&state, now)));
        if let Some(Deadline { at, awaited }) = state.awaits() {
            text.push_str(&format!("   awaits {awaited}: {}\n", relative(&at.to_string(), now)));
        }
        let mut ignored = Vec::new();
        for event in events {
            let at = match state.awaits() {
                Some(deadline) if M::is_deadline(event) => now.max(deadline.at),
                _ => now,
            };
            let (next, orders) = state.clone().take(at, event.clone());
            if next == state && orders.is_empty() {
                ignored.push(short(event, now));
                continue;
            }
            let becomes = if next == state { "the same".to_owned() } else { short(&next, at) };
            text.push_str(&format!("{}\n   -> {becomes}\n", short(event, now)));
            for order in orders {
                text.push_str(&format!("      {}\n", short(&order, at)));
            }
        }
        if !ignored.is_empty() {
            text.push_str("nothing at\n");
            for line in ignored.chunks(5) {
                text.push_str(&format!("   {}\n", line.join(";  ")));
            }
        }
    }
    text
}
