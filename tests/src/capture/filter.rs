//! The classic BPF program that lets only the frames of interest out of the kernel, cut to their headers.

use socket2::SockFilter;

use super::frame::Mac;

/// Bytes kept of each frame: Ethernet, IPv6 and TCP with all options fit, and a UDP payload's first bytes.
pub(super) const SNAP: u32 = 160;

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// ARP and RARP of everyone; TCP and UDP, or everything, that is to or from one of `macs`, or of everyone where there are none.
pub(super) fn program(macs: &[Mac], everything: bool) -> Vec<SockFilter> {
    let pass = || [SockFilter::new(RETURN, 0, 0, SNAP)];
    let stop = || SockFilter::new(RETURN, 0, 0, 0);
    let load = |size, at| SockFilter::new(size, 0, 0, at);
    // Continues with the next instruction where equal, else skips.
    let or_skip = |value, skipped| SockFilter::new(EQUAL, 0, skipped, value);
    let mut code = vec![load(LOAD_HALF, 12)];
    for reply in [0x0806, 0x8035] {
        code.push(or_skip(reply, 1));
        code.extend(pass());
    }
    if !everything {
        code.extend(tcp_and_udp());
    }
    for mac in macs {
        let high = u32::from_be_bytes([mac[0], mac[1], mac[2], mac[3]]);
        let low = u32::from(u16::from_be_bytes([mac[4], mac[5]]));
        for at in [0, 6] {
            code.extend([load(LOAD_WORD, at), or_skip(high, 3), load(LOAD_HALF, at + 4), or_skip(low, 1)]);
            code.extend(pass());
        }
    }
    if macs.is_empty() {
        code.extend(pass());
    }
    code.push(stop());
    code
}

/// Stops whatever else there is of IP.
fn tcp_and_udp() -> Vec<SockFilter> {
    let load = |size, at| SockFilter::new(size, 0, 0, at);
    let or_skip = |value, skipped| SockFilter::new(EQUAL, 0, skipped, value);
    // The protocol's number: at 23 in IPv4, at 20 in IPv6. Neither lets anything else of the other through.
    let mut code = vec![or_skip(0x0800, 2), load(LOAD_BYTE, 23), SockFilter::new(0x05, 0, 0, 3)];
    code.extend([or_skip(0x86dd, 1), load(LOAD_BYTE, 20), SockFilter::new(0x05, 0, 0, 0)]);
    // Of any other type the type itself is in the accumulator, and that is neither 6 nor 17.
    code.extend([SockFilter::new(EQUAL, 2, 0, 6), SockFilter::new(EQUAL, 1, 0, 17), SockFilter::new(RETURN, 0, 0, 0)]);
    code
}
