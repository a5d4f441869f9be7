//! Descriptors under the event loop. The one file of this crate with unsafe code.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// What owns its descriptor and always gives the same one. Only types of which that was checked.
pub(crate) trait OwnsDescriptor: AsRawFd {}

impl OwnsDescriptor for OwnedFd {}
impl OwnsDescriptor for File {}
impl OwnsDescriptor for socket2::Socket {}
impl OwnsDescriptor for netlink_sys::Socket {}
impl OwnsDescriptor for crate::transport::serial::Watch {}

/// Puts a non-blocking descriptor under the current runtime.
pub(crate) fn watch<T: OwnsDescriptor>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the descriptor must stay open, and the same, while `inner` lives: `OwnsDescriptor` says so of its types. None
    // of them gives the descriptor away through a shared reference.
    #[expect(unsafe_code, reason = "tokio offers no safe way to register a descriptor that is not a socket of its own")]
    let registered = unsafe { AsyncFd::register_with_interest(inner, interest) };
    registered.map_err(|error| error.into_parts().1)
}
