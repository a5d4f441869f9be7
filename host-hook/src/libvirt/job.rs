//! How far a migration's copy is.

use std::{collections::HashMap, process::Stdio, time::Duration};

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

    /// The progress of a domain's job; `None` when it has none. Never call this while a hook of the domain waits.
    ///
    /// # Errors
    /// When libvirt does not answer within two seconds, or does not know the domain.
    pub async fn progress(&self, uuid: &str) -> Result<Option<Progress>, LibvirtError> {
        match &self.bus {
            Some(bus) => match self.ask_bus(bus, uuid).await {
                Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::ServiceUnknown(_)) => {
                    self.ask_virsh(uuid).await
                }
                answer => Ok(answer?),
            },
            None => self.ask_virsh(uuid).await,
        }
    }

    async fn ask_bus(&self, connection: &Connection, uuid: &str) -> zbus::Result<Option<Progress>> {
        let object = bus::object(&self.place, uuid);
        let answer =
            connection.call_method(Some(bus::SERVICE), object, Some(bus::DOMAIN), "GetJobStats", &0_u32).await?;
        let ((kind, stats),): ((i32, HashMap<String, OwnedVariant>),) = answer.body().deserialize()?;
        let number = |key: &str| {
            // libvirt-dbus 1.4.1 wraps each number twice: a variant in a variant.
            let value = match &**stats.get(key)? {
                zbus::Variant::Variant(inner) => &**inner,
                value => value,
            };
            u64::try_from(value).ok().or_else(|| u64::try_from(i32::try_from(value).ok()?).ok())
        };
        // VIR_DOMAIN_JOB_NONE
        Ok((kind != 0).then(|| progress(number)))
    }

    async fn ask_virsh(&self, uuid: &str) -> Result<Option<Progress>, LibvirtError> {
        let mut command = Command::new(&self.place.virsh);
        command.args(["-c", &self.place.uri, "domjobinfo", "--rawstats", uuid]);
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
pub(crate) fn parse(text: &str) -> Option<Progress> {
    let fields: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect();
    let number = |key: &str| fields.get(key)?.parse().ok();
    let running = number("time_elapsed").is_some() && fields.get("Job type").is_none_or(|kind| *kind != "None");
    running.then(|| progress(number))
}

/// The fields of `VIR_DOMAIN_JOB_*`.
fn progress(number: impl Fn(&str) -> Option<u64>) -> Progress {
    let number = |key| number(key).unwrap_or(0);
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
        let progress = parse(text).unwrap();
        assert_eq!(progress.elapsed, Duration::from_millis(1204));
        assert_eq!((progress.data_remaining, progress.dirty_rate, progress.iteration), (300, 40_960, 3));
        assert_eq!(parse("Job type:         None        \n\n"), None);
    }
}
