//! Changes of rules, of routes in tables that may be ours, and addresses that go, as the kernel tells them. Wake-ups, not the truth: that is a
//! dump.

use netlink_sys::Socket;
use nix::libc;
use tokio::io::{Interest, unix::AsyncFd};

use super::{FIXED, RTM_DELROUTE, RTM_DELRULE, RTM_NEWROUTE, RTM_NEWRULE, table_of};
use crate::{
    netlink::{self, Cause, Error},
    raw::watch,
};

/// The rules, routes and addresses of one network namespace.
pub struct Watch {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
    /// Routes of smaller tables are not ours: a machine may change thousands of them in main.
    least_table: u32,
}

impl Watch {
    /// Subscribes. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open(least_table: u32) -> Result<Self, Error> {
        // linux/rtnetlink.h, enum rtnetlink_groups.
        const RTNLGRP_IPV4_IFADDR: u32 = 5;
        const RTNLGRP_IPV4_ROUTE: u32 = 7;
        const RTNLGRP_IPV4_RULE: u32 = 8;
        const RTNLGRP_IPV6_IFADDR: u32 = 9;
        const RTNLGRP_IPV6_ROUTE: u32 = 11;
        const RTNLGRP_IPV6_RULE: u32 = 19;

        let open = || {
            let socket = netlink::socket(libc::NETLINK_ROUTE)?;
            socket.set_non_blocking(true)?;
            let rules = [RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE];
            let routes = [RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE];
            for group in [rules, routes, [RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR]].concat() {
                socket.add_membership(group)?;
            }
            Ok(Watch { socket: watch(socket, Interest::READABLE)?, buffer: Vec::new(), least_table })
        };
        open().map_err(|cause: Cause| Error::new("be told of changed rules and routes", cause))
    }

    /// Waits until something has changed, or may have: what is told can be lost for want of room.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn changed(&mut self) -> Result<(), Error> {
        loop {
            let failed = |error| Error::new("wait for changed rules and routes", Cause::Socket(error));
            let mut guard = self.socket.readable().await.map_err(failed)?;
            match guard.try_io(|socket| netlink::receive(socket.get_ref(), &mut self.buffer)) {
                Ok(Ok(())) => {
                    let mut told = netlink::messages(&self.buffer).map_while(Result::ok);
                    if told.any(|message| may_be_ours(message.kind, message.payload, self.least_table)) {
                        return Ok(());
                    }
                }
                Ok(Err(error)) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(()),
                Ok(Err(error)) => return Err(failed(error)),
                Err(_would_block) => {}
            }
        }
    }
}

fn may_be_ours(kind: u16, payload: &[u8], least_table: u32) -> bool {
    match kind {
        RTM_NEWRULE | RTM_DELRULE | libc::RTM_DELADDR => true,
        RTM_NEWROUTE | RTM_DELROUTE => {
            payload.split_at_checked(FIXED).is_some_and(|(fixed, rest)| table_of(fixed, rest) >= least_table)
        }
        _ => false,
    }
}
