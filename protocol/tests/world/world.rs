//! What the machines are tried against: one migration, the guest's kernel, and the two hosts, as far as the machines'
//! promises can be told from them. An order that breaks a promise is an error that says which.
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

pub mod explore;
pub mod hosts;
pub mod kernel;

use std::net::{IpAddr, Ipv4Addr};

use lsm_protocol::{
    Counts, Drain, Given, Join, Mac, MigrationId, Millis, Offer, Prepare, TunnelId, Uuid,
    guest::{Guest, Leaving, Settling},
};

/// The migration that is tried.
pub const OURS: MigrationId = MigrationId([0xaa; 16]);
/// Another one.
pub const FOREIGN: MigrationId = MigrationId([0xbb; 16]);
/// The one that brought the VM to the source, from where it may go back.
pub const BEFORE: MigrationId = MigrationId([0x99; 16]);
/// When every run begins: ten digits, by which [`relative`] knows a time from everything else.
pub const START: Millis = 1_000_000_000;
/// Without a word for this long, a side gives up.
pub const LEASE: Millis = 12_000;

/// What the destination proposes.
pub fn offer(join: Join, drain: Drain) -> Offer {
    let address = |last| IpAddr::V4(Ipv4Addr::new(198, 51, 100, last));
    Offer {
        migration: OURS,
        vm: Uuid([0xcc; 16]),
        home: TunnelId { mac: Mac([0x52, 0x54, 0, 0xaa, 0, 1]), vni: 101 },
        advance: TunnelId { mac: Mac([0x52, 0x54, 0, 0xaa, 0, 2]), vni: 102 },
        join,
        lan: "dallas".to_owned(),
        addressing: [Given { address: address(7), prefix_len: 24, gateway: address(1) }].into_iter().collect(),
        mtu: 1500,
        underlay: address(200),
        port: 4789,
        drain,
        lease: LEASE,
    }
}

/// What the destination of the migration before had proposed: the way here, where [`offer`] is the way back.
pub fn offer_before(drain: Drain) -> Offer {
    let back = offer(Join::Before, drain);
    Offer { migration: BEFORE, home: back.advance, advance: back.home, lan: "montreal".to_owned(), ..back }
}

/// A guest that holds the address which [`offer`] leads back to.
pub fn holding(drain: Drain) -> Guest {
    let plan = offer_before(drain).prepare(false);
    let counts = Counts { joined: 1, moved: 1, legacy: 1, early: 1, waiting: 0 };
    let leaving = Leaving::Holding { recount: START + 1_000 };
    Guest::Settling(Settling { plan, counts, leaving, cut: None, failed: 0 })
}

/// This plan, for a vNIC that the VM has no address on.
pub fn elsewhere(plan: Prepare) -> Prepare {
    Prepare { migration: FOREIGN, new: Mac([0x52, 0x54, 0, 0xaa, 0, 3]), ..plan }
}

/// Compares with a file under `protocol/golden`; with `LSM_BLESS=1` in the environment, writes it instead.
pub fn golden(name: &str, is: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("LSM_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, is).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        return;
    }
    let frozen =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let differing = frozen.lines().zip(is.lines()).position(|(frozen, is)| frozen != is);
    let line = differing.unwrap_or_else(|| frozen.lines().count().min(is.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("(the end)").to_owned();
    assert!(
        frozen == is,
        "golden/{name} differs from line {} on:\n  frozen: {}\n  is:     {}\nIf that is meant, run the test again with LSM_BLESS=1 and commit the file.",
        line + 1,
        at(&frozen),
        at(is)
    );
}

/// A machine's text, shorter: what never changes is left out.
pub fn brief(text: &str) -> String {
    let plan = offer(Join::Before, Drain::UntilIdle);
    let before = offer_before(Drain::UntilIdle);
    let text = text.replace(
        &format!("migration: {BEFORE}, vm: {:?}, home: {:?}, advance: {:?}, ", plan.vm, before.home, before.advance),
        "before, ",
    );
    let text = text
        .replace(&format!("{{ migration: {BEFORE}, old: {}, new: {}, ", plan.advance.mac, plan.home.mac), "{ before, ");
    let text = text.replace(&format!("lan: {:?}, addressing: {:?}, mtu: 1500, ", before.lan, plan.addressing), "");
    let mut brief = text.replace(
        &format!("migration: {OURS}, vm: {:?}, home: {:?}, advance: {:?}, ", plan.vm, plan.home, plan.advance),
        "",
    );
    for constant in [
        format!("{{ migration: {OURS}, old: {}, new: {}, ", plan.home.mac, plan.advance.mac),
        format!("lan: {:?}, addressing: {:?}, mtu: 1500, ", plan.lan, plan.addressing),
        format!("underlay: {}, port: 4789, ", plan.underlay),
        format!(", lease: {LEASE}"),
    ] {
        let opening = if constant.starts_with('{') { "{ " } else { "" };
        brief = brief.replace(&constant, opening);
    }
    brief.replace(&format!(" {{ migration: {OURS} }}"), "").replace(&format!("migration: {OURS}, "), "")
}

/// A machine's text with every time in it told from `now`: `+300`, or `due`. Two states that differ in nothing else
/// behave alike.
pub fn relative(text: &str, now: Millis) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(|c: char| c.is_ascii_digit()) {
        let (before, from) = rest.split_at(begin);
        let (digits, after) = from.split_at(from.find(|c: char| !c.is_ascii_digit()).unwrap_or(from.len()));
        told.push_str(before);
        match digits.parse::<Millis>() {
            Ok(time) if digits.len() >= 10 && time > now => told.push_str(&format!("+{}", time - now)),
            Ok(_) if digits.len() >= 10 => told.push_str("due"),
            _ => told.push_str(digits),
        }
        rest = after;
    }
    told.push_str(rest);
    told
}
