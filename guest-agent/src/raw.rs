//! What has no safe interface elsewhere: descriptors under the event loop, and adjtimex(2). The one file of this crate with
//! unsafe code.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::libc;
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

/// What adjtimex(2) says of the kernel's clock, changing nothing: `TIME_ERROR` where nobody keeps it right.
pub(crate) fn clock_state() -> io::Result<libc::c_int> {
    let mut asked = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: a timex of zeros is valid, all of it being numbers, and asks for no change; the kernel writes into it alone.
    #[expect(unsafe_code, reason = "nix has no adjtimex")]
    let state = unsafe { libc::adjtimex(asked.as_mut_ptr()) };
    if state < 0 { Err(io::Error::last_os_error()) } else { Ok(state) }
}
