//! A guest's forecast: asked for page by page, for whoever wants to know.

use std::time::Duration;

use lsm_protocol::{FromGuest, Mac, ToGuest, forecast::Forecast};
use tokio::sync::oneshot;

use crate::guest_line::{Address, GuestLine};

/// All pages of a guest that answers at all. Within the patience of whoever asks: see `protocol`'s `destination::FORESEE`.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// A guest that claims more has lost its mind; what it said until then will do.
const MOST: usize = 200_000;

/// Those who wait for a forecast, and what has come of it.
#[derive(Default)]
pub struct Foresight {
    waiting: Vec<oneshot::Sender<Forecast>>,
    forecast: Forecast,
}

impl Foresight {
    /// Somebody wants to know. `vnics` are the managed ones.
    pub fn ask(&mut self, line: &GuestLine, vnics: Vec<Mac>, answer: oneshot::Sender<Forecast>) {
        self.waiting.retain(|waiting| !waiting.is_closed());
        self.waiting.push(answer);
        self.forecast = Forecast::default();
        line.tell(ToGuest::Forecast { vnics, skip: 0 });
    }

    /// A page has come.
    pub fn hear(&mut self, line: &GuestLine, page: Forecast) {
        if self.waiting.is_empty() {
            return; // late
        }
        match self.forecast.add(page).filter(|_| self.forecast.connections.len() < MOST) {
            Some(skip) => line.tell(ToGuest::Forecast { vnics: Vec::new(), skip }),
            None => {
                let forecast = std::mem::take(&mut self.forecast);
                self.waiting.drain(..).for_each(|waiting| drop(waiting.send(forecast.clone())));
            }
        }
    }
}

/// Asks a guest to which nobody has a line, and says goodbye: a guest that was prepared by hand would take a line that is
/// cut for its arrival elsewhere, and flip.
pub async fn ask(address: Address, vnics: Vec<Mac>) -> Option<Forecast> {
    let mut line = GuestLine::open(address, Duration::ZERO);
    let mut foresight = Foresight::default();
    let (answer, mut answered) = oneshot::channel();
    foresight.ask(&line, vnics, answer);
    let pages = async {
        loop {
            if let FromGuest::Forecast(page) = line.hear().await {
                foresight.hear(&line, page);
            }
            if let Ok(forecast) = answered.try_recv() {
                return forecast;
            }
        }
    };
    let forecast = tokio::time::timeout(PATIENCE, pages).await.ok();
    line.leave().await;
    forecast
}

/// Waits for an answer by way of a migration's own line.
pub async fn answered(answer: oneshot::Receiver<Forecast>) -> Option<Forecast> {
    tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
}
