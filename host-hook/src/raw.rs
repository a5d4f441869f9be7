//! The only unsafe code of this crate: what the kernel or systemd hands over as a number or as bytes.
#![expect(unsafe_code, reason = "each block says why it is sound")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use nix::libc;
use socket2::{SockAddr, Socket};
use tokio::io::unix::AsyncFd;

/// A descriptor that systemd passed to this process (sd_listen_fds(3)). To be called once for each.
pub(crate) fn passed(fd: RawFd) -> OwnedFd {
    // SAFETY: systemd passes these descriptors to this process alone, and the one caller takes each number once: the
    // variable that names them is gone from the environment after it was read.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Puts a non-blocking socket under the current runtime.
pub(crate) fn watch(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: a `Socket` owns its descriptor, keeps it open for as long as it lives, and always gives the same one.
    unsafe { AsyncFd::register(socket) }.map_err(|error| error.into_parts().1)
}

/// The address of an interface for packet sockets (packet(7)).
pub(crate) fn link_address(index: u32, protocol: u16) -> io::Result<SockAddr> {
    // SAFETY: the storage is zeroed, aligned and large enough for every kind of address; what is written makes it a
    // valid sockaddr_ll, and the length is that type's.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link = &mut *storage.cast::<libc::sockaddr_ll>();
            link.sll_family = libc::AF_PACKET as u16;
            link.sll_protocol = protocol.to_be();
            link.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}
