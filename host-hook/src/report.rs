//! What a migration did, as a host that took part in it saw it; with the guest's own report, where the guest told it.

use std::{
    cell::RefCell,
    fmt,
    path::Path,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use lsm_protocol::{MigrationId, Offer, report};
use lsm_records::{
    history::History,
    metrics::{Figures, Kept},
    places::Places,
};
use lsm_scripts::Ran;
use serde::{Deserialize, Serialize};

use crate::{
    clock::{Step, Steps},
    libvirt::{Completed, Jobs, Place},
    random::random,
    story,
    stream::Carried,
};

/// Past migrations that are kept: 60 KiB each at most.
const KEPT: usize = 200;
/// libvirt says within this how the VM came here, or it is not in the report.
const PATIENCE: Duration = Duration::from_secs(5);

/// One migration, as this host saw it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    pub migration: String,
    pub vm: String,
    /// `source` or `destination`.
    pub role: String,
    /// Empty where it was not found who runs the VM.
    pub peer: String,
    /// Empty where this host has none to offer.
    pub lan: String,
    /// Milliseconds since 1970.
    pub began: u64,
    /// `settled`, `released`, `vm-gone`, `refused`, `aborted`, `silent` or `returned`.
    pub outcome: String,
    /// What the hook said, if it refused, or warned.
    pub why: Option<String>,
    pub steps: Steps,
    /// Round trip between the hosts, in milliseconds.
    pub round_trip_ms: Option<f64>,
    /// Frames that would have been lost in the pause, and were sent again.
    pub frames_replayed: u64,
    /// The copy and the pause, as libvirt on the destination tells it.
    pub copy: Option<Completed>,
    /// What each of `[stream] paths` carried meanwhile.
    #[serde(default)]
    pub stream: Vec<Carried>,
    /// What became of the scripts in moved.d.
    pub scripts: Option<Vec<Ran>>,
    pub guest: Option<report::Report>,
}

impl Report {
    /// Of a migration that was refused before anything was offered: it has no id but this report's.
    pub fn refused(vm: &str, peer: Option<String>, lan: Option<String>, steps: Steps, why: String) -> Report {
        let account = Account { steps, ended: Some(report::Ended::Refused), why: Some(why), ..Account::default() };
        let migration = MigrationId(random().unwrap_or_default());
        let (peer, lan) = (peer.unwrap_or_default(), lan.unwrap_or_default());
        account.told("destination", vm, &peer, migration, lan)
    }
}

/// What is known of it while it goes on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Account {
    pub steps: Steps,
    pub ended: Option<report::Ended>,
    pub why: Option<String>,
    pub frames_replayed: u64,
    #[serde(default)]
    pub stream: Vec<Carried>,
    guest: Option<Box<report::Report>>,
}

impl Account {
    /// The guest may say it again, with more in it.
    pub fn hear(&mut self, offer: &Offer, told: Box<report::Report>) {
        if told.migration == offer.migration {
            self.guest = Some(told);
        }
    }

    /// The report, as far as this host knows. An end that none of its machine's steps tells is an abort.
    pub fn close(self, role: &str, vm: &str, peer: &str, offer: &Offer) -> Report {
        self.told(role, vm, peer, offer.migration, offer.lan.clone())
    }

    fn told(self, role: &str, vm: &str, peer: &str, migration: MigrationId, lan: String) -> Report {
        Report {
            migration: migration.to_string(),
            vm: vm.to_owned(),
            role: role.to_owned(),
            peer: peer.to_owned(),
            lan,
            began: self.steps.0.first().map_or(0, |step| step.at_unix_ms),
            outcome: self.ended.unwrap_or(report::Ended::Aborted).name().to_owned(),
            why: self.why,
            steps: self.steps,
            round_trip_ms: None,
            frames_replayed: self.frames_replayed,
            copy: None,
            stream: self.stream,
            scripts: None,
            guest: self.guest.map(|guest| *guest),
        }
    }
}

/// The reports of this host.
#[derive(Debug)]
pub struct Reports {
    history: History,
    numbers: Kept,
    last: RefCell<Option<Report>>,
}

impl Reports {
    pub fn open(places: &Places) -> Reports {
        let history = history(&places.history);
        let last = history.all().pop();
        let numbers = Kept::new(&places.history, places.collector(), "lsm_host");
        Reports { history, numbers, last: last.into() }
    }

    /// The last one.
    pub fn last(&self) -> Option<Report> {
        self.last.borrow().clone()
    }

