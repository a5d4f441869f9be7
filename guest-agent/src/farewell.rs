//! FIN and RST of addresses held back for a moment: an nftables chain in the output, by hand.
//!
//! It is for the withdrawal of an address. Linux gives back a peer's count of accepted addresses when RM_ADDR finds a subflow
//! to close (mptcp_pm_rm_addr_or_subflow). Deleting an endpoint sends RM_ADDR by whichever subflow speaks next, and the old
//! one's FIN right behind it: where the new path is the longer one, the FIN is there first, the subflow is gone, and the
//! peer goes on counting an address that nobody has. After eight of them it joins no more.
//!
//! The table is the socket's own (NFT_TABLE_F_OWNER, since Linux 5.12): it goes with it, however the agent ends.
//!
//! Numbers are those of linux/netfilter/nf_tables.h and nfnetlink.h; all in network byte order.

use std::{net::IpAddr, time::Duration};

use nix::libc;

use crate::netlink::{Channel, Error, Message};

/// So long a FIN waits. The kernel tries it again after 200 ms and a round trip (TCP_RTO_MIN), which must not be in vain.
pub const HELD: Duration = Duration::from_millis(200);
/// So long after the withdrawal the old address is still needed, for the FIN and what answers it.
pub const SAID: Duration = Duration::from_millis(450);

const TABLE: &[u8] = b"lsm-guest\0";
const CHAIN: &[u8] = b"farewell\0";
const REGISTER: [u8; 4] = 1u32.to_be_bytes();

/// While it lives, these addresses say no farewell.
pub struct Farewell {
    _channel: Channel,
}

impl Farewell {
    /// # Errors
    /// When the kernel has no nftables, is too old, or the agent lacks the capability.
    pub fn hold(addresses: &[IpAddr]) -> Result<Farewell, Error> {
        let hold = || {
            let mut channel = Channel::open(libc::NETLINK_NETFILTER)?;
            let rules = addresses.iter().map(|address| rule(*address));
            channel.change_as_one(batch(BATCH_BEGIN), [table(), chain()].into_iter().chain(rules), batch(BATCH_END))?;
            Ok(Farewell { _channel: channel })
        };
        hold().map_err(|cause: crate::netlink::Cause| Error::new("hold back the farewell of an address", cause))
    }
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;

/// struct nfgenmsg.
fn header(message: Message, family: i32, resource: u16) -> Message {
    let [high, low] = resource.to_be_bytes();
    message.raw(&[family as u8, 0, high, low])
}

fn batch(kind: u16) -> Message {
    header(Message::new(kind, 0), libc::AF_UNSPEC, SUBSYSTEM)
}

fn command(kind: u16) -> Message {
    const NFPROTO_INET: i32 = 1;
    header(Message::new(SUBSYSTEM << 8 | kind, libc::NLM_F_CREATE), NFPROTO_INET, 0)
}

fn table() -> Message {
    const NEWTABLE: u16 = 0;
    const OWNER: u32 = 2;
    command(NEWTABLE).attribute(1, TABLE).attribute(2, &OWNER.to_be_bytes())
}

fn chain() -> Message {
    const NEWCHAIN: u16 = 3;
    const LOCAL_OUT: u32 = 3;
    command(NEWCHAIN)
        .attribute(1, TABLE)
        .attribute(3, CHAIN)
        .nest(4, |hook| hook.attribute(1, &LOCAL_OUT.to_be_bytes()).attribute(2, &0u32.to_be_bytes()))
        .attribute(7, b"filter\0")
}

/// TCP from this address with FIN or RST is dropped.
fn rule(address: IpAddr) -> Message {
    const NEWRULE: u16 = 6;
    const NFPROTO: u32 = 15;
    const L4PROTO: u32 = 16;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    /// Of the TCP header: the byte of its flags, FIN and RST in it.
    const FLAGS: u32 = 13;
    const FIN_RST: u8 = 0b101;

    let (family, offset, octets) = match address {
        IpAddr::V4(v4) => (libc::AF_INET, 12, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, 8, v6.octets().to_vec()),
    };
    command(NEWRULE).attribute(1, TABLE).attribute(2, CHAIN).nest(4, |list| {
        let list = meta(list, NFPROTO);
        let list = compare(list, true, &[if family == libc::AF_INET { 2 } else { 10 }]);
        let list = meta(list, L4PROTO);
        let list = compare(list, true, &[libc::IPPROTO_TCP as u8]);
        let list = payload(list, NETWORK, offset, octets.len() as u32);
        let list = compare(list, true, &octets);
        let list = payload(list, TRANSPORT, FLAGS, 1);
        let list = mask(list, FIN_RST);
        drop_it(compare(list, false, &[0]))
    })
}

fn expression(list: Message, name: &[u8], data: impl FnOnce(Message) -> Message) -> Message {
    list.nest(1, |one| one.attribute(1, name).nest(2, data))
}

fn value(message: Message, kind: u16, bytes: &[u8]) -> Message {
    message.nest(kind, |data| data.attribute(1, bytes))
}

/// Into the register: what is known of the packet beside its bytes.
fn meta(list: Message, key: u32) -> Message {
    expression(list, b"meta\0", |data| data.attribute(1, &REGISTER).attribute(2, &key.to_be_bytes()))
}

/// Into the register: bytes of a header.
fn payload(list: Message, base: u32, offset: u32, length: u32) -> Message {
    expression(list, b"payload\0", |data| {
        let data = data.attribute(1, &REGISTER).attribute(2, &base.to_be_bytes());
        data.attribute(3, &offset.to_be_bytes()).attribute(4, &length.to_be_bytes())
    })
}

/// Of the register's first byte, these bits alone.
fn mask(list: Message, bits: u8) -> Message {
    expression(list, b"bitwise\0", |data| {
        let data = data.attribute(1, &REGISTER).attribute(2, &REGISTER).attribute(3, &1u32.to_be_bytes());
        value(value(data, 4, &[bits]), 5, &[0])
    })
}

/// Goes on if the register is this, or is not.
fn compare(list: Message, is: bool, bytes: &[u8]) -> Message {
    let operation = u32::from(!is).to_be_bytes();
    expression(list, b"cmp\0", |data| value(data.attribute(1, &REGISTER).attribute(2, &operation), 3, bytes))
}

fn drop_it(list: Message) -> Message {
    const VERDICT: [u8; 4] = 0u32.to_be_bytes();
    const DROP: [u8; 4] = 0u32.to_be_bytes();
    expression(list, b"immediate\0", |data| {
        data.attribute(1, &VERDICT).nest(2, |verdict| verdict.nest(2, |code| code.attribute(1, &DROP)))
    })
}
