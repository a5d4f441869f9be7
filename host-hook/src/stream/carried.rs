//! What a path has carried, by its card's counters.

use std::{fs, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::card;

/// A path of this host, and bytes, headers included (`/sys/class/net/CARD/statistics`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub path: IpAddr,
    pub card: String,
    pub sent: u64,
    pub received: u64,
}

/// The counters of each path that is there.
pub(super) fn now(paths: &[IpAddr]) -> Vec<Carried> {
    let of = |path: &IpAddr| {
        let card = card(*path)?;
        let count = |what: &str| {
            let text = fs::read_to_string(format!("/sys/class/net/{card}/statistics/{what}")).ok()?;
            text.trim().parse().ok()
        };
        Some(Carried { path: *path, sent: count("tx_bytes")?, received: count("rx_bytes")?, card })
    };
    paths.iter().filter_map(of).collect()
}

/// The difference, where a path was there all the time.
pub(super) fn since(before: &[Carried], now: Vec<Carried>) -> Vec<Carried> {
    let of = |now: Carried| {
        let before = before.iter().find(|before| before.path == now.path && before.card == now.card)?;
        let (sent, received) = (now.sent.checked_sub(before.sent)?, now.received.checked_sub(before.received)?);
        Some(Carried { sent, received, ..now })
    };
    now.into_iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(path: &str, card: &str, sent: u64) -> Carried {
        Carried { path: path.parse().unwrap(), card: card.into(), sent, received: 10 * sent }
    }

    #[test]
    fn a_path_that_came_later_or_changed_its_card_is_not_counted() {
        let before = [carried("192.0.2.1", "eth0", 5), carried("192.0.2.2", "eth1", 5)];
        let now =
            vec![carried("192.0.2.1", "eth0", 8), carried("192.0.2.2", "eth2", 9), carried("192.0.2.3", "eth3", 9)];
        assert_eq!(since(&before, now), [carried("192.0.2.1", "eth0", 3)]);
    }

    #[test]
    fn a_card_that_was_made_anew_is_not_counted() {
        assert_eq!(since(&[carried("192.0.2.1", "eth0", 5)], vec![carried("192.0.2.1", "eth0", 4)]), []);
    }
}
