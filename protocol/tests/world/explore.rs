//! Every sequence of events, breadth first. A pair of machine and world that was seen before is not followed again:
//! what can come after it was tried from there.

use std::{
    collections::{HashSet, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
};

/// A machine in its world.
pub trait Node: Clone {
    /// All that decides what can follow, with times told from now.
    fn key(&self) -> String;
    /// Everything that can happen next, by name; an error is a broken promise.
    fn next(&self) -> Vec<(String, Result<Self, String>)>;
    /// What must hold here.
    fn check(&self) -> Result<(), String>;
}

/// Where to stop; `LSM_STATES` in the environment goes further.
pub fn most_states(usual: usize) -> usize {
    std::env::var("LSM_STATES").ok().and_then(|most| most.parse().ok()).unwrap_or(usual)
}

/// How far it went.
#[derive(Clone, Copy, Debug)]
pub struct Explored {
    pub states: usize,
    pub transitions: usize,
    pub depth: usize,
    /// Nothing was left to try: the depth is all the depth there is.
    pub whole: bool,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explored { states, transitions, depth, whole } = self;
        let whole = if *whole { ", all there is" } else { "" };
        write!(f, "{states} states, {transitions} transitions, depth {depth}{whole}")
    }
}

/// Tries everything, to `depth` events or `most` states at most.
///
/// # Errors
/// The first broken promise, with the shortest sequence of events that leads to it.
pub fn explore<N: Node>(roots: Vec<(String, N)>, depth: usize, most: usize) -> Result<Explored, String> {
    let mut seen = HashSet::new();
    // Of each state: the one it was reached from, and by what.
    let mut ways: Vec<(usize, String)> = Vec::new();
    let mut frontier = Vec::new();
    for (name, root) in roots {
        if seen.insert(digest(&root.key())) {
            ways.push((usize::MAX, name));
            frontier.push((ways.len() - 1, root));
        }
    }
    let mut explored = Explored { states: frontier.len(), transitions: 0, depth: 0, whole: false };
    while explored.depth < depth && explored.states < most {
        let mut beyond = Vec::new();
        for (at, node) in &frontier {
            for (name, result) in node.next() {
                explored.transitions += 1;
                let next = match result.and_then(|next| next.check().map(|()| next)) {
                    Ok(next) => next,
                    Err(promise) => return Err(format!("{promise}\n{}  {name}\n", story(&ways, *at))),
                };
                if seen.insert(digest(&next.key())) {
                    ways.push((*at, name));
                    beyond.push((ways.len() - 1, next));
                }
            }
        }
        if beyond.is_empty() {
            explored.whole = true;
            break;
        }
        explored.states += beyond.len();
        explored.depth += 1;
        frontier = beyond;
    }
    Ok(explored)
}

fn story(ways: &[(usize, String)], mut at: usize) -> String {
    let mut steps = Vec::new();
    while let Some((from, name)) = ways.get(at) {
        steps.push(format!("  {}\n", super::brief(name)));
        at = *from;
    }
    steps.reverse();
    steps.concat()
}

fn digest(key: &str) -> (u64, u64) {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, key).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}
