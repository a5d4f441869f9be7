//! What an end's kernel counts of each MPTCP connection, read through `ss`.

use std::{collections::HashMap, io, process::Command};

use super::TrafficError;

/// Of one connection (struct mptcp_info).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Subflows beside the first one.
    pub subflows: u32,
    /// Announced addresses that count as taken: eight at most, and one that was withdrawn should not count any more.
    pub add_addr_accepted: u32,
}

/// By the connections' names at this end. `command` must run `ss`, such as `ip netns exec client ss`.
///
/// # Errors
/// `ss` does not run or does not succeed.
pub fn counters(mut command: Command) -> Result<HashMap<u32, Counters>, TrafficError> {
    let program = format!("{command:?}");
    let spawn = |source| TrafficError::Spawn { program, source };
    let output = match command.args(["-HMniO"]).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => return Err(spawn(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))),
        Err(error) => return Err(spawn(error)),
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(parse).collect())
}

/// What is 0 is not printed.
fn parse(line: &str) -> Option<(u32, Counters)> {
    let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name));
    let number = |name: &str| word(name).and_then(|number| number.parse().ok()).unwrap_or_default();
    let token = u32::from_str_radix(word("token:")?, 16).ok()?;
    Some((token, Counters { subflows: number("subflows:"), add_addr_accepted: number("add_addr_accepted:") }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ss_prints_is_read() {
        let line = "ESTAB 0 0 10.9.0.2:40000 10.1.0.10:5001 subflows:1 add_addr_accepted:2 subflows_max:8 \
                    add_addr_accepted_max:8 remote_key token:5e0f write_seq:1 snd_una:1 rcv_nxt:1";
        assert_eq!(parse(line), Some((0x5e0f, Counters { subflows: 1, add_addr_accepted: 2 })));
        let line = "ESTAB 0 0 10.9.0.2:40000 10.1.0.10:5001 subflows_max:8 remote_key token:1 write_seq:1";
        assert_eq!(parse(line), Some((1, Counters::default())));
        assert_eq!(parse("LISTEN 0 4096 0.0.0.0:5003 0.0.0.0:*"), None);
    }
}
