//! Devices that come while the agent runs: the kernel tells of them (netlink, NETLINK_KOBJECT_UEVENT), so that nobody has
//! to look again and again. udev is not needed.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_KOBJECT_UEVENT};
use tokio::io::{Interest, unix::AsyncFd};

use crate::raw;

/// The kernel's own messages; udev sends its own in another group.
const KERNEL: u32 = 1;

pub(super) struct Hotplug(AsyncFd<Socket>);

impl Hotplug {
    /// Hears what happens from now on.
    pub(super) fn open() -> io::Result<Hotplug> {
        let mut socket = Socket::new(NETLINK_KOBJECT_UEVENT)?;
        socket.bind(&SocketAddr::new(0, KERNEL))?;
        socket.set_non_blocking(true)?;
        Ok(Hotplug(raw::watch(socket, Interest::READABLE)?))
    }

    /// Waits until something happens to a device of this class.
    pub(super) async fn change(&self, class: &str) -> io::Result<()> {
        let mut message = Vec::with_capacity(8 << 10);
        loop {
            let mut guard = self.0.readable().await?;
            message.clear();
            match self.0.get_ref().recv(&mut message, 0) {
                Ok(_) if is_of(&message, class) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                // Too many at once (ENOBUFS): one of them may have been ours.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

/// `add@/devices/…`, then `KEY=value` texts, each ended by a zero (lib/kobject_uevent.c).
fn is_of(message: &[u8], class: &str) -> bool {
    message.split(|byte| *byte == 0).any(|text| text.strip_prefix(b"SUBSYSTEM=") == Some(class.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_told_from_others() {
        let message = b"add@/devices/x\0ACTION=add\0DEVPATH=/devices/x\0SUBSYSTEM=virtio-ports\0SEQNUM=1\0";
        assert!(is_of(message, "virtio-ports"));
        assert!(!is_of(message, "virtio-port") && !is_of(message, "net") && !is_of(b"", "net"));
    }
}
