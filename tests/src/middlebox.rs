//! What a middlebox on a wire does to frames: drops those that carry a certain MPTCP option, blanks the options, lets
//! frames overtake each other, sends some twice.

use std::time::Duration;

/// TCP's option for MPTCP (RFC 8684, section 3).
const MPTCP: u8 = 30;
/// The option that means nothing (RFC 9293, section 3.1).
const NO_OPERATION: u8 = 1;
const SYN: u8 = 0x02;
/// How much later than its time a frame comes that others overtake.
pub(crate) const OVERTAKEN: Duration = Duration::from_millis(4);

/// Subtypes of the option that a middlebox may be set on (RFC 8684, section 8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subtype {
    /// The SYN of a join and its answer.
    Join = 1,
    AddAddress = 3,
    RemoveAddress = 4,
}

impl Subtype {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Subtype::Join => "join",
            Subtype::AddAddress => "add-addr",
            Subtype::RemoveAddress => "rm-addr",
        }
    }

    fn of(word: &str) -> Option<Subtype> {
        [Subtype::Join, Subtype::AddAddress, Subtype::RemoveAddress].into_iter().find(|one| one.word() == word)
    }
}

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Dropped,
    Passed { late: Duration, twice: bool },
}

/// Its settings, and its random numbers.
#[derive(Debug)]
pub(crate) struct Middlebox {
    loss: f64,
    /// Probability of each subtype's loss.
    option_loss: [f64; 16],
    blank: bool,
    reorder: f64,
    twice: f64,
    random: u64,
}

impl Middlebox {
    pub(crate) fn new(loss: f64, seed: u64) -> Middlebox {
        Middlebox { loss, option_loss: [0.0; 16], blank: false, reorder: 0.0, twice: 0.0, random: seed | 1 }
    }

    /// Takes an order: `loss P`, `loss-of SUBTYPE P`, `blank yes|no`, `reorder P`, `twice P`. False: it is none.
    pub(crate) fn obey(&mut self, order: &str, value: &str) -> bool {
        let probability = |text: &str| text.parse().unwrap_or(0.0);
        match order {
            "loss" => self.loss = probability(value),
            "loss-of" => {
                let (subtype, lost) = value.split_once(' ').unwrap_or((value, "0"));
                let Some(subtype) = Subtype::of(subtype) else { return false };
                self.option_loss[subtype as usize] = probability(lost);
            }
            "blank" => self.blank = value == "yes",
            "reorder" => self.reorder = probability(value),
            "twice" => self.twice = probability(value),
            _ => return false,
        }
        true
    }

    pub(crate) fn pass(&mut self, frame: &mut [u8]) -> Fate {
        if self.draws(self.loss) {
            return Fate::Dropped;
        }
        if (self.blank || self.option_loss.iter().any(|loss| *loss > 0.0))
            && let Some(segment) = segment(frame)
        {
            for option in mptcp_options(segment) {
                if self.draws(self.loss_of(segment, &option)) {
                    return Fate::Dropped;
                }
                if self.blank {
                    blank(segment, option);
                }
            }
        }
        let late = if self.draws(self.reorder) { OVERTAKEN } else { Duration::ZERO };
        Fate::Passed { late, twice: self.draws(self.twice) }
    }

    fn loss_of(&self, segment: &[u8], option: &std::ops::Range<usize>) -> f64 {
        let subtype = segment.get(option.start + 2).map_or(0, |byte| usize::from(byte >> 4));
        // A firewall knows a join by its SYN; what follows on an open subflow is data.
        let counts = subtype != Subtype::Join as usize || segment[13] & SYN != 0;
        if counts { self.option_loss[subtype] } else { 0.0 }
    }

    /// Draws (xorshift64*).
    fn draws(&mut self, probability: f64) -> bool {
        if probability <= 0.0 {
            return false;
        }
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let drawn = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
        (drawn as f64) < probability * (1_u64 << 53) as f64
    }
}

/// The TCP segment of an Ethernet frame with an IPv4 packet that is no later fragment.
fn segment(frame: &mut [u8]) -> Option<&mut [u8]> {
    let packet = frame.get_mut(14..)?;
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let (version, protocol, fragment) = (packet[0] >> 4, *packet.get(9)?, [packet[6] & 0x1f, packet[7]]);
    if version != 4 || protocol != 6 || fragment != [0, 0] {
        return None;
    }
    packet.get_mut(header..).filter(|segment| segment.len() >= 20)
}

