//! Changes of the table that are made together. `nft` is a process each time, and looks at all of the table: when a host is
//! drained, hundreds of changes wait for each other, and migrations for them.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use tokio::sync::oneshot;

use super::{Family, FilterError, guarded, rules, run, underlay};

/// One change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Guard {
        vni: u32,
        family: Family,
        text: String,
    },
    /// The guards of a tunnel, in both families.
    Remove(u32),
}

/// Those that wait for their turn, in order; each is told when another's transaction has made it.
static WAITING: Mutex<Vec<(Change, oneshot::Sender<()>)>> = Mutex::new(Vec::new());
/// Whose turn it is: whether a table has become empty is decided outside the kernel.
pub(super) static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn waiting() -> std::sync::MutexGuard<'static, Vec<(Change, oneshot::Sender<()>)>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a change, and all that wait with it. Where one of them is refused, each is made alone.
pub(super) async fn make(what: &str, change: Change) -> Result<(), FilterError> {
    let (done, mut made) = oneshot::channel();
    waiting().push((change.clone(), done));
    let _turn = TURN.lock().await;
    let alone = match made.try_recv() {
        Ok(()) => return Ok(()),
        Err(oneshot::error::TryRecvError::Empty) => false,
        // They were tried together in vain, or whoever tried is gone.
        Err(oneshot::error::TryRecvError::Closed) => true,
    };
    if !alone {
        let together = std::mem::take(&mut *waiting());
        let changes: Vec<Change> = together.iter().map(|(change, _)| change.clone()).collect();
        match apply(what, &changes).await {
            Ok(()) => {
                for (_, done) in together {
                    let _ = done.send(());
                }
                return Ok(());
            }
            Err(error) if changes.len() == 1 => return Err(error),
            Err(_) => {}
        }
    }
    apply(what, &[change]).await
}

async fn apply(what: &str, changes: &[Change]) -> Result<(), FilterError> {
    let mut text = String::new();
    for family in [Family::Bridge, Family::Inet] {
        let removes = changes.iter().any(|change| matches!(change, Change::Remove(_)));
        let present = if removes { guarded(family).await? } else { Vec::new() };
        text.push_str(&transaction(family, changes, present.into_iter().collect()));
    }
    if text.is_empty() { Ok(()) } else { run(what, &text).await }
}

/// The changes of one family in their order, and the table with the last tunnel.
fn transaction(family: Family, changes: &[Change], mut present: BTreeSet<u32>) -> String {
    let (remove, remove_all) = match family {
        Family::Bridge => (rules::remove as fn(u32) -> String, rules::remove_all as fn() -> String),
        Family::Inet => (underlay::remove as fn(u32) -> String, underlay::remove_all as fn() -> String),
    };
    let (mut text, mut removed) = (String::new(), false);
    for change in changes {
        match change {
            Change::Guard { vni, family: of, text: guard } if *of == family => {
                present.insert(*vni);
                text.push_str(guard);
            }
            Change::Remove(vni) if present.remove(vni) => {
                removed = true;
                text.push_str(&remove(*vni));
            }
            _ => {}
        }
    }
    if removed && present.is_empty() {
        text.push_str(&remove_all());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(vni: u32) -> Change {
        Change::Guard { vni, family: Family::Inet, text: format!("guard {vni}\n") }
    }

    fn made(changes: &[Change], present: &[u32]) -> String {
        transaction(Family::Inet, changes, present.iter().copied().collect())
    }

    #[test]
    fn the_table_goes_with_the_last_tunnel_whoever_else_has_come_meanwhile() {
        let (gone, all) = (underlay::remove(7), underlay::remove_all());
        assert_eq!(made(&[Change::Remove(7)], &[7]), format!("{gone}{all}"));
        assert_eq!(made(&[Change::Remove(7)], &[7, 8]), gone);
        assert_eq!(made(&[Change::Remove(7), guard(8)], &[7]), format!("{gone}guard 8\n"));
        assert_eq!(made(&[guard(7), Change::Remove(7)], &[]), format!("guard 7\n{gone}{all}"));
        assert_eq!(made(&[Change::Remove(7)], &[8]), "", "not ours to remove");
        assert_eq!(made(&[Change::Remove(7), Change::Remove(7)], &[7, 8]), gone);
        assert_eq!(transaction(Family::Bridge, &[guard(7)], BTreeSet::new()), "");
    }
}
