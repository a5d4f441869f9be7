//! `virsh event`, where there is no libvirt-dbus, and `virsh qemu-monitor-event`, which is faster than either.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    sync::mpsc,
};

use super::{Ending, LibvirtError, Notice, Place, What, Whose, now};

/// `virsh event` says nothing until there is an event. One that lives for so long has connected and listens.
const CONNECTED: Duration = Duration::from_secs(1);

/// What virsh answers. The last argument is the domain, or whatever else the question is about.
pub(super) async fn ask(place: &Place, arguments: &[&str]) -> Result<String, LibvirtError> {
    let mut command = Command::new(&place.virsh);
    command.args(["-q", "-c", &place.uri]).args(arguments);
    command.env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await;
    let output = output.map_err(|source| LibvirtError::Run { program: place.virsh.clone(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(LibvirtError::Virsh { domain: arguments.last().unwrap_or(&"").to_string(), said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Passes libvirt's events on until the child ends.
pub(super) async fn lifecycle(place: &Place, notices: &mpsc::Sender<Notice>) -> Result<(), LibvirtError> {
    let connected = async {
        tokio::time::sleep(CONNECTED).await;
        let _ = notices.send(Notice::Connected).await;
        std::future::pending().await
    };
    let events = follow(place, &["event", "--event", "lifecycle", "--loop", "--timestamp"], notices, parse_lifecycle);
    tokio::select! {
        ended = events => ended,
        never = connected => never,
    }
}

/// Passes QEMU's events on until the child ends.
pub(super) async fn monitor(place: &Place, notices: &mpsc::Sender<Notice>) -> Result<(), LibvirtError> {
    let arguments = ["qemu-monitor-event", "--regex", "--event", "^(STOP|RESUME)$", "--loop", "--timestamp"];
    follow(place, &arguments, notices, parse_monitor).await
}

async fn follow(
    place: &Place,
    arguments: &[&str],
    notices: &mpsc::Sender<Notice>,
    parse: fn(&str) -> Option<(Whose, What)>,
) -> Result<(), LibvirtError> {
    // virsh holds its lines back when it writes to a pipe.
    let mut command = Command::new("stdbuf");
    command.arg("-oL").args([&place.virsh, "-c", &place.uri]).args(arguments);
    // A language of its own would make other words of the events.
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let run = |source| LibvirtError::Run { program: place.virsh.clone(), source };
    let mut child = command.spawn().map_err(run)?;
    let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else { return Ok(()) };
    let mut lines = BufReader::new(output).lines();
    let mut complaints = BufReader::new(errors).lines();
    let mut said = String::new();
    let mut connected = false;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let Some(line) = line.map_err(run)? else { break };
                connected = true;
                if let Some((whose, what)) = parse(&line) && notices.send(now(whose, what)).await.is_err() {
                    return Ok(());
                }
            }
            Ok(Some(complaint)) = complaints.next_line() => said = complaint,
        }
    }
    let status = child.wait().await.map_err(run)?;
    if connected || status.success() {
        return Ok(());
    }
    Err(LibvirtError::Virsh { domain: "all domains".into(), said })
}

/// `2026-11-20 10:00:00.000+0000: event 'lifecycle' for domain 'vm': Suspended Migrated`
pub(crate) fn parse_lifecycle(line: &str) -> Option<(Whose, What)> {
    let (_, rest) = line.split_once("event 'lifecycle' for domain ")?;
    // The name may hold anything, the words after it do not.
    let (name, words) = rest.rsplit_once(": ")?;
    let what = match words.trim().split_once(' ').unwrap_or((words, "")) {
        ("Started", detail) => What::Started { migrated: detail == "Migrated" },
        ("Suspended", detail) => What::Suspended { migrated: matches!(detail, "Migrated" | "Post-copy") },
        ("Resumed", detail) => What::Resumed { migrated: matches!(detail, "Migrated" | "Post-copy") },
        ("Stopped", "Migrated") => What::Stopped(Ending::Migrated),
        ("Stopped", "Saved") => What::Stopped(Ending::Saved),
        ("Stopped", "Failed") => What::Stopped(Ending::Failed),
        ("Stopped", _) => What::Stopped(Ending::Other),
        _ => What::Other,
    };
    Some((Whose::Name(unquoted(name)), what))
}

/// `2026-11-20 10:00:00.000+0000: event STOP for domain 'vm': {…}`
pub(crate) fn parse_monitor(line: &str) -> Option<(Whose, What)> {
    let (_, rest) = line.split_once("event ")?;
    let (event, rest) = rest.split_once(" for domain ")?;
    // STOP and RESUME carry no data.
    let name = rest.rsplit_once(": ").map_or(rest.trim_end_matches(':'), |(name, _)| name);
    let what = match event {
        "STOP" => What::CpusStopped,
        "RESUME" => What::CpusRun,
        _ => return None,
    };
    Some((Whose::Name(unquoted(name)), what))
}

/// libvirt before 8.0 wrote names without quotes.
fn unquoted(name: &str) -> String {
    name.strip_prefix('\'').and_then(|name| name.strip_suffix('\'')).unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, what: What) -> Option<(Whose, What)> {
        Some((Whose::Name(name.into()), what))
    }

    #[test]
    fn lines_of_lifecycle() {
        let line = "2026-11-20 10:00:00.123+0000: event 'lifecycle' for domain 'vm': Suspended Migrated";
        assert_eq!(parse_lifecycle(line), of("vm", What::Suspended { migrated: true }));
        let old = "event 'lifecycle' for domain a: b's: Stopped Failed";
        assert_eq!(parse_lifecycle(old), of("a: b's", What::Stopped(Ending::Failed)));
        let unpaused = "event 'lifecycle' for domain 'vm': Resumed Unpaused";
        assert_eq!(parse_lifecycle(unpaused), of("vm", What::Resumed { migrated: false }));
        let post_copy = "event 'lifecycle' for domain 'vm': Resumed Post-copy";
        assert_eq!(parse_lifecycle(post_copy), of("vm", What::Resumed { migrated: true }));
        assert_eq!(parse_lifecycle("events received: 3"), None);
        assert_eq!(parse_lifecycle("event 'agent-lifecycle' for domain 'vm': state: 'x' reason: 'y'"), None);
    }

    #[test]
    fn lines_of_the_monitor() {
        let line = "2026-11-20 10:00:00.123+0000: event STOP for domain 'vm': <null>";
        assert_eq!(parse_monitor(line), of("vm", What::CpusStopped));
        assert_eq!(parse_monitor("event RESUME at 1.2 for domain 'vm': {}"), None, "only with --timestamp");
        assert_eq!(parse_monitor("t: event RESUME for domain 'v:m': {}"), of("v:m", What::CpusRun));
        assert_eq!(parse_monitor("t: event SHUTDOWN for domain 'vm': {}"), None);
    }
}
