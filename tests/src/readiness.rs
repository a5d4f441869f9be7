//! How soon a VM has addresses of a LAN: on a direct link, where it is made ready by hand, and through the advance tunnel, as
//! it moves. Both as its agent reports them, in the same run.

use std::{net::IpAddr, time::Duration};

use crate::{
    distribution::Owner,
    report::spread,
    shell::{LabError, Result, wait_for},
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

/// The same by the manager that owns the VM's cards, for both families and by itself: LSM has no part in it.
///
/// # Errors
/// The VM or its host does not do it.
pub fn alone(stage: &Stage, owner: Owner) -> Result<Duration> {
    plug_spare(stage, &stage.topology.site(stage.guest.site()?.name()).bridge)?;
    let mac = &stage.guest.domain().mac_b;
    let (begin, end) = match owner {
        Owner::Networkd => (
            format!(
                "printf '[Match]\nMACAddress={mac}\n[Network]\nDHCP=yes\nLinkLocalAddressing=ipv6\n' \
                 >/run/systemd/network/00-alone.network && networkctl reload && networkctl reconfigure eth1"
            ),
            "rm /run/systemd/network/00-alone.network && networkctl reload && networkctl reconfigure eth1",
        ),
        Owner::NetworkManager => (
            "nmcli connection add type ethernet con-name alone ifname eth1 autoconnect no ipv4.method auto ipv6.method auto \
             && nmcli --wait 0 connection up alone"
                .into(),
            "nmcli connection delete alone",
        ),
    };
    let taken = stage
        .guest
        .must(&format!("mkdir -p /run/systemd/network && set -- $(date +%s%3N) && ({begin}) >&2 && {BOTH}"))?;
    stage.guest.must(end)?;
    wait_for("the owner to leave the card", LIMIT, || {
        stage.guest.exec("ip -o addr show dev eth1 scope global").ok().filter(|left| left.stdout.is_empty())
    })?;
    plug_spare(stage, SPARE_BRIDGE)?;
    let taken = taken.trim();
    taken.parse().map(Duration::from_millis).map_err(|_| LabError::Other(format!("no time: {taken}")))
}

/// In the VM, milliseconds since `$1` when the spare has addresses of both families, and may use them.
const BOTH: &str = "until case \"$(ip -o addr show dev eth1 scope global)\" in \
    *tentative*) false ;; *'inet '*'inet6 '*) ;; *) false ;; esac; do sleep 0.02; done; echo $(($(date +%s%3N) - $1))";

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

/// How often each mode is to be tried: LSM_READINESS_RUNS, or once.
///
/// # Panics
/// It is no number.
#[must_use]
pub fn runs() -> usize {
    std::env::var("LSM_READINESS_RUNS").map_or(1, |number| number.parse().expect("LSM_READINESS_RUNS is a number"))
}

/// One way to get addresses, as often as it was tried.
#[derive(Debug)]
pub struct Mode {
    name: String,
    runs: Vec<Run>,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    /// The addresses are there, by their owner, whom lsm-guest asks nothing.
    alone: Option<Duration>,
    direct: Readiness,
    tunnelled: Readiness,
    /// The addresses may be there.
    asked: Duration,
}

impl Mode {
    #[must_use]
    pub fn new(name: &str) -> Mode {
        Mode { name: name.into(), runs: Vec::new() }
    }

    /// Of the VM's last move. `alone`: by a manager that owns the card, by itself.
    ///
    /// # Errors
    /// It was not prepared.
    pub fn add(&mut self, stage: &Stage, alone: Option<Duration>, direct: Readiness) -> Result<()> {
        let asked = alone.unwrap_or(direct.got) + 2 * stage.topology.wan_rtt() + MORE;
        self.runs.push(Run { alone, direct, tunnelled: last(stage)?, asked });
        Ok(())
    }

    /// A line of README's table: medians, and the smallest and largest of several runs.
    pub fn print(&self) {
        let times = |time: fn(&Run) -> Option<Duration>| {
            let milliseconds = |run: &Run| time(run).map(|time| time.as_secs_f64() * 1_000.0);
            spread(self.runs.iter().map(milliseconds), "ms")
        };
        let alone = if self.runs.iter().any(|run| run.alone.is_some()) { times(|run| run.alone) } else { "-".into() };
        let in_time = self.runs.iter().filter(|run| run.tunnelled.got <= run.asked).count();
        println!(
            "| {} | {alone} | {} | {} | {} | {} | {} | {in_time} of {} |",
            self.name,
            times(|run| Some(run.direct.got)),
            times(|run| Some(run.direct.announced)),
            times(|run| Some(run.tunnelled.got)),
            times(|run| Some(run.tunnelled.announced)),
            times(|run| Some(run.asked)),
            self.runs.len(),
        );
    }
}
