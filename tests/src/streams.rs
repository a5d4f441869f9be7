//! The migration's own stream, over one path between the hosts or two.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{
    needs,
    planning::{self, Load},
    shell::{During as _, LabError, Result},
    stage::Stage,
};

const LIMIT: Duration = Duration::from_secs(120);
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
}

/// What is missing here for a stream over two paths.
#[must_use]
pub fn missing() -> Option<String> {
    needs::missing(&["/usr/bin/mptcpize"], "run tests/install --tests").or_else(needs::missing_mptcp)
}

/// A VM of 192 MiB goes over there by plain TCP, back, and over there again by Multipath TCP. `mbit`: each path's rate.
///
/// # Errors
/// Whatever failed, in its own words.
pub fn both(mbit: u32) -> Result<Both> {
    let stage = planning::stage()?;
    second_path(&stage, mbit)?;
    planning::load(&stage, FILLED)?;
    let one = moved(&stage)?;
    for site in &stage.sites {
        site.restart_libvirtd_with_mptcp()?;
    }
    stage.begin("montreal", &[])?.end(LIMIT)?;
    manage_paths(&stage)?;
    Ok(Both { one, two: moved(&stage)? })
}

/// A second network between the sites, and the rate on both.
fn second_path(stage: &Stage, mbit: u32) -> Result<()> {
    let dallas = stage.topology.ns("dallas").name();
    stage.topology.ns("montreal").ip(&format!("link add second type veth peer name second netns {dallas}\n"))?;
    for (site, host) in [("montreal", 1), ("dallas", 2)] {
        let ns = stage.topology.ns(site);
        ns.ip(&format!("addr add 172.31.0.{host}/24 dev second\nlink set second up\n"))?;
        for card in CARDS {
            ns.tc(&format!("qdisc add dev {card} root tbf rate {mbit}mbit burst 128k latency 50ms\n"))?;
        }
    }
    Ok(())
}

/// What `docs/operations.md` has an operator do.
fn manage_paths(stage: &Stage) -> Result<()> {
    for (site, host, flag) in [("montreal", 1, "subflow"), ("dallas", 2, "signal")] {
        stage.topology.ns(site).ip(&format!(
            "mptcp limits set subflows 4 add_addr_accepted 4\nmptcp endpoint add 172.31.0.{host} dev second {flag}\n"
        ))?;
    }
    Ok(())
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
    Ok(Moved { seconds, bytes: [after[0] - before[0], after[1] - before[1]] })
}