/// Where the MPTCP options stand in a segment.
fn mptcp_options(segment: &[u8]) -> Vec<std::ops::Range<usize>> {
    let end = (usize::from(segment[12] >> 4) * 4).min(segment.len());
    let (mut at, mut found) = (20, Vec::new());
    while at < end && segment[at] != 0 {
        let length = match segment[at] {
            NO_OPERATION => 1,
            _ => segment.get(at + 1).map_or(0, |length| usize::from(*length)),
        };
        if length == 0 || at + length > end {
            break;
        }
        if segment[at] == MPTCP && length >= 3 {
            found.push(at..at + length);
        }
        at += length;
    }
    found
}

/// Overwrites an option with ones that mean nothing, and puts the check sum right (RFC 1624).
fn blank(segment: &mut [u8], option: std::ops::Range<usize>) {
    let words = option.start & !1..(option.end + 1) & !1;
    let sum = |segment: &[u8]| {
        let bytes = words.clone().map(|at| u32::from(segment.get(at).copied().unwrap_or(0)) << (8 * (1 - at % 2)));
        bytes.sum::<u32>()
    };
    let before = sum(segment);
    segment[option].fill(NO_OPERATION);
    let after = sum(segment);
    let checked = !u16::from_be_bytes([segment[16], segment[17]]);
    let mut total = u64::from(checked) + u64::from(after) + (u64::from(u16::MAX) << 16) - u64::from(before);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    segment[16..18].copy_from_slice(&(!(total as u16)).to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment with these options, with a right check sum over itself (the pseudo header left out).
    fn frame(flags: u8, options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame.extend([0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let start = frame.len();
        frame.extend([0x13, 0x89, 0xc0, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 0, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(options);
        frame.resize(start + (20 + options.len()).next_multiple_of(4), 0);
        frame[start + 12] = ((frame.len() - start) as u8 / 4) << 4;
        frame.extend(b"payload");
        let sum = !folded(&frame[start..]);
        frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn folded(bytes: &[u8]) -> u16 {
        let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
        let mut sum = words.sum::<u32>();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    const PASSED: Fate = Fate::Passed { late: Duration::ZERO, twice: false };

    #[test]
    fn only_the_option_it_is_set_on_is_dropped() {
        let mut middlebox = Middlebox::new(0.0, 1);
        assert!(middlebox.obey("loss-of", "join 1"));
        let join = frame(SYN, &[2, 4, 5, 0xb4, 30, 12, 0x10, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(middlebox.pass(&mut join.clone()), Fate::Dropped);
        let third_ack = frame(0x10, &[30, 12, 0x10, 2, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(middlebox.pass(&mut third_ack.clone()), PASSED);
        let capable = frame(SYN, &[1, 1, 30, 4, 0x01, 0x01]);
        assert_eq!(middlebox.pass(&mut capable.clone()), PASSED);
        assert!(middlebox.obey("loss-of", "join 0"));
        assert_eq!(middlebox.pass(&mut join.clone()), PASSED);
        assert!(!middlebox.obey("loss-of", "everything 1"));
    }

    #[test]
    fn a_blanked_segment_has_no_option_and_a_right_check_sum() {
        let mut middlebox = Middlebox::new(0.0, 1);
        assert!(middlebox.obey("blank", "yes"));
        for options in [&[30, 4, 0x01, 0x01][..], &[1, 30, 5, 0x20, 0xff, 0xff, 1, 1], &[2, 4, 5, 0xb4, 30, 3, 0x40, 1]]
        {
            let mut frame = frame(SYN, options);
            assert_eq!(middlebox.pass(&mut frame), PASSED);
            assert_eq!(mptcp_options(&frame[34..]), [], "{options:?}");
            assert_eq!(folded(&frame[34..]), 0xffff, "{options:?}");
            assert!(frame.ends_with(b"payload"));
        }
    }

    #[test]
    fn what_is_no_segment_passes_and_torn_options_end_the_search() {
        let mut middlebox = Middlebox::new(0.0, 1);
        for order in [("loss-of", "join 1"), ("blank", "yes")] {
            assert!(middlebox.obey(order.0, order.1));
        }
        for length in 0..80 {
            assert_eq!(middlebox.pass(&mut vec![0x45; length]), PASSED);
        }
        let torn = frame(SYN, &[30, 200, 0x10, 0]);
        assert_eq!(middlebox.pass(&mut torn.clone()), PASSED);
    }
}
