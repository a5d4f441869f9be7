//! What an address says last is held back, and nothing else.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lsm_guest::farewell::Farewell;

use crate::place::{Place, alone, run, until};

/// A connection from an address here to one there: our end, and theirs.
fn connected(there: &Place, from: IpAddr, to: IpAddr) -> (TcpStream, TcpStream) {
    let listener = there.call(move || TcpListener::bind(SocketAddr::new(to, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let domain = socket2::Domain::for_address(SocketAddr::new(to, port));
    let ours = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
    ours.bind(&SocketAddr::new(from, 0).into()).unwrap();
    ours.connect(&SocketAddr::new(to, port).into()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    theirs.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    (ours.into(), theirs)
}

/// The next byte; `None`: it has ended; an error: nothing yet.
fn next(of: &mut TcpStream) -> Result<Option<u8>, ErrorKind> {
    let mut byte = [0];
    of.read(&mut byte).map(|length| (length > 0).then_some(byte[0])).map_err(|error| error.kind())
}

fn held(old: &str, other: &str, there: &str, prefix: u8) {
    let place = Place::new();
    place.plug("a", "h");
    for (address, dad) in [(old, "nodad"), (other, "nodad")] {
        let dad = if address.contains(':') { dad } else { "brd +" };
        run(&format!("ip address add {address}/{prefix} dev a {dad}"));
    }
    let dad = if there.contains(':') { " nodad" } else { "" };
    place.run(&format!("ip address add {there}/{prefix} dev h{dad}"));
    let [old, other, there] = [old, other, there].map(|address| address.parse::<IpAddr>().unwrap());
    let (mut ours, mut theirs) = connected(&place, old, there);
    let (beside, mut theirs_beside) = connected(&place, other, there);
    let farewell = Farewell::hold(&[old]).unwrap();
    ours.write_all(b"x").unwrap();
    assert_eq!(next(&mut theirs), Ok(Some(b'x')), "data gets through");
    drop((ours, beside));
    assert_eq!(next(&mut theirs_beside), Ok(None), "another address says farewell");
    assert_eq!(next(&mut theirs), Err(ErrorKind::WouldBlock), "held back");
    assert!(Farewell::hold(&[other]).is_err(), "one at a time");
    drop(farewell);
    assert_eq!(until("the farewell that was held back", || next(&mut theirs).ok()), None);
    // Nothing is left of it.
    drop(Farewell::hold(&[other]).unwrap());
}

#[test]
fn an_address_says_no_farewell_for_a_while() {
    alone(|| held("192.0.2.1", "192.0.2.3", "192.0.2.2", 24));
}

#[test]
fn an_ipv6_address_says_none_either() {
    alone(|| held("2001:db8::1", "2001:db8::3", "2001:db8::2", 64));
}
