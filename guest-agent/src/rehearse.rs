//! What a switch would do, in the words of `ip`: for `--dry-run`.

use lsm_protocol::{
    Side,
    guest::{Notice, Order, Step},
};

use crate::record::Paths;

/// One line per thing that would be done, in its order.
pub(crate) fn steps(orders: &[Order], paths: Option<&Paths>) -> Vec<String> {
    let mut lines = Vec::new();
    for order in orders {
        match order {
            Order::Do(step) => lines.extend(step_lines(*step, paths)),
            Order::Count => lines.push("count the connections: who has a subflow on the new address".to_owned()),
            Order::Reply(lsm_protocol::FromGuest::Refused { why, .. }) => lines.push(format!("refuse: {why}")),
            Order::Learn => lines.push("remember whose connections have joined".to_owned()),
            Order::Notify(Notice::Switched { sure: true, .. }) => {
                lines.push("say so on D-Bus, and run the scripts for it".to_owned());
            }
            Order::Notify(_) => lines.push("say so on D-Bus".to_owned()),
            Order::Reply(_) => lines.push("tell the host".to_owned()),
        }
    }
    if lines.is_empty() {
        lines.push("nothing: it is so already".to_owned());
    }
    lines
}

fn step_lines(step: Step, paths: Option<&Paths>) -> Vec<String> {
    let Some(Paths { old, new, old_covered }) = paths else { return vec![format!("{step:?}")] };
    let (old_address, new_address) = (old.exit.source, new.exit.source);
    match step {
        Step::Prefer(side) => {
            let mut lines = Vec::new();
            if side == Side::New && !old_covered {
                let name = nix::net::if_::if_indextoname(old.exit.ifindex);
                let name = name
                    .map_or_else(|_| format!("(interface {})", old.exit.ifindex), |n| n.to_string_lossy().into_owned());
                lines.push(format!("ip mptcp endpoint add {old_address} dev {name}"));
            }
            let [first, second] = match side {
                Side::New => [new_address, old_address],
                Side::Old => [old_address, new_address],
            };
            lines.push(format!(
                "ip mptcp endpoint change {first} nobackup; ip mptcp endpoint change {second} backup   (one write)"
            ));
            lines
        }
        Step::TakeOver => vec![
            format!("gratuitous ARP or unsolicited NA for {new_address} from {}", new.mac),
            format!("ip neigh: probe {} afresh", new.exit.gateway),
            format!("ip route replace default via {} src {new_address}   (main table)", new.exit.gateway),
        ],
        Step::Withdraw(side) => {
            let address = if side == Side::Old { old_address } else { new_address };
            vec![format!("ip mptcp endpoint delete {address}   (RM_ADDR; its subflows close)")]
        }
        other => vec![format!("{other:?} for {old_address} and {new_address}")],
    }
}
