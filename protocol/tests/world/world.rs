//! What the machines are tried against: one migration, the guest's kernel, and the two hosts, as far as the machines'
//! promises can be told from them. An order that breaks a promise is an error that says which.
#![allow(dead_code, reason = "shared by several test programs, none of which uses all of it")]

pub mod explore;
pub mod hosts;
pub mod kernel;

use std::net::{IpAddr, Ipv4Addr};

use lsm_protocol::{Drain, Given, Join, Mac, MigrationId, Millis, Offer, TunnelId, Uuid};

/// The migration that is tried.
pub const OURS: MigrationId = MigrationId([0xaa; 16]);
/// Another one.
pub const FOREIGN: MigrationId = MigrationId([0xbb; 16]);
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
