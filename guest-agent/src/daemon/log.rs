//! The machine's states and events in words.

use lsm_protocol::{
    Side, ToGuest,
    guest::{Event, Guest, fallback::Progress},
};

use super::Daemon;

impl Daemon {
    pub(super) fn holders(&self) -> String {
        self.holds.all().iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    pub(super) fn log(&self, was: &str, was_awaiting: Option<&str>, why: &str) {
        let guest = &self.record.guest;
        let awaiting = guest.deadline().map(|d| d.awaited);
        if was == guest.name() && was_awaiting == awaiting {
            return;
        }
        let migration = guest.migration().map(|m| m.to_string());
        let counts = guest.status().counts;
        if guest.name() != was && matches!(guest, Guest::Switched(s) if s.has_fallen_back()) {
            tracing::warn!(
                why,
                migration,
                "nothing gets through by the new LAN: the old path is used until something does; look at the new LAN's gateway and its way to the clients"
            );
        }
        tracing::info!(
            from = was,
            to = guest.name(),
            why,
            migration,
            awaiting,
            held_by = guest.is_held().then(|| self.holders()),
            joined = counts.joined,
            waiting = counts.waiting,
            legacy = counts.legacy,
            "state"
        );
    }
}

/// An event in a few words, for the log.
pub(super) fn summary(event: &Event) -> String {
    match event {
        Event::Told(told) => match told {
            ToGuest::Prepare(plan) => format!("told to prepare for LAN {}", plan.lan),
            ToGuest::Switch { to: Side::New, .. } => "told to switch".to_owned(),
            ToGuest::Switch { to: Side::Old, .. } => "told to switch back".to_owned(),
            ToGuest::Arrived { .. } => "told that the VM has arrived".to_owned(),
            ToGuest::Abort { .. } => "told to abort".to_owned(),
            ToGuest::KeepAlive { .. } => "kept alive".to_owned(),
            ToGuest::Query => "asked".to_owned(),
            ToGuest::Release { .. } | ToGuest::Settle { .. } => "told to leave the old path".to_owned(),
            ToGuest::Forecast { .. } => "asked for a forecast".to_owned(),
        },
        Event::Done(step) => format!("{step:?} done"),
        Event::Failed(step, why) => format!("{step:?} failed: {why}"),
        Event::Lost(why) => format!("an address is lost: {why}"),
        Event::Silent(gateway) => format!("{gateway} has not answered yet"),
        Event::Counted(_) => "connections counted".to_owned(),
        Event::Carried(progress) => {
            let Progress { carrying, stuck, saved } = progress;
            format!(
                "the new path carries data for {carrying} connections and none for {stuck}, the old one for {saved} of those"
            )
        }
        Event::SubflowsChanged => "subflows changed".to_owned(),
        Event::TransportReset => "the host's channel was reset".to_owned(),
        Event::Deadline => "the deadline came".to_owned(),
        Event::Restarted => "started".to_owned(),
        Event::Held { .. } => "programs in the VM hold it back, or no more".to_owned(),
    }
}
