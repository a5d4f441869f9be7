//! What libvirt knows of a domain in numbers: memory, disks, and how fast it writes its memory.

use std::{collections::HashMap, time::Duration};

use super::{LibvirtError, Place, virsh::ask};

/// Whether a domain can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Running,
    /// Its memory does not change.
    Paused,
    Off,
}

/// A domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    pub power: Power,
    /// Bytes of memory that it may have at most: what QEMU holds for it.
    pub memory: u64,
    /// What each disk takes on this host, in bytes, by its name in the VM.
    pub disks: HashMap<String, u64>,
}

/// What was different after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirtied {
    /// Bytes; whole MiB per second are all that QEMU tells.
    pub bytes: u64,
    pub within: Duration,
}

/// QEMU needs a moment more than it watches: it compares what it has sampled.
const COMPARING: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Asks for a domain by name or UUID.
///
/// # Errors
/// When libvirt does not answer, or does not know it.
pub async fn stats(place: &Place, domain: &str) -> Result<Stats, LibvirtError> {
    parse(&ask(place, &["domstats", "--state", "--balloon", "--block", domain]).await?)
        .ok_or_else(|| unknown(domain, "it tells neither state nor memory"))
}

/// The description of a domain by name or UUID; [`super::description`] knows UUIDs only.
///
/// # Errors
/// When libvirt does not answer, or does not know it.
pub async fn described(place: &Place, domain: &str) -> Result<String, LibvirtError> {
    ask(place, &["dumpxml", domain]).await
}

/// Has QEMU watch a running domain for so many seconds, by samples of its pages: that holds nothing up.
///
/// # Errors
/// When libvirt or QEMU cannot do that.
pub async fn dirtied(place: &Place, domain: &str, seconds: u32) -> Result<Dirtied, LibvirtError> {
    let span = seconds.to_string();
    ask(place, &["domdirtyrate-calc", "--seconds", &span, "--mode", "page-sampling", domain]).await?;
    let within = Duration::from_secs(seconds.into());
    tokio::time::sleep(within).await;
    let limit = tokio::time::Instant::now() + COMPARING;
    while tokio::time::Instant::now() < limit {
        let text = ask(place, &["domstats", "--dirtyrate", domain]).await?;
        let fields = fields(&text);
        let number = |key: &str| fields.get(key)?.parse::<u64>().ok();
        // VIR_DOMAIN_DIRTYRATE_MEASURED
        if number("dirtyrate.calc_status") == Some(2)
            && let Some(rate) = number("dirtyrate.megabytes_per_second")
        {
            return Ok(Dirtied { bytes: (rate << 20) * u64::from(seconds), within });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(unknown(domain, "QEMU does not come to an end with its dirty rate"))
}

/// Whether this virsh can compress a migration over several connections.
pub async fn compresses_in_parallel(place: &Place) -> bool {
    ask(place, &["help", "migrate"]).await.is_ok_and(|help| help.contains("--compression-zstd-level"))
}

fn unknown(domain: &str, what: &str) -> LibvirtError {
    LibvirtError::Virsh { domain: domain.to_owned(), said: what.to_owned() }
}

fn fields(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.trim().split_once('=')).collect()
}

fn parse(text: &str) -> Option<Stats> {
    let fields = fields(text);
    let number = |key: &str| fields.get(key)?.parse::<u64>().ok();
    // virDomainState
    let power = match number("state.state")? {
        1 | 2 => Power::Running,
        3 | 7 => Power::Paused,
        _ => Power::Off,
    };
    let disk = |index| {
        let name = fields.get(format!("block.{index}.name").as_str())?;
        Some(((*name).to_owned(), number(&format!("block.{index}.allocation")).unwrap_or(0)))
    };
    let disks = (0..number("block.count").unwrap_or(0)).filter_map(disk).collect();
    Some(Stats { power, memory: number("balloon.maximum")? << 10, disks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_domstats_prints() {
        let text = "Domain: 'vm'\n  state.state=1\n  state.reason=1\n  balloon.current=196608\n  balloon.maximum=196608\n  \
                    block.count=2\n  block.0.name=vda\n  block.0.path=/a=b\n  block.0.allocation=123\n  \
                    block.1.name=sda\n";
        let stats = parse(text).unwrap();
        assert_eq!((stats.power, stats.memory), (Power::Running, 192 << 20));
        assert_eq!(stats.disks, HashMap::from([("vda".into(), 123), ("sda".into(), 0)]));
        assert_eq!(parse(&text.replace("state.state=1", "state.state=5")).unwrap().power, Power::Off);
        assert_eq!(parse("Domain: 'vm'\n"), None);
    }
}
