//! The migration's own stream, over one path between the hosts or two.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    needs,
    planning::{self, Load, WRITER},
    shell::{During as _, LabError, Result, run},
    stage::{Stage, StageOptions},
    topology::{SiteLinks, TopologyOptions},
};

const LIMIT: Duration = Duration::from_secs(120);
const SETTLE: Duration = Duration::from_secs(60);
/// The hosts' cards on the two networks between them.
const CARDS: [&str; 2] = ["wan", "second"];
/// Memory that must travel, beside what the VM itself holds.
const FILLED: Load = Load { mib: 64, per_second: 0 };

/// One move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    pub seconds: f64,
    /// What left the source by each card.
    pub bytes: [u64; 2],
}

/// The same move by plain TCP and by Multipath TCP.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Both {
    pub one: Moved,
    pub two: Moved,
    /// What the source's report says that each path has sent in the second.
    pub reported: [u64; 2],
}

/// What is missing here for a stream over two paths.
#[must_use]
pub fn missing() -> Option<String> {
    needs::missing(&["/usr/bin/mptcpize"], "run tests/install --tests").or_else(needs::missing_mptcp)
}

/// A VM of 192 MiB goes over there by plain TCP, back, and over there again by Multipath TCP. `mbit`: each path's rate.
///
/// # Errors
/// Whatever failed, in its own words; that a host's path manager is not as it was before.
pub fn both(mbit: u32) -> Result<Both> {
    let site = |name: &str| SiteLinks { name: name.into(), client_rtt: Duration::ZERO, wan_rtt: Duration::ZERO };
    let mut stage = Stage::set(
        &StageOptions {
            topology: TopologyOptions { sites: vec![site("montreal"), site("dallas")], ..TopologyOptions::default() },
            memory_mib: 192,
            programs: vec![WRITER.into()],
            ..StageOptions::default()
        },
        |_| {},
    )?;
    second_path(&stage, mbit)?;
    for (site, second) in SECOND {
        let wan = stage.topology.site(site).wan;
        let paths = format!("\n[stream]\npaths = [\"{wan}\", \"{second}\"]\n\n[reports]\n");
        stage.reconfigure(site, "\n[reports]\n", &paths)?;
        stage.restart_service(site)?;
    }
    planning::load(&stage, FILLED)?;
    let before = managed(&stage)?;
    let one = moved(&stage)?;
    for site in &stage.sites {
        site.restart_libvirtd_with_mptcp()?;
    }
    stage.migrate("montreal")?;
    stage.settled(SETTLE)?;
    let two = moved(&stage)?;
    if managed(&stage)? != before {
        return Err(LabError::Other(format!("the path managers were {before:?} and are {:?}", managed(&stage)?)));
    }
    Ok(Both { one, two, reported: reported(&stage)? })
}

/// The hosts' addresses on the second network.
const SECOND: [(&str, &str); 2] = [("montreal", "172.31.0.1"), ("dallas", "172.31.0.2")];

/// A second network between the sites, and the rate on both.
fn second_path(stage: &Stage, mbit: u32) -> Result<()> {
    let dallas = stage.topology.ns("dallas").name();
    stage.topology.ns("montreal").ip(&format!("link add second type veth peer name second netns {dallas}\n"))?;
    for (site, address) in SECOND {
        let ns = stage.topology.ns(site);
        ns.ip(&format!("addr add {address}/24 dev second\nlink set second up\n"))?;
        for card in CARDS {
            ns.tc(&format!("qdisc add dev {card} root tbf rate {mbit}mbit burst 128k latency 50ms\n"))?;
        }
    }
    Ok(())
}

/// Endpoints and limits of both hosts.
fn managed(stage: &Stage) -> Result<Vec<String>> {
    let asked = SECOND.iter().flat_map(|(site, _)| ["endpoint", "limits"].map(|what| (*site, what)));
    asked.map(|(site, what)| run(stage.topology.ns(site).command("ip").args(["mptcp", what]))).collect()
}

fn moved(stage: &Stage) -> Result<Moved> {
    let sent = || -> Result<[u64; 2]> {
        let mut bytes = [0; 2];
        for (card, bytes) in CARDS.iter().zip(&mut bytes) {
            let path = stage.site("montreal").inside(&format!("/sys/class/net/{card}/statistics/tx_bytes"));
            let text = fs::read_to_string(&path).during(|| format!("read {}", path.display()))?;
            *bytes = text.trim().parse().map_err(|_| LabError::Other(format!("{card} has sent {text}")))?;
        }
        Ok(bytes)
    };
    let (before, start) = (sent()?, Instant::now());
    stage.begin("dallas", &[])?.end(LIMIT)?;
    let (seconds, after) = (start.elapsed().as_secs_f64(), sent()?);
    stage.settled(SETTLE)?;
    Ok(Moved { seconds, bytes: [after[0] - before[0], after[1] - before[1]] })
}

/// Of the last move from montreal, in the order of [`CARDS`].
fn reported(stage: &Stage) -> Result<[u64; 2]> {
    let history = stage.history("montreal")?;
    let last = history.iter().rfind(|report| report["role"] == "source");
    let paths = last.and_then(|report| report["stream"].as_array()).cloned().unwrap_or_default();
    let sent = CARDS.map(|card| paths.iter().find(|path| path["card"] == card).and_then(|path| path["sent"].as_u64()));
    match sent {
        [Some(first), Some(second)] => Ok([first, second]),
        _ => Err(LabError::Other(format!("no report of both paths: {last:?}"))),
    }
}
