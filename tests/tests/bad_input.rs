//! What is not LSM's protocol ends with its connection, or on virtio-serial with its frame: a reason in the log, nothing
//! else. Connections carry traffic meanwhile.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    process::Stdio,
    time::Duration,
};

use lsm_protocol::{
    Hello, Peer, ToGuest, Uuid, VERSIONS,
    frame::{Frame, Kind, Wire},
};
use lsm_tests::{
    connections::Connections,
    conversation::{Conversation, framed, oversized, senseless, stranger},
    domain::Channel,
    logbook::Logbook,
    shell::{Process, chain, run, wait_for},
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
    flagged[10] = 2;
    let trailing =
        Frame { body: [&query[16..], &[0]].concat(), kind: Kind::ToGuest as u16, sequence: 1, sealed: false }.encode();
    let answered = idle(connect());
    for (bytes, reason) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "the frame does not begin with LSM1"),
        (oversized(Wire::Stream), "the frame claims 65521 bytes of body; 65520 are allowed"),
        (flagged, "the frame has flags 0x0002"),
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

/// The VM's own root sends what it likes to the host's service.
#[test]
fn from_the_guest_to_its_host() {
    if lacking() {
        return;
    }
    let policy = "unprepared = \"refuse\"\nprepare_wait_ms = 1500".to_owned();
    let stage = Stage::set(&StageOptions { policy, ..StageOptions::default() }, |what| eprintln!("{what}")).unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    stage.kill_agent().unwrap();
    let before = Snapshot::take(&stage).unwrap();

    let hello = framed(Wire::Serial, Kind::Hello, &Hello::ours("lsm-guest 0.1"));
    let skipped = "bytes from the guest's serial port skipped";
    let cases = [
        (b"\x01\x02\x03noise\x00".repeat(20), [skipped, "bytes on the serial port are not a frame"]),
        (oversized(Wire::Serial), [skipped, "the frame claims 65521 bytes of body; 65520 are allowed"]),
        (
            [hello.clone(), senseless(Wire::Serial, Kind::FromGuest)].concat(),
            ["line to the guest ended", "the body of a frame of kind 2 is not what this kind holds"],
        ),
        (
            [hello, senseless(Wire::Serial, Kind::Peer)].concat(),
            ["line to the guest ended", "the frame is of kind 3, where kind 2 was expected"],
        ),
        (
            framed(Wire::Serial, Kind::Hello, &stranger("lsm-guest")),
            [
                "the guest's agent does not answer yet",
                "no common protocol version: this side speaks 1, lsm-guest 9.0 speaks 9, 8",
            ],
        ),
    ];
    for (bytes, words) in cases {
        eprintln!("-- {words:?}");
        let octal = bytes.iter().map(|byte| format!("\\{byte:03o}")).collect::<String>();
        stage.guest.must(&format!("printf '{octal}' >/tmp/said")).unwrap();
        let port = "/dev/virtio-ports/org.lsm.guest.0";
        let agent =
            stage.guest.spawn("rubbish", &format!("while :; do cat /tmp/said >{port}; sleep 0.1; done")).unwrap();
        let mut log = Logbook::of_host(&stage, "montreal");
        let said = chain(&stage.migrate("dallas").unwrap_err());
        assert!(said.contains("the guest was not prepared within 1500 ms"), "{said}");
        log.says(&words).unwrap();
        stage.guest.must(&format!("kill {agent}; pkill -x cat; true")).unwrap();
        before.restored(&stage, LIMIT, "").unwrap();
        connections.alive().unwrap();
    }

    stage.start_agent().unwrap();
    stage.migrate("dallas").unwrap();
    connections.alive().unwrap();
    connections.end().unwrap();
}

#[test]
fn between_the_hosts_and_from_a_hook() {
    if lacking() {
        return;
    }
    let mut stage = set(Channel::Serial);
    let mut connections = Connections::open(&stage, 1).unwrap();
    let before = Snapshot::take(&stage).unwrap();

    to_the_hook_s_socket(&stage);
    from_a_caller(&stage);
    before.restored(&stage, LIMIT, "").unwrap();
    connections.alive().unwrap();

    stage.stop_service("montreal");
    from_the_called(&stage);
    stage.restart_service("montreal").unwrap();
    before.restored(&stage, LIMIT, "").unwrap();
    connections.alive().unwrap();

    stage.migrate("dallas").unwrap();
    connections.alive().unwrap();
    connections.end().unwrap();
}

