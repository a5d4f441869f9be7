//! The migration's own stream, over one path between the hosts or two.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    demo::timeline,
    needs,
    planning::{self, Load, WRITER},
    shell::{During as _, LabError, Result, run},
    site::{Site, Transport},
    stage::{Stage, StageOptions},
    topology::{SiteLinks, TopologyOptions},
    wire::{End, Wire, WireOptions},
};

const LIMIT: Duration = Duration::from_secs(120);
const SETTLE: Duration = Duration::from_secs(60);
/// The hosts' cards on the two networks between them.
const CARDS: [&str; 2] = ["wan", "second"];
/// The hosts' addresses on the second network.
const SECOND: [(&str, &str); 2] = [("montreal", "172.31.0.1"), ("dallas", "172.31.0.2")];
/// More than any path is given: the rate is that of the hosts' cards.
const UNLIMITED: u32 = 4000;

/// Two hosts with two networks between them, and a VM.
#[derive(Debug, Clone)]
pub struct StreamOptions {
    /// Whether the networks can be as long as is wanted: a program carries their frames then. Else they are cables.
    pub distant: bool,
    /// Of the VM.
    pub memory_mib: u32,
    /// More for the VM's image and description.
    pub stage: StageOptions,
}

impl Default for StreamOptions {
    fn default() -> StreamOptions {
        StreamOptions { distant: false, memory_mib: 192, stage: StageOptions::default() }
    }
}

/// One move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// From `virsh migrate` to its end.
    pub seconds: f64,
    /// Of these, from the beginning of QEMU's copy to the VM's first instruction at the destination.
    pub copied: f64,
    /// What left the source by each card.
    pub bytes: [u64; 2],
    /// The same as the source's report has it.
    pub reported: [u64; 2],
}

/// The same move by plain TCP and by Multipath TCP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Both {
    pub one: Moved,
    pub two: Moved,
}

/// What is missing here for a stream over two paths.
#[must_use]
pub fn missing() -> Option<String> {
    needs::missing(&["/usr/bin/mptcpize"], "run tests/install --tests").or_else(needs::missing_mptcp)
}

/// They stand, and both hosts' services know of both paths.
#[derive(Debug)]
pub struct Hosts {
    // Before the stage: dropped first.
    second: Option<Wire>,
    pub stage: Stage,
    transport: Transport,
}

impl Hosts {
    /// Builds it; libvirt speaks `transport` from the beginning, and so does the VM's first QEMU.
    ///
    /// # Errors
    /// Whatever did not come up.
    pub fn set(
        options: &StreamOptions,
        transport: Transport,
        mut prepare: impl FnMut(&Site) -> Result<()>,
    ) -> Result<Hosts> {
        let wan = if options.distant { Duration::from_micros(2) } else { Duration::ZERO };
        let site = |name: &str, wan_rtt| SiteLinks { name: name.into(), client_rtt: Duration::ZERO, wan_rtt };
        let mut programs = options.stage.programs.clone();
        programs.push(WRITER.into());
        let stage_options = StageOptions {
            topology: TopologyOptions {
                sites: vec![site("montreal", wan), site("dallas", Duration::ZERO)],
                wan_rate_mbit: UNLIMITED,
                ..TopologyOptions::default()
            },
            memory_mib: options.memory_mib,
            programs,
            ..options.stage.clone()
        };
        let mut stage = Stage::set_with(
            &stage_options,
            |_| {},
            |site| {
                if transport == Transport::Multipath {
                    site.restart_libvirtd(transport)?;
                }
                prepare(site)
            },
        )?;
        let second = second_network(&stage, options.distant)?;
        for (site, second) in SECOND {
            let wan = stage.topology.site(site).wan;
            let paths = format!("\n[stream]\npaths = [\"{wan}\", \"{second}\"]\n\n[reports]\n");
            stage.reconfigure(site, "\n[reports]\n", &paths)?;
            stage.restart_service(site)?;
        }
        Ok(Hosts { second, stage, transport })
    }

    /// The rate of each path from now on, in Mbit/s.
    ///
    /// # Errors
    /// The kernel has no token bucket filter.
    pub fn set_rate(&self, mbit: u32) -> Result<()> {
        SECOND.iter().flat_map(|(site, _)| CARDS.map(|card| (*site, card))).try_for_each(|(site, card)| {
            let bucket = format!("qdisc replace dev {card} root tbf rate {mbit}mbit burst 128k latency 50ms\n");
            self.stage.topology.ns(site).tc(&bucket).map(drop)
        })
    }

    /// The round trip over each path from now on, where they are distant.
    ///
    /// # Errors
    /// They are not.
    pub fn set_distance(&self, round_trip: Duration) -> Result<()> {
        let second = self.second.as_ref().ok_or_else(|| LabError::Other("the second network is a cable".into()))?;
        [self.stage.topology.wire("wan-montreal")?, second].iter().try_for_each(|wire| wire.set_delay(round_trip / 2))
    }

