//! Moments that others than LSM tell: QEMU's own events, the hook calls' times.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{report::HookCall, site::Site, traffic::Nanos};

/// Now, as captures and traffic count it.
#[must_use]
pub fn now() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as Nanos
}

/// The first event of that name at or after `since`, by QEMU's own clock stamp.
#[must_use]
pub fn qemu_event(site: &Site, name: &str, since: Nanos) -> Option<Nanos> {
    let log = std::fs::read_to_string(site.dir().join("monitor.log")).unwrap_or_default();
    log.lines().filter_map(|line| stamp(line, name)).find(|at| *at >= since)
}

/// `event STOP at 1795218014.837106 for domain 'vm': <null>`
fn stamp(line: &str, name: &str) -> Option<Nanos> {
    let rest = line.strip_prefix("event ")?.strip_prefix(name)?.strip_prefix(" at ")?;
    let (seconds, micros) = rest.split_whitespace().next()?.split_once('.')?;
    Some(seconds.parse::<Nanos>().ok()? * 1_000_000_000 + micros.parse::<Nanos>().ok()? * 1_000)
}

/// The hook's calls on a host at or after `since`, as the program between libvirt and the hook wrote them down.
pub(super) fn hook_calls(site: &Site, since: Nanos) -> Vec<HookCall> {
    let log = std::fs::read_to_string(site.inside("/var/log/libvirt/hook-calls.log"));
    let log = log.or_else(|_| std::fs::read_to_string(Path::new(site.dir()).join("var/log/libvirt/hook-calls.log")));
    log.unwrap_or_default()
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|call| call["at"].as_u64().is_some_and(|at| at >= since))
        .map(|call| HookCall {
            host: site.name().into(),
            operation: call["operation"].as_str().unwrap_or_default().into(),
            ms: call["ms"].as_f64().unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_s_stamps_are_read_to_the_microsecond() {
        let line = "event STOP at 1795218014.037106 for domain 'vm': <null>";
        assert_eq!(stamp(line, "STOP"), Some(1_795_218_014_037_106_000));
        assert_eq!(stamp(line, "RESUME"), None);
    }
}
