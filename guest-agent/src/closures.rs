//! Connections that end, as the kernel tells it: the multicast groups of sock_diag that name each TCP socket that is
//! destroyed. The path manager says nothing of plain TCP, and the old address is kept for exactly that.
//!
//! The kernel does some work for every socket that ends while anybody listens, so this is open only while the old path is
//! being left.

use std::net::IpAddr;

use netlink_sys::Socket;
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    connections::local_address,
    netlink::{self, Cause, Error},
    raw::watch,
};

/// linux/sock_diag.h, enum sknetlink_groups.
const SKNLGRP_INET_TCP_DESTROY: u32 = 1;
const SKNLGRP_INET6_TCP_DESTROY: u32 = 3;
/// About 1,000 bytes of kernel memory for each socket that ends: room for several thousand at once. Beyond that some are
/// missed, and counted later.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Read at one go; the agent has other things to do.
const MOST: usize = 1_000;

/// TCP sockets that end, of one network namespace.
pub struct Closures {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Closures {
    /// Subscribes. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the kernel has no sock_diag, or CAP_NET_ADMIN is missing.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let socket = netlink::socket(libc::NETLINK_SOCK_DIAG)?;
            netlink::set_receive_buffer(&socket, RECEIVE_BUFFER)?;
            socket.set_non_blocking(true)?;
            for group in [SKNLGRP_INET_TCP_DESTROY, SKNLGRP_INET6_TCP_DESTROY] {
                socket.add_membership(group)?;
            }
            Ok(Closures { socket: watch(socket, Interest::READABLE)?, buffer: Vec::new() })
        };
        open().map_err(|cause: Cause| Error::new("be told of connections that end", cause))
    }

    /// Waits until connections of these local addresses have ended, or may have: what is told can be lost for want of room.
    /// However many, it is told once.
    pub async fn of(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        loop {
            let mut guard = self.socket.readable().await.map_err(|e| Error::new("wait for connections to end", e))?;
            let mut ended = false;
            for _ in 0..MOST {
                match guard.try_io(|socket| netlink::receive(socket.get_ref(), &mut self.buffer)) {
                    Ok(Ok(())) => {
                        let mut told = netlink::messages(&self.buffer).map_while(Result::ok);
                        ended |= told
                            .any(|row| local_address(row.payload).is_some_and(|local| addresses.contains(&local.ip())));
                    }
                    Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => ended = true,
                    Ok(Err(error)) => return Err(Error::new("hear of connections that end", error)),
                    Err(_would_block) => break,
                }
            }
            if ended {
                return Ok(());
            }
        }
    }
}