fn to_the_hook_s_socket(stage: &Stage) {
    let mut log = Logbook::of_host(stage, "montreal");
    let socket = stage.site("montreal").inside("/run/lsm/hook.sock");
    for (bytes, reason) in [
        (&b"\x7f\xff\xff\xff"[..], "2147483647 bytes are more than the"),
        (b"\0\0\0\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "the message cannot be understood"),
        (b"GET / HTTP/1.1\r\n\r\n", "bytes are more than the"),
        (b"", "it said nothing"),
    ] {
        let mut call = UnixStream::connect(&socket).unwrap();
        call.set_read_timeout(Some(LIMIT)).unwrap();
        call.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A socket closed with unread bytes is reset.
        let _ = call.read_to_end(&mut answer);
        assert!(answer.is_empty(), "{reason}: {answer:?}");
        log.says(&["a hook call came to nothing", reason]).unwrap();
    }
    let mut call = UnixStream::connect(&socket).unwrap();
    call.write_all(b"\0\0").unwrap();
    drop(call); // in the middle of the length
    log.says(&["a hook call came to nothing", "the connection failed"]).unwrap();
    assert_eq!(stage.status("montreal").unwrap()["vms"][0]["name"], "vm");
}

/// A host with a good certificate, or somebody with none, calls the service of montreal.
fn from_a_caller(stage: &Stage) {
    let mut log = Logbook::of_host(stage, "montreal");
    let wan = stage.topology.site("montreal").wan;
    let call = |program: &str, bytes: &[u8]| {
        let mut command = stage.site("dallas").command("bash");
        command.args(["-c", program]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut caller = Process::start_piped("caller", &mut command).unwrap();
        // Left open: it is the service that ends the connection.
        let mut input = caller.child().stdin.take().unwrap();
        input.write_all(bytes).unwrap();
        caller.wait(LIMIT).expect("the service to close the connection");
        let mut heard = Vec::new();
        caller.child().stdout.take().unwrap().read_to_end(&mut heard).unwrap();
        heard
    };
    let plain = format!("exec 3<>/dev/tcp/{wan}/16519; head -c 18 >&3; cat <&3");
    assert!(!call(&plain, b"GET / HTTP/1.1\r\n\r\n").starts_with(b"LSM1"));
    log.says(&["a caller was turned away", "the handshake with the caller from", "failed"]).unwrap();
    let nobody = format!("exec openssl s_client -quiet -tls1_3 -connect {wan}:16519 -CAfile /etc/pki/CA/cacert.pem");
    assert_eq!(call(&nobody, b""), b"");
    log.says(&["a caller was turned away", "it showed none"]).unwrap();

    let dallas = format!("{nobody} -cert /etc/pki/libvirt/clientcert.pem -key /etc/pki/libvirt/private/clientkey.pem");
    let hello = framed(Wire::Stream, Kind::Hello, &Hello::ours("lsm-hook 0.1"));
    let located = framed(Wire::Stream, Kind::Peer, &Peer::Locate { vm: Uuid([7; 16]) });
    for (bytes, answered, words) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), false, ["no conversation with", "the frame does not begin with LSM1"]),
        (oversized(Wire::Stream), false, ["no conversation with", "the frame claims 65521 bytes of body"]),
        (located, false, ["no conversation with", "the frame is of kind 3, where kind 0 was expected"]),
        (framed(Wire::Stream, Kind::Hello, &stranger("lsm-hook")), true, ["no conversation with", UNKNOWN_VERSION]),
        (
            [hello.clone(), senseless(Wire::Stream, Kind::Peer)].concat(),
            true,
            ["line from the peer ended", "the body of a frame of kind 3 is not what this kind holds"],
        ),
        (
            [hello.clone(), senseless(Wire::Stream, Kind::ToGuest)].concat(),
            true,
            ["line from the peer ended", "the frame is of kind 1, where kind 3 was expected"],
        ),
        (
            [hello, oversized(Wire::Stream)].concat(),
            true,
            ["line from the peer ended", "the frame claims 65521 bytes of body"],
        ),
    ] {
        let heard = call(&dallas, &bytes);
        assert_eq!(heard.first(), Some(&1), "{words:?}: not welcome: {heard:?}");
        assert_eq!(heard[1..].starts_with(b"LSM1"), answered, "{words:?}: {heard:?}");
        let line = log.says(&words).unwrap();
        assert!(line.contains("peer=\"dallas\""), "{line}");
    }
}

/// What stands in the place of montreal's service says these bytes to whoever calls: the operator reads why nothing moves.
fn from_the_called(stage: &Stage) {
    let site = stage.site("montreal");
    let hello = framed(Wire::Stream, Kind::Hello, &Hello::ours("lsm-hook 0.1"));
    for (bytes, reason) in [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(), "the frame does not begin with LSM1"),
        (oversized(Wire::Stream), "the frame claims 65521 bytes of body; 65520 are allowed"),
        (framed(Wire::Stream, Kind::Hello, &stranger("lsm-hook")), UNKNOWN_VERSION),
        (
            [hello, senseless(Wire::Stream, Kind::Peer)].concat(),
            "the body of a frame of kind 3 is not what this kind holds",
        ),
    ] {
        eprintln!("-- {reason}");
        let mut serve = site.command("openssl");
        serve.args(["s_server", "-quiet", "-tls1_3", "-accept", "16519", "-Verify", "1"]);
        serve.args(["-CAfile", "/etc/pki/CA/cacert.pem", "-cert", "/etc/pki/libvirt/servercert.pem"]);
        serve.args(["-key", "/etc/pki/libvirt/private/serverkey.pem"]);
        serve.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut server = Process::start_piped("s_server", &mut serve).unwrap();
        // It sends this to the first that calls, as far as it is a host. The first byte says: you are welcome.
        let mut input = server.child().stdin.take().unwrap();
        input.write_all(&[&[1], &bytes[..]].concat()).unwrap();
        let listens = || run(site.command("ss").args(["-Htln", "sport = :16519"])).is_ok_and(|found| !found.is_empty());
        wait_for("openssl to listen", LIMIT, || listens().then_some(())).unwrap();
        let said = chain(&stage.migrate("dallas").unwrap_err());
        assert!(said.contains("no peer runs this VM (montreal: ") && said.contains(reason), "{said}");
    }
}
