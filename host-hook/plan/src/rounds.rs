//! Pre-copy as QEMU does it (migration/migration.c, `migration_iteration_run`, 10.0): it sends what differs until the
//! rest would fit into the pause, asks which pages were written meanwhile, and stops the VM if that still fits. The ways
//! that are told apart here change one thing each in it.

use alloc::vec::Vec;

use crate::{Class, LONGEST, Prediction, ROUNDS, SLICE, Situation};

/// One way to copy in rounds. As it stands: QEMU's plain one.
pub(crate) trait Way {
    /// Bytes per second on the wire, of a stream that gets `rate`.
    fn rate(&self, rate: f64) -> f64 {
        rate
    }

    /// Bytes on the wire for these bytes of memory.
    fn wire(&self, bytes: f64) -> f64 {
        Situation::stream(bytes)
    }

    /// How much of the memory, the most often written first, is passed over in the coming round.
    fn passed_over(&mut self) -> f64 {
        0.0
    }

    /// A round is over. The share of its speed that the VM has in the next.
    fn speed(&mut self, _round: Round) -> f64 {
        1.0
    }
}

/// What a round did.
pub(crate) struct Round {
    pub(crate) seconds: f64,
    pub(crate) written: f64,
    pub(crate) sent: f64,
}

pub(crate) struct PreCopy;

impl Way for PreCopy {}

/// Pages of one class, and the share of them that the destination has not, or not as they are.
struct Part {
    class: Class,
    unsent: f64,
    passed_over: f64,
}

impl Part {
    fn waits(&self) -> f64 {
        self.class.bytes * self.unsent * self.passed_over
    }

    fn unsent(&self) -> f64 {
        self.class.bytes * self.unsent
    }

    /// After a round in which `share` of what was not passed over was sent, and the VM ran for `seconds`.
    fn after(&mut self, share: f64, seconds: f64) {
        let written = (seconds / self.class.period).min(1.0);
        let left = self.unsent * (self.passed_over + (1.0 - self.passed_over) * (1.0 - share));
        self.unsent = 1.0 - (1.0 - left) * (1.0 - written);
    }
}

fn parts(at: &Situation) -> Vec<Part> {
    let classes = at.writes.classes();
    let ever: f64 = classes.iter().map(|class| class.bytes).sum();
    let never = Class { bytes: (at.data - ever).max(1.0), period: f64::INFINITY };
    let unsent = if ever > at.data { at.data / ever } else { 1.0 };
    classes.iter().chain([&never]).map(|class| Part { class: *class, unsent, passed_over: 0.0 }).collect()
}

/// `None`: comes to no end.
pub(crate) fn simulate(at: &Situation, way: &mut impl Way) -> Option<Prediction> {
    let rate = way.rate(at.rate);
    let fits = rate * at.downtime;
    let mut parts = parts(at);
    let (mut seconds, mut bytes) = (at.zeroes() / rate, at.zeroes());
    let (mut speed, mut slow) = (1.0, 0.0);
    for rounds in 1..=ROUNDS {
        let mut room = way.passed_over();
        for part in &mut parts {
            part.passed_over = (room / part.class.bytes).min(1.0);
            room -= part.class.bytes * part.passed_over;
        }
        let unsent: f64 = parts.iter().map(Part::unsent).sum();
        let offered = unsent - parts.iter().map(Part::waits).sum::<f64>();
        let send = (unsent - fits).max(rate * SLICE).min(offered);
        let wire = way.wire(send);
        let took = wire / rate;
        seconds += took;
        bytes += wire;
        slow += if speed < 1.0 { took } else { 0.0 };
        parts.iter_mut().for_each(|part| part.after(send / offered.max(1.0), took * speed));
        let left: f64 = parts.iter().map(Part::unsent).sum();
        if left <= fits {
            let rest = way.wire(left);
            return Some(Prediction {
                seconds: at.around() + seconds + rest / rate,
                bytes: bytes + rest,
                pause: at.handover() + rest / rate,
                rounds: rounds + 1,
                slow,
            });
        }
        if seconds > LONGEST {
            return None;
        }
        let written = at.writes.within(took * speed);
        speed = way.speed(Round { seconds: took, written, sent: wire });
    }
    None
}
