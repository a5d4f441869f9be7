//! How far a migration's copy is.

use std::{collections::HashMap, process::Stdio, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use zbus::{Connection, OwnedVariant};

use super::{LibvirtError, Place, bus};

/// A running migration, as QEMU last told libvirt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    pub elapsed: Duration,
    /// Memory and disks, in bytes.
    pub data_total: u64,
    /// Bytes; falls and rises as the VM writes.
    pub data_remaining: u64,
    /// Bytes of memory not yet copied in this round.
    pub memory_remaining: u64,
    /// Bytes per second; 0 until QEMU has measured it.
    pub memory_rate: u64,
    /// Bytes of disks not yet copied.
    pub disk_remaining: u64,
    /// Bytes per second.
    pub disk_rate: u64,
    /// Bytes of memory that the VM writes per second; 0 until QEMU has measured it, after the first round.
    pub dirty_rate: u64,
    /// Rounds over the memory so far.
    pub iteration: u64,
}

/// A migration that has come to its end, as libvirt on the destination tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completed {
    /// From its beginning to its end.
    pub took_ms: u64,
    /// How long the VM stood.
    pub pause_ms: u64,
    /// Memory and disks that were sent.
    pub bytes: u64,
}

/// VIR_DOMAIN_JOB_STATS_COMPLETED, and VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED: the operator may want to see it too.
const COMPLETED: u32 = 1 | 2;

/// The fields of `VIR_DOMAIN_JOB_*`.
pub(crate) type Stats = HashMap<String, u64>;

/// Asks libvirt for running jobs.
pub struct Jobs {
    place: Place,
    bus: Option<Connection>,
}

impl Jobs {
    /// Over libvirt-dbus where the bus has it, else by `virsh domjobinfo` each time.
    pub async fn open(place: Place) -> Self {
        let bus = bus::connect(&place).await.ok();
        Self { place, bus }
    }

    /// Asking is a message, not a process.
    pub fn are_cheap(&self) -> bool {
        self.bus.is_some()
    }

    /// The progress of a domain's job; `None` when it has none. Never call this while a hook of the domain waits.
    ///
    /// # Errors
    /// When libvirt does not answer within two seconds, or does not know the domain.
    pub async fn progress(&self, uuid: &str) -> Result<Option<Progress>, LibvirtError> {
        Ok(self.ask(uuid, 0).await?.map(|stats| progress(&stats)))
    }

    /// The job by which a domain came here; `None` when it did not. As [`Jobs::progress`] otherwise.
    ///
    /// # Errors
    /// As [`Jobs::progress`].
    pub async fn completed(&self, uuid: &str) -> Result<Option<Completed>, LibvirtError> {
        Ok(self.ask(uuid, COMPLETED).await?.as_ref().and_then(completed))
    }

    async fn ask(&self, uuid: &str, flags: u32) -> Result<Option<Stats>, LibvirtError> {
        match &self.bus {
            Some(bus) => match self.ask_bus(bus, uuid, flags).await {
                Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::ServiceUnknown(_)) => {
                    self.ask_virsh(uuid, flags).await
                }
                answer => Ok(answer?),
            },
            None => self.ask_virsh(uuid, flags).await,
        }
    }

    async fn ask_bus(&self, connection: &Connection, uuid: &str, flags: u32) -> zbus::Result<Option<Stats>> {
        let object = bus::object(&self.place, uuid);
        let answer =
            connection.call_method(Some(bus::SERVICE), object, Some(bus::DOMAIN), "GetJobStats", &flags).await?;
        let ((kind, stats),): ((i32, HashMap<String, OwnedVariant>),) = answer.body().deserialize()?;
        let number = |(key, value): (&String, &OwnedVariant)| {
            // libvirt-dbus 1.4.1 wraps each number twice: a variant in a variant.
            let value = match &**value {
                zbus::Variant::Variant(inner) => &**inner,
                value => value,
            };
            let number = u64::try_from(value).ok().or_else(|| u64::try_from(i32::try_from(value).ok()?).ok());
            Some((key.clone(), number?))
        };
        // VIR_DOMAIN_JOB_NONE
        Ok((kind != 0).then(|| stats.iter().filter_map(number).collect()))
    }

    async fn ask_virsh(&self, uuid: &str, flags: u32) -> Result<Option<Stats>, LibvirtError> {
        let mut command = Command::new(&self.place.virsh);
        command.args(["-c", &self.place.uri, "domjobinfo", "--rawstats", uuid]);
        if flags == COMPLETED {
            command.args(["--completed", "--keep-completed"]);
        }
        command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await;
        let output = output.map_err(|source| LibvirtError::Run { program: self.place.virsh.clone(), source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(LibvirtError::Virsh { domain: uuid.to_owned(), said });
        }
        Ok(parse(&String::from_utf8_lossy(&output.stdout)))
    }
}

/// The output of `virsh domjobinfo --rawstats`: the job's type, then `key: value` with the keys of libvirt-domain.h.
pub(crate) fn parse(text: &str) -> Option<Stats> {
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    let there = fields.contains_key("time_elapsed") && fields.get("Job type").is_none_or(|kind| *kind != "None");
    let number = |(key, value): (&&str, &&str)| Some(((*key).to_owned(), value.parse().ok()?));
    there.then(|| fields.iter().filter_map(number).collect())
}

fn completed(stats: &Stats) -> Option<Completed> {
    let number = |key: &str| stats.get(key).copied();
    Some(Completed {
        took_ms: number("time_elapsed")?,
        pause_ms: number("downtime")?,
        bytes: number("memory_processed").unwrap_or(0) + number("disk_processed").unwrap_or(0),
    })
}

fn progress(stats: &Stats) -> Progress {
    let number = |key: &str| stats.get(key).copied().unwrap_or(0);
    Progress {
        elapsed: Duration::from_millis(number("time_elapsed")),
        data_total: number("data_total"),
        data_remaining: number("data_remaining"),
        memory_remaining: number("memory_remaining"),
        memory_rate: number("memory_bps"),
        disk_remaining: number("disk_remaining"),
        disk_rate: number("disk_bps"),
        dirty_rate: number("memory_dirty_rate").saturating_mul(number("memory_page_size")),
        iteration: number("memory_iteration"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_stats() {
        let text = "Job type:         Unbounded   \noperation: 5\ntime_elapsed: 1204\ndata_total: 1000\ndata_remaining: 300\n\
                    memory_remaining: 300\nmemory_bps: 25000000\nmemory_dirty_rate: 10\nmemory_page_size: 4096\n\
                    memory_iteration: 3\n\n";
        let progress = progress(&parse(text).unwrap());
        assert_eq!(progress.elapsed, Duration::from_millis(1204));
        assert_eq!((progress.data_remaining, progress.dirty_rate, progress.iteration), (300, 40_960, 3));
        assert_eq!(parse("Job type:         None        \n\n"), None);
        assert_eq!(completed(&parse(text).unwrap()), None);
        let text = "Job type:         Completed   \noperation: 5\ntime_elapsed: 1204\ndowntime: 98\ndowntime_net: 97\n\
                    memory_processed: 300\n\n";
        let whole = Completed { took_ms: 1204, pause_ms: 98, bytes: 300 };
        assert_eq!(completed(&parse(text).unwrap()), Some(whole));
    }
}
