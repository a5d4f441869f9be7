//! How soon a VM has addresses of a LAN: on a direct link, where it is made ready by hand, and through the advance tunnel, as
//! it moves. Both as its agent reports them, in the same run.

use std::{net::IpAddr, time::Duration};

use crate::{
    shell::{LabError, Result},
    stage::Stage,
    topology::{SPARE_BRIDGE, SitePlan},
};

const LIMIT: Duration = Duration::from_secs(60);
/// What a move may take longer than the direct link, beside two round trips of the WAN.
const MORE: Duration = Duration::from_secs(1);

/// From the word to prepare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// The addresses are there.
    pub got: Duration,
    /// Their gateways have answered, and the peers are told.
    pub announced: Duration,
}

/// The spare is plugged into the LAN where the VM is, made ready there by hand, and all is put back. `addressing` as host.toml
/// has it.
///
/// # Errors
/// The VM or its host does not do it.
pub fn on_a_direct_link(stage: &Stage, addressing: &str) -> Result<Readiness> {
    let site = stage.guest.site()?;
    let (a, b) = (&stage.guest.domain().mac_a, &stage.guest.domain().mac_b);
    plug_spare(stage, &stage.topology.site(site.name()).bridge)?;
    let what = by_hand(stage, stage.topology.site(site.name()), addressing);
    stage.guest.must(&format!("lsm-guest prepare --old {a} --new {b}{what}"))?;
    stage.agent_is(&["prepared"], LIMIT)?;
    stage.guest.must("lsm-guest abort")?;
    stage.agent_is(&["idle"], LIMIT)?;
    plug_spare(stage, SPARE_BRIDGE)?;
    last(stage)
}

/// For the command line of `lsm-guest prepare`, a LAN's addresses.
fn by_hand(stage: &Stage, lan: &SitePlan, addressing: &str) -> String {
    if addressing != "static" {
        return addressing.split('+').map(|word| format!(" --address {word}")).collect();
    }
    let given = |client: IpAddr| match client {
        IpAddr::V4(_) => format!(" --address {}/24 --gateway {}", lan.address(99), lan.gateway),
        IpAddr::V6(_) => format!(" --address {}/64 --gateway {}", lan.address6(99), lan.gateway6()),
    };
    stage.topology.client().into_iter().map(given).collect()
}

/// By hand, where the VM is: its spare card is a port of this bridge.
///
/// # Errors
/// Neither is there.
pub fn plug_spare(stage: &Stage, bridge: &str) -> Result<()> {
    let (site, domain) = (stage.guest.site()?, stage.guest.domain());
    let taps = site.virsh(&["domiflist", &domain.name])?;
    let tap = taps.lines().find(|line| line.contains(&domain.mac_b)).and_then(|line| line.split_whitespace().next());
    let tap = tap.ok_or_else(|| LabError::Other(format!("no card {} in {taps}", domain.mac_b)))?;
    stage.topology.ns(site.name()).ip(&format!("link set {tap} master {bridge}\n")).map(drop)
}

/// Of the VM's last preparation.
///
/// # Errors
/// It has not come so far.
pub fn last(stage: &Stage) -> Result<Readiness> {
    let history = stage.guest_history()?;
    let steps = history.last().and_then(|report| report["steps"].as_array()).cloned().unwrap_or_default();
    let at = |name: &str| {
        let found = steps.iter().find(|step| step["step"] == name).and_then(|step| step["at"].as_u64());
        found.map(Duration::from_millis).ok_or_else(|| LabError::Other(format!("no {name:?} in {steps:?}")))
    };
    Ok(Readiness { got: at("raising the new path")?, announced: at("announcing the new address")? })
}

/// One line for each mode.
pub fn compare(stage: &Stage, mode: &str, direct: Readiness, tunnelled: Readiness) {
    let round_trip: Duration = stage.topology.wan_rtt();
    let allowed = direct.got + 2 * round_trip + MORE;
    println!(
        "{mode}: addresses after {} ms on a direct link, {} ms through the advance tunnel of {} ms ({} than the {} ms that are \
         asked); announced after {} ms and {} ms",
        direct.got.as_millis(),
        tunnelled.got.as_millis(),
        round_trip.as_millis(),
        if tunnelled.got <= allowed { "sooner" } else { "LATER" },
        allowed.as_millis(),
        direct.announced.as_millis(),
        tunnelled.announced.as_millis(),
    );
}