    /// Keeps a report. Where the VM came here (`uuid`), libvirt is asked how, beside the service's work: whether it
    /// answers or not, nobody waits for it.
    pub fn hand_in(self: &Rc<Self>, mut report: Report, uuid: Option<String>) {
        self.keep(&report);
        let reports = self.clone();
        tokio::task::spawn_local(async move {
            if let Some(uuid) = uuid {
                let ask = async { Jobs::open(Place::default()).await.completed(&uuid).await };
                match tokio::time::timeout(PATIENCE, ask).await {
                    Ok(Ok(copy)) => report.copy = copy,
                    Ok(Err(error)) => {
                        tracing::warn!(
                            vm = report.vm,
                            migration = report.migration,
                            error = story(&error),
                            "libvirt does not say how long the VM stood"
                        );
                    }
                    Err(_) => {
                        tracing::warn!(
                            vm = report.vm,
                            migration = report.migration,
                            "libvirt did not say in time how long the VM stood"
                        );
                    }
                }
                reports.keep(&report);
            }
            reports.count(&report);
        });
    }

    fn keep(&self, report: &Report) {
        if let Err(error) = self.history.put(report.began, &format!("{}-{}", report.migration, report.role), report) {
            tracing::warn!(%error, vm = report.vm, migration = report.migration, "cannot keep the report of this migration");
        }
        *self.last.borrow_mut() = Some(report.clone());
    }

    fn count(&self, report: &Report) {
        let Report { role, outcome, copy, guest, .. } = report;
        let ended = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        self.numbers.take(&Figures {
            role,
            outcome,
            took: report.steps.0.last().map_or(0, |step| step.at_unix_ms.saturating_sub(report.began)),
            pause: copy.map(|copy| copy.pause_ms),
            gap: guest.as_ref().and_then(|guest| Some(guest.gap?.at_most)),
            connections: guest.as_ref().map(|guest| guest.sums),
            ended,
        });
    }
}

/// The reports in a directory.
pub fn history(directory: &Path) -> History {
    History::new(directory, KEPT)
}

/// For people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { migration, vm, role, outcome, .. } = self;
        let [peer, lan] = [&self.peer, &self.lan].map(|name| if name.is_empty() { "unknown" } else { name });
        writeln!(f, "VM {vm}, migration {migration} ({role} with {peer}, LAN {lan}): {outcome}")?;
        if let Some(why) = &self.why {
            writeln!(f, "  {why}")?;
        }
        for Step { name, at_unix_ms } in &self.steps.0 {
            writeln!(f, "  {:>9} ms {name}", at_unix_ms.saturating_sub(self.began))?;
        }
        if let Some(Completed { took_ms, pause_ms, bytes }) = self.copy {
            let mib = bytes / (1 << 20);
            writeln!(f, "  libvirt: the VM stood for {pause_ms} ms; {mib} MiB were sent in {took_ms} ms")?;
        }
        for Carried { path, card, sent, received } in &self.stream {
            let mib = |bytes: &u64| bytes / (1 << 20);
            writeln!(f, "  path {path} ({card}): {} MiB sent, {} MiB received", mib(sent), mib(received))?;
        }
        if self.frames_replayed > 0 {
            writeln!(f, "  {} frames were sent again after the stop", self.frames_replayed)?;
        }
        for one in self.scripts.iter().flatten() {
            writeln!(f, "  {one}")?;
        }
        if let Some(guest) = &self.guest {
            write!(f, "  guest: ")?;
            guest.to_string().trim_end().lines().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_refused_before_any_offer_is_kept_with_its_reason() {
        let directory = std::env::temp_dir().join(format!("lsm-refused-{}", std::process::id()));
        let why = "the VM has no spare vNIC".to_owned();
        let refused = |peer: Option<&str>| {
            Report::refused("vm", peer.map(str::to_owned), Some("dallas".into()), Steps::begun(), why.clone())
        };
        let (first, second) = (refused(Some("montreal")), refused(None));
        assert_ne!(first.migration, second.migration);
        assert_eq!((first.role.as_str(), first.outcome.as_str()), ("destination", "refused"));
        assert!(first.began > 0 && first.began == first.steps.0[0].at_unix_ms);
        let history = history(&directory);
        for report in [&first, &second] {
            history.put(report.began, &report.migration, report).unwrap();
        }
        let mut kept: Vec<Report> = history.all();
        std::fs::remove_dir_all(&directory).unwrap();
        kept.retain(|report| report.migration == second.migration);
        assert_eq!((kept.len(), kept[0].why.as_ref()), (1, Some(&why)));
        let shown = [&first, &kept[0]].map(ToString::to_string);
        assert!(shown[0].contains("(destination with montreal, LAN dallas): refused\n  the VM has no spare vNIC"));
        assert!(shown[1].contains("(destination with unknown, LAN dallas): refused\n"), "{}", shown[1]);
    }
}
