//! Bytes that another party wrote, given to what decodes them: any bytes at all, and no panic. For the fuzzer, and for the
//! test that replays what it has found.

use std::net::{Ipv4Addr, Ipv6Addr};

use lsm_protocol::Mac;

use crate::{config::Config, connections, mptcp, neighbours, netlink, routing};

/// What a receive call on a netlink socket returned.
pub fn netlink(bytes: &[u8]) {
    for message in netlink::messages(bytes).take_while(Result::is_ok).flatten() {
        let _ = netlink::acknowledged(message);
        for (_, value) in netlink::attributes(message.payload) {
            let _ = netlink::attributes(value).count();
        }
    }
}

/// A row of inet_diag's dump, or one about a connection that ended.
pub fn inet_diag(bytes: &[u8]) {
    let _ = connections::read_row(bytes);
    let _ = connections::read_whole(bytes);
    let _ = connections::local_address(bytes);
}

/// The path manager's endpoints and events.
pub fn mptcp(bytes: &[u8]) {
    let _ = mptcp::read_endpoint(bytes);
    let _ = mptcp::read_events(bytes, 0x1f).count();
}

/// Rules and routes.
pub fn routing(bytes: &[u8]) {
    let _ = routing::read_rule(bytes);
    let _ = routing::read_default(bytes.to_vec());
}

/// Answers to ARP and neighbour solicitations: by whoever is on the LAN.
pub fn neighbours(bytes: &[u8]) {
    let _ = neighbours::read_arp_reply(bytes, Mac([2; 6]), Ipv4Addr::new(192, 0, 2, 254));
    let _ = neighbours::read_frame(bytes);
    let _ = neighbours::read_advertisement(bytes, Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
}

/// `guest.toml`.
pub fn configuration(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Config::understand(text, "guest.toml".as_ref());
    }
}
