//! Post-copy after one pass of pre-copy: each page is sent at most twice, however often it is written.

use crate::{Prediction, Situation};

pub(crate) fn predict(at: &Situation) -> Option<Prediction> {
    let first = at.zeroes() + Situation::stream(at.data);
    let pass = first / at.rate;
    let rest = Situation::stream(at.writes.within(pass).min(at.memory));
    // Until the last page is there, the VM waits a round trip for each that it needs before its turn.
    let slow = rest / at.rate;
    Some(Prediction { seconds: at.around() + pass + slow, bytes: first + rest, pause: at.handover(), rounds: 2, slow })
}