    /// Whether the second network is there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_second(&self, up: bool) -> Result<()> {
        let word = if up { "up" } else { "down" };
        SECOND
            .iter()
            .try_for_each(|(site, _)| self.stage.topology.ns(site).ip(&format!("link set second {word}\n")).map(drop))
    }

    /// Memory that must travel, beside what the VM itself holds.
    ///
    /// # Errors
    /// The VM does not answer.
    pub fn fill(&self, mib: u32) -> Result<()> {
        planning::load(&self.stage, Load { mib, per_second: 0 })
    }

    /// The VM goes to the other host, by plain TCP or by Multipath TCP, and comes back by the other: each kind goes either
    /// way in turn.
    ///
    /// # Errors
    /// Whatever failed, in its own words; that a host's path manager is not as it was before.
    pub fn pair(&mut self) -> Result<Both> {
        let first = self.transport;
        let second = if first == Transport::Plain { Transport::Multipath } else { Transport::Plain };
        let there = self.moved(&[])?;
        for site in ["montreal", "dallas"] {
            self.stage.restart_libvirtd(site, second)?;
        }
        self.transport = second;
        let back = self.moved(&[])?;
        Ok(if first == Transport::Plain { Both { one: there, two: back } } else { Both { one: back, two: there } })
    }

    /// One move to the other host, with more arguments for `virsh migrate`.
    ///
    /// # Errors
    /// As [`Hosts::pair`].
    pub fn moved(&self, more: &[&str]) -> Result<Moved> {
        let from = self.stage.guest.site()?.clone();
        let (to, _) = SECOND.into_iter().find(|(site, _)| *site != from.name()).unwrap_or(SECOND[1]);
        let managed = self.managed()?;
        let (before, begun, start) = (sent(&from)?, timeline::now(), Instant::now());
        self.stage.begin(to, more)?.end(LIMIT)?;
        let (seconds, after) = (start.elapsed().as_secs_f64(), sent(&from)?);
        self.stage.settled(SETTLE)?;
        if self.managed()? != managed {
            return Err(LabError::Other(format!("the path managers were {managed:?} and are {:?}", self.managed()?)));
        }
        let said = |site: &Site, event| {
            let at = timeline::qemu_event(site, event, begun);
            at.ok_or_else(|| LabError::Other(format!("QEMU in {} did not say {event}", site.name())))
        };
        let (copying, arrived) = (said(&from, "MIGRATION")?, said(self.stage.site(to), "RESUME")?);
        Ok(Moved {
            seconds,
            copied: arrived.saturating_sub(copying) as f64 / 1e9,
            bytes: [after[0] - before[0], after[1] - before[1]],
            reported: self.reported(from.name())?,
        })
    }

    /// Endpoints and limits of both hosts.
    fn managed(&self) -> Result<Vec<String>> {
        let asked = SECOND.iter().flat_map(|(site, _)| ["endpoint", "limits"].map(|what| (*site, what)));
        asked.map(|(site, what)| run(self.stage.topology.ns(site).command("ip").args(["mptcp", what]))).collect()
    }

    /// Of the last move from there, in the order of [`CARDS`].
    fn reported(&self, from: &str) -> Result<[u64; 2]> {
        let history = self.stage.history(from)?;
        let last = history.iter().rfind(|report| report["role"] == "source");
        let paths = last.and_then(|report| report["stream"].as_array()).cloned().unwrap_or_default();
        if paths.is_empty() {
            return Err(LabError::Other(format!("no report of the paths: {last:?}")));
        }
        // One that is down is none.
        Ok(CARDS.map(|card| {
            paths.iter().find(|path| path["card"] == card).and_then(|path| path["sent"].as_u64()).unwrap_or(0)
        }))
    }
}

/// A second network between the sites.
fn second_network(stage: &Stage, distant: bool) -> Result<Option<Wire>> {
    let [montreal, dallas] = SECOND.map(|(site, _)| stage.topology.ns(site));
    let wire = if distant {
        let end = |ns| End { ns, interface: "second" };
        Some(Wire::new(end(montreal), end(dallas), &WireOptions::default())?)
    } else {
        montreal.ip(&format!("link add second type veth peer name second netns {}\n", dallas.name()))?;
        None
    };
    for (site, address) in SECOND {
        stage.topology.ns(site).ip(&format!("addr add {address}/24 dev second\nlink set second up\n"))?;
    }
    Ok(wire)
}

/// What has left a host by each card.
fn sent(site: &Site) -> Result<[u64; 2]> {
    let mut bytes = [0; 2];
    for (card, bytes) in CARDS.iter().zip(&mut bytes) {
        let path = site.inside(&format!("/sys/class/net/{card}/statistics/tx_bytes"));
        let text = fs::read_to_string(&path).during(|| format!("read {}", path.display()))?;
        *bytes = text.trim().parse().map_err(|_| LabError::Other(format!("{card} has sent {text}")))?;
    }
    Ok(bytes)
}
