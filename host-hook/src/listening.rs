//! Where the peer channel listens. `[::]` is every address of the host, of both families: so it is also where the host's
//! default is another (net.ipv6.bindv6only), and IPv4 remains where IPv6 is switched off.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use nix::libc;
use socket2::{Domain, Socket, Type};

/// Callers that wait to be taken; what tokio has for its own listeners.
const BACKLOG: i32 = 1024;

/// A listener that does not block.
///
/// # Errors
/// The kernel's.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    with_or_without_ipv6(address, bind)
}

fn with_or_without_ipv6<T>(address: SocketAddr, bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    let error = match bind(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => error,
        bound => return bound,
    };
    let v4 = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port());
    tracing::info!(%error, "this host has no IPv6; listening on {v4} instead of {address}");
    bind(v4)
}

/// What a kernel says that was started with ipv6.disable=1, or has no such module.
fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;

    fn tried(address: &str, refusal: i32) -> Result<SocketAddr, Option<i32>> {
        let bind = |address: SocketAddr| {
            if address.is_ipv6() { Err(io::Error::from_raw_os_error(refusal)) } else { Ok(address) }
        };
        with_or_without_ipv6(address.parse().unwrap(), bind).map_err(|error| error.raw_os_error())
    }

    #[test]
    fn without_ipv6_every_address_is_every_one_of_ipv4() {
        assert_eq!(tried("[::]:16519", libc::EAFNOSUPPORT), Ok("0.0.0.0:16519".parse().unwrap()));
        assert_eq!(tried("[::]:16519", libc::EADDRINUSE), Err(Some(libc::EADDRINUSE)));
        assert_eq!(
            tried("[2001:db8::7]:16519", libc::EAFNOSUPPORT),
            Err(Some(libc::EAFNOSUPPORT)),
            "one that was named"
        );
    }
}
