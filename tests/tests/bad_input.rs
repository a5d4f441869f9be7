//! What is not LSM's protocol ends with its connection, or on virtio-serial with its frame: a reason in the log, nothing
//! else. Connections carry traffic meanwhile.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{os::unix::net::UnixStream, time::Duration};

use lsm_protocol::{
    Hello, ToGuest, VERSIONS,
    frame::{Frame, Kind, Wire},
};
use lsm_tests::{
    connections::Connections,
    conversation::{Conversation, framed, oversized, senseless, stranger},
    domain::Channel,
    logbook::Logbook,
    snapshot::Snapshot,
    stage::{Stage, StageOptions, lacking},
    vsock_device,
};

const LIMIT: Duration = Duration::from_secs(30);
const UNKNOWN_VERSION: &str = "no common protocol version: this side speaks 1, lsm-hook 9.0 speaks 9, 8";

fn set(channel: Channel) -> Stage {
    Stage::set(&StageOptions { channel, ..StageOptions::default() }, |what| eprintln!("{what}")).unwrap()
}

/// The agent is there, and has not been moved by anything.
fn idle(mut line: Conversation) -> Conversation {
    assert_eq!(line.greet(&Hello::ours("a test")).unwrap().versions, VERSIONS);
    assert_eq!(line.status().unwrap().state, "idle");
    line
}

#[test]
fn to_the_agent_over_virtio_serial() {
    if lacking() {
        return;
    }
    let stage = set(Channel::Serial);
    let mut connections = Connections::open(&stage, 1).unwrap();
    let before = Snapshot::take(&stage).unwrap();
    let mut log = Logbook::of_agent(&stage);
    let connect =
        || Conversation::new(UnixStream::connect(stage.agent_port().unwrap()).unwrap(), Wire::Serial).unwrap();

    // On a port that finds its way back into step, what is not a frame is skipped, and said so.
    let mut line = idle(connect());
    let mut torn = framed(Wire::Serial, Kind::ToGuest, &ToGuest::Query);
    torn.drain(..7);
    let skipped = [
        (senseless(Wire::Serial, Kind::ToGuest), "the body of a frame of kind 1 is not what this kind holds"),
        (senseless(Wire::Serial, Kind::Peer), "the frame is of kind 3, where kind 1 was expected"),
        (b"\x01\x02\x03noise\x00".to_vec(), "bytes on the serial port are not a frame"),
        (torn, "bytes on the serial port skipped"),
        (oversized(Wire::Serial), "the frame claims 65521 bytes of body; 65520 are allowed"),
        ([vec![1; 200_000], vec![0]].concat(), "bytes on the serial port are not a frame"),
    ];
    for (bytes, reason) in skipped {
        line.send(&bytes).unwrap();
        log.says(&["bytes on the serial port skipped", reason]).unwrap();
        assert_eq!(line.status().unwrap().state, "idle", "after: {reason}");
    }
    drop(line);

    let mut line = connect();
    line.say(Kind::ToGuest, &ToGuest::Query).unwrap();
    log.says(&["conversation with the host ended", "the host's first frame was not a Hello"]).unwrap();
    drop(line);

    let mut line = connect();
    assert_eq!(line.greet(&stranger("lsm-hook")).unwrap().versions, VERSIONS);
    log.says(&["conversation with the host ended", UNKNOWN_VERSION]).unwrap();
    drop(line);

    idle(connect());
    before.restored(&stage, LIMIT, "").unwrap();
    connections.alive().unwrap();
    connections.end().unwrap();
}

#[test]
fn to_the_agent_over_vsock() {
    if lacking() || vsock_device::lacking() {
        return;
    }
    let stage = set(Channel::VsockDevice);
    let mut connections = Connections::open(&stage, 1).unwrap();
    let before = Snapshot::take(&stage).unwrap();
    let mut log = Logbook::of_agent(&stage);
    let device = stage.vsock.as_ref().unwrap();
    let connect = || Conversation::new(device.connect(19_539).unwrap(), Wire::Stream).unwrap();
    let mut ended = |reason: &str| log.says(&["conversation with the host ended", "vsock", reason]).unwrap();

    let query = framed(Wire::Stream, Kind::ToGuest, &ToGuest::Query);
    let mut flagged = query.clone();
    flagged[10] = 1;
    let trailing = Frame { body: [&query[16..], &[0]].concat(), kind: Kind::ToGuest as u16, sequence: 1 }.encode();
    let answered = idle(connect());
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "the frame does not begin with LSM1"),
        (oversized(Wire::Stream), "the frame claims 65521 bytes of body; 65520 are allowed"),
        (flagged, "the frame has flags 0x0001"),
        (senseless(Wire::Stream, Kind::ToGuest), "the body of a frame of kind 1 is not what this kind holds"),
        (senseless(Wire::Stream, Kind::FromGuest), "the frame is of kind 2, where kind 1 was expected"),
        (trailing, "1 bytes follow the message in its frame"),
    ] {
        // Before the Hello and after it.
        let mut early = connect();
        early.send(&bytes).unwrap();
        assert_eq!(early.hear().unwrap(), None, "before the Hello: {reason}");
        ended(if reason.contains("kind") || reason.contains("follow") { "not a Hello" } else { reason });
        let mut line = idle(connect());
        line.send(&bytes).unwrap();
        assert_eq!(line.hear().unwrap(), None, "{reason}");
        ended(reason);
    }

    let mut line = connect();
    line.send(&query[..9]).unwrap();
    drop(line); // in the middle of a frame
    ended("the host closed the connection");

    let mut line = connect();
    assert_eq!(line.greet(&stranger("lsm-hook")).unwrap().versions, VERSIONS);
    assert_eq!(line.hear().unwrap(), None);
    ended(UNKNOWN_VERSION);

    // A conversation in good order beside it was not touched.
    let mut answered = answered;
    assert_eq!(answered.status().unwrap().state, "idle");
    before.restored(&stage, LIMIT, "").unwrap();
    connections.alive().unwrap();
    connections.end().unwrap();
}
