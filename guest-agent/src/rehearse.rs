//! What a switch would do, in the words of `ip`: for `--dry-run`.

use lsm_protocol::{
    Side,
    guest::{Notice, Order, Step},
};

use crate::{
    record::{Paths, Plugged},
    routing::Exit,
};

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
    let Some(paths @ Paths { old, new, old_covered }) = paths else { return vec![format!("{step:?}")] };
    match step {
        Step::Prefer(side) => {
            let mut lines = Vec::new();
            for exit in old.exits().filter(|_| side == Side::New && !old_covered) {
                let name = nix::net::if_::if_indextoname(exit.ifindex);
                let name =
                    name.map_or_else(|_| format!("(interface {})", exit.ifindex), |n| n.to_string_lossy().into_owned());
                lines.push(format!("ip mptcp endpoint add {} dev {name}", exit.source));
            }
            let change = |plugged: &Plugged, to: &'static str| {
                let change = move |exit: Exit| format!("ip mptcp endpoint change {} {to}", exit.source);
                plugged.exits().map(change).collect::<Vec<_>>()
            };
            let (first, second) = if side == Side::New { (new, old) } else { (old, new) };
            let changes = [change(first, "nobackup"), change(second, "backup")].concat();
            lines.push(format!("{}   (one write)", changes.join("; ")));
            lines
        }
        Step::TakeOver => {
            let shorter =
                |exit: Exit| format!("ip route: shorter packets from {}, for the tunnel   (its table)", exit.source);
            new.exits().flat_map(|exit| take_over_lines(new, &exit)).chain(old.exits().map(shorter)).collect()
        }
        Step::Withdraw(side) => {
            let delete =
                |exit: Exit| format!("ip mptcp endpoint delete {}   (RM_ADDR; its subflows close)", exit.source);
            paths.side(side).exits().map(delete).collect()
        }
        other => vec![format!("{other:?} for {} and {}", old.addresses(), new.addresses())],
    }
}

fn take_over_lines(new: &Plugged, exit: &Exit) -> [String; 3] {
    let Exit { source, gateway, .. } = exit;
    let (said, ip) = if source.is_ipv4() { ("gratuitous ARP", "ip") } else { ("unsolicited NA", "ip -6") };
    [
        format!("{said} for {source} from {}", new.mac),
        format!("ip neigh: probe {gateway} afresh"),
        format!("{ip} route replace default via {gateway} src {source}   (main table)"),
    ]
}
