//! A tap, and the test in the place of QEMU behind it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant},
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::host::Host;

nix::ioctl_write_ptr_bad!(set_interface, 0x400454ca, libc::ifreq);
nix::ioctl_write_int_bad!(set_offload, 0x400454d0);

pub(crate) const VNET_HEADER: usize = 10;

pub(crate) struct Tap {
    file: File,
    name: String,
    super_frames: bool,
}

impl Tap {
    /// A tap that is up, in a bridge.
    pub(crate) fn new(host: &Host, name: &str, bridge: &str) -> Self {
        Self::open(host, name, bridge, false)
    }

    /// A tap on which frames come and go with a virtio-net header, as large as TCP likes.
    pub(crate) fn with_super_frames(host: &Host, name: &str, bridge: &str) -> Self {
        Self::open(host, name, bridge, true)
    }

    fn open(host: &Host, name: &str, bridge: &str, super_frames: bool) -> Self {
        let file = host.within(|| {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).open("/dev/net/tun").unwrap();
            let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
            if super_frames {
                flags |= libc::IFF_VNET_HDR;
            }
            // SAFETY: an all-zero ifreq is one with no name and no flags; the kernel reads it during the call only.
            unsafe {
                let mut request: libc::ifreq = std::mem::zeroed();
                for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                    *to = from as libc::c_char;
                }
                request.ifr_ifru.ifru_flags = flags as libc::c_short;
                set_interface(file.as_raw_fd(), &request).unwrap();
                if super_frames {
                    // TUN_F_CSUM, TSO4, TSO6.
                    set_offload(file.as_raw_fd(), 7).unwrap();
                }
            }
            file
        });
        host.ip(&format!("link set {name} master {bridge}"));
        host.ip(&format!("link set {name} up"));
        Self { file, name: name.to_owned(), super_frames }
    }

    pub(crate) fn write(&self, frame: &[u8]) {
        if self.super_frames {
            self.write_raw(&[&[0; VNET_HEADER], frame].concat());
        } else {
            self.write_raw(frame);
        }
    }

    /// With the virtio-net header, where the tap has one.
    pub(crate) fn write_raw(&self, bytes: &[u8]) {
        (&self.file).write_all(bytes).unwrap_or_else(|e| panic!("write to {}: {e}", self.name));
    }

    /// The next frame that matches; others are dropped. `None` when the time is over.
    pub(crate) fn read_for(&self, time: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + time;
        let mut buffer = vec![0; 70_000];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left.as_millis().min(60_000) as i32).unwrap();
            if poll(&mut [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)], timeout).unwrap() == 0 {
                return None;
            }
            let length = (&self.file).read(&mut buffer).unwrap();
            let start = if self.super_frames { VNET_HEADER } else { 0 };
            if wanted(&buffer[start..length]) {
                return Some(buffer[start..length].to_vec());
            }
        }
    }

    /// The next frame that matches, or the test fails.
    pub(crate) fn expect(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let frame = self.read_for(Duration::from_secs(5), wanted);
        frame.unwrap_or_else(|| panic!("waited 5 s on {} for: {what}", self.name))
    }

    /// Everything that waits to be read.
    pub(crate) fn waiting(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.read_for(Duration::ZERO, &wanted)).collect()
    }
}
