//! TCP sockets that ask for Multipath TCP where the kernel has it, and the UDP socket that answers from the address it
//! was asked at.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::libc;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// A socket, and whether it asked for MPTCP.
fn socket(domain: Domain, multipath: bool) -> io::Result<Socket> {
    let socket = if multipath {
        // A kernel without MPTCP, or one where it is switched off, says so in one of these ways.
        match Socket::new(domain, Type::STREAM, Some(Protocol::MPTCP)) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOPROTOOPT | libc::EPROTONOSUPPORT | libc::EINVAL)) =>
            {
                eprintln!("lsm-traffic: this kernel has no MPTCP ({error}): plain TCP instead");
                Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?
            }
            result => result?,
        }
    } else {
        Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?
    };
    Ok(socket)
}

/// Listens at one address: joins to another are refused.
pub(super) fn listen_at(address: SocketAddr) -> io::Result<Socket> {
    let socket = socket(Domain::for_address(address), true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(256)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Listens on every address of the machine. A listener on a wildcard is what lets MPTCP joins reach a new address.
pub(super) fn listen(port: u16) -> io::Result<Vec<Socket>> {
    let mut listeners = Vec::new();
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let address = SocketAddr::new(any, port);
        match listen_at(address) {
            Ok(socket) => listeners.push(socket),
            // A guest may have no IPv6 at all.
            Err(error) if address.is_ipv6() => eprintln!("lsm-traffic: no IPv6 listener: {error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(listeners)
}

/// Connects within `limit`, and makes the socket ready for the event loop.
pub(super) fn connect(to: SocketAddr, multipath: bool, limit: Duration) -> io::Result<Socket> {
    let socket = socket(Domain::for_address(to), multipath)?;
    socket.connect_timeout(&to.into(), limit)?;
    prepare(&socket)?;
    Ok(socket)
}

/// What every connected socket needs: nothing may wait for Nagle or block the loop.
pub(super) fn prepare(socket: &Socket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // MPTCP sockets learnt this option in 5.17; without it the pacing is only less even.
    let _ = SockRef::from(socket).set_tcp_nodelay(true);
    Ok(())
}
