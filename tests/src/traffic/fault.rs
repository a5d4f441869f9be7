//! Faults that the VM's end commits on demand, so that tests can see the client notice them.

use std::str::FromStr;

/// One fault of the VM's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Falsify the byte at this position of what every connection sends: `flip:POSITION`.
    Flip(u64),
    /// Reset every connection once it has sent this many bytes: `reset:POSITION`.
    Reset(u64),
    /// Do not answer the datagram with this number, counted from 1: `drop:NUMBER`.
    Drop(u64),
}

/// The text is not a fault.
#[derive(Debug, thiserror::Error)]
#[error("\"{0}\" is no fault; write flip:POSITION, reset:POSITION or drop:NUMBER")]
pub struct NoFault(String);

impl FromStr for Fault {
    type Err = NoFault;

    fn from_str(text: &str) -> Result<Self, NoFault> {
        let parsed = text.split_once(':').and_then(|(name, number)| {
            let number = number.parse().ok()?;
            match name {
                "flip" => Some(Self::Flip(number)),
                "reset" => Some(Self::Reset(number)),
                "drop" => Some(Self::Drop(number)),
                _ => None,
            }
        });
        parsed.ok_or_else(|| NoFault(text.to_owned()))
    }
}
