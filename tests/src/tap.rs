//! TAP devices: the one place of this crate with unsafe code.
#![allow(unsafe_code)]

use std::{
    fs::{File, OpenOptions},
    os::fd::AsRawFd as _,
    os::unix::fs::OpenOptionsExt as _,
};

use nix::libc;

use crate::shell::{During as _, Result};

mod request {
    // struct ifreq with ifr_flags: 16 bytes of name, then the union (24 bytes) that starts with the flags.
    #[repr(C)]
    pub(super) struct InterfaceRequest {
        pub(super) name: [u8; 16],
        pub(super) flags: i16,
        pub(super) rest: [u8; 22],
    }
    nix::ioctl_write_ptr_bad!(
        tunsetiff,
        nix::request_code_write!(b'T', 202, size_of::<nix::libc::c_int>()),
        InterfaceRequest
    );
}

/// Makes the TAP device `name` in the calling thread's network namespace. It lives as long as the file; each read
/// gives one Ethernet frame, each write takes one. Without virtio headers, so the kernel cuts super-frames into real
/// ones and fills in check sums before they arrive here. Reads do not block.
///
/// # Errors
/// No `/dev/net/tun`, not root, or the name is taken.
pub(crate) fn open(name: &str) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .during(|| "open /dev/net/tun".into())?;
    let mut request =
        request::InterfaceRequest { name: [0; 16], flags: (libc::IFF_TAP | libc::IFF_NO_PI) as i16, rest: [0; 22] };
    for (to, from) in request.name[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: the request is a whole struct ifreq that outlives the call, which keeps no pointer to it.
    unsafe { request::tunsetiff(file.as_raw_fd(), &raw const request) }
        .during(|| format!("make the TAP device {name}"))?;
    Ok(file)
}
