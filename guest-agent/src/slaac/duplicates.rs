//! Addresses that the kernel has made and taken back at once, because somebody else has them. It deletes such an address
//! (addrconf_dad_stop, 6.18), and on a LAN without delay before anybody can look; but it tells.

use std::net::Ipv6Addr;

use netlink_sys::Socket;
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    netlink::{self, Cause, Error, attribute, bytes_at, u32_at},
    raw::watch,
};

/// Those of one card.
pub(super) struct Duplicates {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    ifindex: u32,
}

impl Duplicates {
    /// Subscribes. What comes before is not told.
    pub(super) fn open(ifindex: u32) -> Result<Self, Error> {
        // linux/rtnetlink.h, enum rtnetlink_groups.
        const RTNLGRP_IPV6_IFADDR: u32 = 9;

        let open = || {
            let socket = netlink::socket(libc::NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            socket.add_membership(RTNLGRP_IPV6_IFADDR)?;
            Ok(Duplicates { socket: watch(socket, Interest::READABLE)?, buffer: Vec::new(), ifindex })
        };
        open().map_err(|cause: Cause| Error::new("be told of changed addresses", cause))
    }

    /// Waits for one.
    pub(super) async fn next(&mut self) -> Result<Ipv6Addr, Error> {
        loop {
            let failed = |error| Error::new("wait for changed addresses", Cause::Socket(error));
            let mut guard = self.socket.readable().await.map_err(failed)?;
            match guard.try_io(|socket| netlink::receive(socket.get_ref(), &mut self.buffer)) {
                Ok(Ok(())) => {
                    let mut told = netlink::messages(&self.buffer).map_while(Result::ok);
                    let ifindex = self.ifindex;
                    if let Some(address) = told.find_map(|message| read(message.kind, message.payload, ifindex)) {
                        return Ok(address);
                    }
                }
                // Told too much at once: the kernel makes the address again at the next advertisement.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(Err(error)) => return Err(failed(error)),
                Err(_would_block) => {}
            }
        }
    }
}

/// The address of the card that a message says is deleted as a duplicate.
fn read(kind: u16, payload: &[u8], ifindex: u32) -> Option<Ipv6Addr> {
    /// ifaddrmsg; linux/if_addr.h.
    const FIXED: usize = 8;
    const INDEX: usize = 4;
    const IFA_ADDRESS: u16 = 1;

    let (fixed, rest) = payload.split_at_checked(FIXED)?;
    let duplicate = u32::from(fixed[2]) & libc::IFA_F_DADFAILED != 0;
    if kind != libc::RTM_DELADDR || !duplicate || u32_at(fixed, INDEX) != Some(ifindex) {
        return None;
    }
    bytes_at::<16>(attribute(rest, IFA_ADDRESS)?, 0).map(Ipv6Addr::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_duplicate_of_the_card_that_is_deleted_is_one() {
        let message = |flags: u8, index: u8| {
            let address = [0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
            [&[10, 64, flags, 0, index, 0, 0, 0, 20, 0, 1, 0][..], &address].concat()
        };
        let failed = libc::IFA_F_DADFAILED as u8;
        let deleted = libc::RTM_DELADDR;
        assert_eq!(read(deleted, &message(failed, 3), 3), Some("2001:db8:2::7".parse().unwrap()));
        assert_eq!(read(deleted, &message(failed, 4), 3), None);
        assert_eq!(read(deleted, &message(0, 3), 3), None);
        assert_eq!(read(libc::RTM_NEWADDR, &message(failed, 3), 3), None);
        for length in 0..28 {
            assert_eq!(read(deleted, &message(failed, 3)[..length], 3), None, "{length} bytes");
        }
    }
}
