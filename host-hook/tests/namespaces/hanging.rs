//! A copy's connection that hangs is ended, and no other.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use lsm_hook::stream::stalled;

use crate::host::{Host, able, two_hosts};

/// From one host to a port of the other, with what comes out there.
fn connection(from: &Host, to: &Host, address: &str) -> (TcpStream, TcpStream) {
    let listener = to.within(|| TcpListener::bind(address).unwrap());
    let here = from.within(|| TcpStream::connect(address).unwrap());
    here.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    (here, listener.accept().unwrap().0)
}

fn state(mut connection: &TcpStream) -> Option<ErrorKind> {
    connection.read(&mut [0]).err().map(|error| error.kind())
}

#[test]
fn a_connection_that_hangs_is_ended() {
    if !able() {
        return;
    }
    let (a, b) = two_hosts(1500);
    let (mut copy, _there) = connection(&a, &b, "192.0.2.2:49152");
    let (mut sixth, _there_too) = connection(&a, &b, "[2001:db8::2]:49153");
    let (rests, _here) = connection(&a, &b, "192.0.2.2:49154");
    let (mut other, _elsewhere) = connection(&a, &b, "192.0.2.2:16514");
    let to = ["192.0.2.2", "2001:db8::2"].map(|address| address.parse().unwrap());
    let silent = Duration::from_secs(1);

    for connection in [&mut copy, &mut sixth, &mut other] {
        connection.write_all(b"arrives").unwrap();
    }
    std::thread::sleep(silent);
    assert!(a.run(stalled::end(&to, silent)).unwrap().is_empty(), "all is acknowledged");

    b.ip("link set u0 down");
    for connection in [&mut copy, &mut sixth, &mut other] {
        connection.write_all(b"is lost").unwrap();
    }
    assert!(a.run(stalled::end(&to, 20 * silent)).unwrap().is_empty(), "not yet");
    std::thread::sleep(silent);
    let mut ended: Vec<_> = a.run(stalled::end(&to, silent)).unwrap().iter().map(|end| end.port()).collect();
    ended.sort_unstable();
    assert_eq!(ended, [49152, 49153]);
    for (connection, expected) in [
        (&copy, ErrorKind::ConnectionAborted),
        (&sixth, ErrorKind::ConnectionAborted),
        (&rests, ErrorKind::WouldBlock),
        (&other, ErrorKind::WouldBlock),
    ] {
        assert_eq!(state(connection), Some(expected), "{connection:?}");
    }
}
