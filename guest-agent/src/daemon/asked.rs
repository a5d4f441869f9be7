//! What hosts and programs in the VM ask of the agent.

use lsm_protocol::{FromGuest, Mac, ToGuest, forecast::Forecast, guest::Event};

use super::{Daemon, now};
use crate::{
    bus::{self, Call},
    foresight,
    transport::News,
};

impl Daemon {
    pub(super) async fn hear(&mut self, news: News) {
        match news {
            News::Opened { session, outbox } => self.hosts.push((session, outbox)),
            News::Said { told: ToGuest::Query, session } => {
                self.answer(session, FromGuest::Status(self.record.guest.status()));
            }
            News::Said { told: ToGuest::Forecast { vnics, skip }, session } => {
                if skip == 0 {
                    self.manage(vnics);
                    match self.foresee().await {
                        Ok(forecast) => self.forecast = forecast,
                        Err(error) => return tracing::warn!(error, "cannot make a forecast; the host gets no answer"),
                    }
                }
                self.answer(session, FromGuest::Forecast(self.forecast.page(skip)));
            }
            News::Said { told, .. } => self.feed(Event::Told(told)).await,
            News::Succeeded => self.feed(Event::TransportReset).await,
            News::Closed { session, reset } => {
                self.hosts.retain(|(s, _)| *s != session);
                if reset {
                    self.feed(Event::TransportReset).await;
                }
            }
        }
    }

    /// To the one host that asked.
    fn answer(&self, session: u64, answer: FromGuest) {
        self.hosts.iter().filter(|(s, _)| *s == session).for_each(|(_, host)| drop(host.send(answer.clone())));
    }

    fn manage(&mut self, vnics: Vec<Mac>) {
        if !vnics.is_empty() && vnics != self.record.managed {
            self.record.managed = vnics;
            self.save();
        }
    }

    async fn foresee(&mut self) -> Result<Forecast, String> {
        foresight::look(&mut self.kernel, &self.record, now()).await
    }

    pub(super) async fn call(&mut self, call: Call) {
        match call {
            Call::Status { answer } => {
                let stragglers = self.tally.outcomes().filter(|one| !one.joined).map(|one| one.peer).collect();
                let _ = answer.send(bus::Status::of(&self.record, stragglers, self.holds.all(), now()));
            }
            Call::Forecast { answer } => {
                let _ = answer.send(self.foresee().await);
            }
            Call::Rehearse { told, answer } => {
                let (_, orders) = self.record.guest.clone().handle(now(), Event::Told(told));
                let _ = answer.send(crate::rehearse::steps(&orders, self.record.paths().as_ref()));
            }
            Call::Tell { told, answer } => match told.migration() {
                Some(migration) => {
                    self.callers.wait(migration, answer);
                    self.feed(Event::Told(told)).await;
                }
                None => drop(answer),
            },
            Call::History { answer } => drop(answer.send(self.reports.history())),
            Call::Hold { owner, reason, milliseconds, answer } => {
                let taken = self.holds.take(now(), &owner, &reason, milliseconds.into());
                tracing::info!(owner, reason, milliseconds, refused = taken.is_err(), "asked to hold moves back");
                let _ = answer.send(taken.map_err(|error| error.to_string()));
                self.hold_back().await;
            }
            Call::Release { owner, cookie, answer } => {
                let released = self.holds.release(&owner, cookie);
                if let Ok(hold) = &released {
                    tracing::info!(%hold, "released");
                }
                let _ = answer.send(released.map(drop).map_err(|error| error.to_string()));
                self.hold_back().await;
            }
            Call::Gone { owner } => {
                if self.holds.gone(&owner) {
                    tracing::info!(owner, "gone, and holds moves back no more");
                    self.hold_back().await;
                }
            }
        }
    }

    /// What the holds mean for a preparation under way.
    pub(super) async fn hold_back(&mut self) {
        self.feed(Event::Held { until: self.holds.until() }).await;
    }
}
