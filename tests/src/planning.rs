//! What `lsm-hook estimate` says of a move, and what comes of the same move.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{
    shell::{LabError, Result, wait_for},
    stage::{Stage, StageOptions},
    topology::{SiteLinks, TopologyOptions},
};

/// A program in the VM writes `mib` of memory over and over, `per_second` MiB of them each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    pub mib: u32,
    pub per_second: u32,
}

/// Both, of one move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Compared {
    /// Seconds from `virsh migrate` to its end. `None`: it was to come to no end.
    pub predicted: Option<f64>,
    pub seconds: f64,
    /// Of the VM, in seconds.
    pub predicted_pause: Option<f64>,
    pub pause: f64,
    /// Bytes of memory over the network.
    pub predicted_bytes: Option<f64>,
    pub bytes: f64,
}

/// The program that loads the VM.
pub(crate) const WRITER: &str = "lab-writer";
/// No move of these is to take longer.
const LIMIT: Duration = Duration::from_secs(120);

/// Two sites next to each other, and a VM of 192 MiB that LSM has nothing to do with: it goes to a bridge of the same
/// name.
///
/// # Errors
/// Whatever did not come up.
pub fn stage() -> Result<Stage> {
    let site = |name: &str| SiteLinks { name: name.into(), client_rtt: Duration::ZERO, wan_rtt: Duration::ZERO };
    let options = StageOptions {
        topology: TopologyOptions { sites: vec![site("montreal"), site("dallas")], ..TopologyOptions::default() },
        agent: false,
        metadata: false,
        memory_mib: 192,
        programs: vec![WRITER.into()],
        ..StageOptions::default()
    };
    let stage = Stage::set(&options, |_| {})?;
    let bridge = &stage.topology.site("montreal").bridge;
    stage.topology.ns("dallas").ip(&format!("link add {bridge} type bridge\nlink set {bridge} up\n"))?;
    Ok(stage)
}

/// Loads the VM anew; nothing else writes much in it.
///
/// # Errors
/// The VM does not answer.
pub fn load(stage: &Stage, load: Load) -> Result<()> {
    stage.guest.must(&format!("kill $(pidof {WRITER}) 2>/dev/null; rm -f /var/log/writer.log"))?;
    stage.guest.spawn("writer", &format!("exec /bin/{WRITER} {} {}", load.mib, load.per_second))?;
    wait_for("the writer to have filled its memory", Duration::from_secs(90), || {
        stage.guest.exec("grep -q ready /var/log/writer.log").ok().filter(|outcome| outcome.status == 0)
    })
    .map(drop)
}

/// Asks for an estimate, then makes the move, both at `mib` MiB/s.
///
/// # Errors
/// Whatever failed, in its own words.
pub fn compare(stage: &Stage, mib: u32) -> Result<Compared> {
    let (from, name) = (stage.guest.site()?.name().to_owned(), stage.guest.domain().name.clone());
    let to = stage.sites.iter().map(|site| site.name()).find(|site| *site != from).unwrap_or_default().to_owned();
    let rate = (f64::from(mib) * 1_048_576.0 / 125_000.0).to_string();
    let text = stage.lsm_hook(&from, &["estimate", &name, "--to", &to, "--rate", &rate, "--json"])?;
    let estimate: serde_json::Value =
        serde_json::from_str(&text).map_err(|error| LabError::Other(format!("{error} in {text}")))?;
    let plain = &estimate["ways"]["pre_copy"];

    let start = Instant::now();
    stage.begin(&to, &["--bandwidth", &mib.to_string()])?.end(LIMIT)?;
    let seconds = start.elapsed().as_secs_f64();
    let job = stage.site(&to).virsh(&["domjobinfo", &name, "--completed", "--rawstats"])?;
    let number = |key: &str| {
        let line = job.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.and_then(|value| value.trim().parse::<f64>().ok())
    };
    let missing = || LabError::Other(format!("libvirt does not tell what the move took: {job}"));
    Ok(Compared {
        predicted: plain["seconds"].as_f64(),
        seconds,
        predicted_pause: plain["pause"].as_f64(),
        pause: number("downtime").ok_or_else(missing)? / 1e3,
        predicted_bytes: plain["bytes"].as_f64(),
        bytes: number("memory_processed").ok_or_else(missing)?,
    })
}
