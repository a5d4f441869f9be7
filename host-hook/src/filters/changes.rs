//! Changes of the table that are made together: `nft` is a process each time, and looks at all of the table.

use std::collections::BTreeSet;

use super::{Family, FilterError, guarded, rules, run, underlay};
use crate::together::Together;

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

/// Whether a table has become empty is decided outside the kernel: one change at a time.
pub(super) static CHANGES: Together<Change> = Together::new();

/// Makes a change, and all that wait with it.
pub(super) async fn make(what: &str, change: Change) -> Result<(), FilterError> {
    CHANGES.make(change, async |changes: &[Change]| apply(what, changes).await).await
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
