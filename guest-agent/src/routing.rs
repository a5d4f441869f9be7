//! Policy routing by source address, and the default routes of the main table.
//!
//! Each address that LSM manages has a table of its own: what leaves with that address leaves through its vNIC, whatever
//! the main table says. Rules and routes bear [`PROTOCOL`], so that ours can be told from everybody else's.
//!
//! Blocking, on one socket that is kept: at the flip the default route follows the priorities without a turn of the event
//! loop between them. Layouts: linux/rtnetlink.h, linux/fib_rules.h.

mod connected;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::{errno::Errno, libc};
use serde::{Deserialize, Serialize};

use crate::netlink::{Cause, Changed, Channel, Error, Message, attribute, attributes, bytes_at, u32_at};

pub use self::watch::Watch;

/// Number that marks rules and routes as ours (`ip rule` shows "proto 76"); not taken in iproute2's rt_protos.
pub const PROTOCOL: u8 = 76;

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;

/// Length of struct rtmsg and of struct fib_rule_hdr.
const FIXED: usize = 12;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_CACHEINFO: u16 = 12;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_EXPIRES: u16 = 23;

const RTNH_F_ONLINK: u32 = 4;

const FRA_SRC: u16 = 2;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FRA_PROTOCOL: u16 = 21;

/// `from ADDRESS lookup TABLE priority PRIORITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rule {
    pub source: IpAddr,
    pub table: u32,
    pub priority: u32,
}

/// A way out of a vNIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub ifindex: u32,
    /// An address of the vNIC.
    pub source: IpAddr,
    /// Length of its prefix: a gateway outside is reached as `onlink`.
    pub prefix: u8,
    pub gateway: IpAddr,
}

/// A default route of the main table as found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultRoute {
    pub v6: bool,
    /// None for a point-to-point or a multipath route.
    pub gateway: Option<IpAddr>,
    /// None for a multipath route.
    pub ifindex: Option<u32>,
    pub source: Option<IpAddr>,
    pub metric: u32,
    /// Who made it (RTPROT_*): 16 DHCP, 9 router advertisement, 76 LSM.
    pub protocol: u8,
    /// The kernel's message, for `restore` and `delete_default`: with its MTU, its several next hops and the like.
    raw: Vec<u8>,
}

/// What the kernel would do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub ifindex: u32,
    /// None when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The source address it would have.
    pub source: Option<IpAddr>,
}

/// Rules and routes of the network namespace that the calling thread was in when it was opened.
pub struct Routing {
    channel: Channel,
}

impl Routing {
    /// # Errors
    /// When the socket cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let channel =
            Channel::open(libc::NETLINK_ROUTE).map_err(|cause| Error::new("reach the routing tables", cause))?;
        Ok(Routing { channel })
    }

    pub fn add_rule(&mut self, rule: &Rule) -> Result<Changed, Error> {
        let request = rule_message(RTM_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, rule);
        changed(self.channel.change(request), &[Errno::EEXIST]).map_err(|cause| rule_error("add", rule, cause))
    }

    /// Removes a rule of ours.
    pub fn remove_rule(&mut self, rule: &Rule) -> Result<Changed, Error> {
        let request = rule_message(RTM_DELRULE, 0, rule);
        changed(self.channel.change(request), &[Errno::ENOENT]).map_err(|cause| rule_error("remove", rule, cause))
    }

    /// The rules that bear our mark, of both families.
    pub fn rules(&mut self) -> Result<Vec<Rule>, Error> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = Message::new(RTM_GETRULE, 0).raw(&fixed(family, 0, 0, 0));
            let rules = self.channel.dump(request, read_rule).map_err(|cause| Error::new("list the rules", cause))?;
            all.extend(rules);
        }
        Ok(all)
    }

    /// Fills a table with the connected prefix and the default route of an exit. What is there already is replaced. With
    /// `mtu` no longer packets leave by them, in bytes; else as the card takes them.
    pub fn fill_table(&mut self, table: u32, exit: &Exit, mtu: Option<u32>) -> Result<(), Error> {
        let requests =
            [connected_message(table, exit, Source::Named), default_message(table, exit, None, Source::Named)]
                .map(|message| at_most(message, mtu));
        self.change_all(requests, || format!("route {} through {} in table {table}", exit.source, exit.gateway))
    }

    /// Whether both routes of [`Routing::fill_table`] are there.
    pub fn is_filled(&mut self, table: u32, exit: &Exit) -> Result<bool, Error> {
        let of_exit = |fixed: &[u8], rest: &[u8]| {
            i32::from(fixed[0]) == family(exit.source)
                && table_of(fixed, rest) == table
                && fixed[5] == PROTOCOL
                && attribute(rest, RTA_OIF).and_then(|value| u32_at(value, 0)) == Some(exit.ifindex)
        };
        let routes = self.routes(of_exit)?;
        let is_default = |raw: &&Vec<u8>| raw[1] == 0 && gateway(&raw[FIXED..]) == Some(exit.gateway);
        let is_connected = |raw: &&Vec<u8>| raw[1] == exit.prefix && gateway(&raw[FIXED..]).is_none();
        Ok(routes.iter().any(|raw| is_default(&raw)) && routes.iter().any(|raw| is_connected(&raw)))
    }

    /// Removes all routes of ours from a table.
    pub fn clear_table(&mut self, table: u32) -> Result<Changed, Error> {
        let mut any = Changed::No;
        for raw in self.routes(|fixed, rest| table_of(fixed, rest) == table && fixed[5] == PROTOCOL)? {
            let what = || format!("remove a route from table {table}");
            if self.delete_raw(&raw).map_err(|cause| Error::new(what(), cause))? == Changed::Yes {
                any = Changed::Yes;
            }
        }
        Ok(any)
    }

    /// The default routes of the main table, of both families, the most preferred (smallest metric) first.
    pub fn default_routes(&mut self) -> Result<Vec<DefaultRoute>, Error> {
        self.default_routes_of(libc::RT_TABLE_MAIN.into())
    }

    /// The same of another table.
    pub fn default_routes_of(&mut self, table: u32) -> Result<Vec<DefaultRoute>, Error> {
        let raw = self.routes(|fixed, rest| {
            table_of(fixed, rest) == table
                && fixed[1] == 0
                && attribute(rest, RTA_DST).is_none()
                && fixed[7] == libc::RTN_UNICAST
        })?;
        let mut routes: Vec<_> = raw.into_iter().filter_map(read_default).collect();
        routes.sort_by_key(|route| route.metric);
        Ok(routes)
    }

    /// Makes `exit` the default route of the main table at this metric, in one step: there is no moment without. Another
    /// default route of the same family and metric gives way; for IPv6 only on the kernel's terms, see `delete_default`.
    pub fn replace_default(&mut self, exit: &Exit, metric: u32) -> Result<(), Error> {
        let request = default_message(libc::RT_TABLE_MAIN.into(), exit, Some(metric), Source::Named);
        self.change_all([request], || {
            format!("set the default route via {} for {} at metric {metric}", exit.gateway, exit.source)
        })
    }

    /// Puts a default route back as it was found, in place of one at the same metric.
    pub fn restore_default(&mut self, route: &DefaultRoute) -> Result<(), Error> {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let request = replay(RTM_NEWROUTE, flags, &route.raw).ok_or(Cause::Malformed);
        request
            .and_then(|request| self.channel.change(request))
            .map_err(|cause| Error::new(format!("restore the default route at metric {}", route.metric), cause))
    }

    pub fn delete_default(&mut self, route: &DefaultRoute) -> Result<Changed, Error> {
        self.delete_raw(&route.raw)
            .map_err(|cause| Error::new(format!("delete the default route at metric {}", route.metric), cause))
    }

    /// Which way a packet to `destination` would go, if it came from `source`.
    ///
    /// # Errors
    /// ENETUNREACH where there is no way; EINVAL where `source` is no address of this machine.
    pub fn route_get(&mut self, destination: IpAddr, source: Option<IpAddr>) -> Result<Route, Error> {
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let mut header = fixed(family(destination), bits(destination), source.map_or(0, bits), 0);
        header[4..].fill(0);
        let mut request = Message::new(RTM_GETROUTE, 0).raw(&header).attribute(RTA_DST, &octets(destination));
        if let Some(source) = source {
            request = request.attribute(RTA_SRC, &octets(source));
        }
        let read = |payload: &[u8]| {
            let rest = payload.get(FIXED..)?;
            Some(Route {
                ifindex: u32_at(attribute(rest, RTA_OIF)?, 0)?,
                gateway: gateway(rest),
                source: attribute(rest, RTA_PREFSRC).and_then(address).or(source),
            })
        };
        self.channel.get(request, read).map_err(|cause| {
            let from = source.map(|source| format!(" from {source}")).unwrap_or_default();
            Error::new(format!("find a route to {destination}{from}"), cause)
        })
    }

    fn change_all<const N: usize>(&mut self, requests: [Message; N], what: impl Fn() -> String) -> Result<(), Error> {
        let answers = self.channel.change_all(requests).map_err(|cause| Error::new(what(), cause))?;
        answers.into_iter().collect::<Result<Vec<()>, _>>().map(drop).map_err(|cause| Error::new(what(), cause))
    }

    fn routes(&mut self, wanted: impl Fn(&[u8], &[u8]) -> bool) -> Result<Vec<Vec<u8>>, Error> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let request = Message::new(RTM_GETROUTE, 0).raw(&fixed(family, 0, 0, 0));
            let routes = self.channel.dump(request, |payload| {
                let (fixed, rest) = payload.split_at_checked(FIXED)?;
                wanted(fixed, rest).then(|| payload.to_vec())
            });
            all.extend(routes.map_err(|cause| Error::new("list the routes", cause))?);
        }
        Ok(all)
    }

    fn delete_raw(&mut self, raw: &[u8]) -> Result<Changed, Cause> {
        let request = replay(RTM_DELROUTE, 0, raw).ok_or(Cause::Malformed)?;
        changed(self.channel.change(request), &[Errno::ESRCH, Errno::ENOENT])
    }
}

impl Exit {
    /// Whether the gateway must be taken on trust: outside the prefix, and no link-local address of IPv6.
    fn onlink(&self) -> bool {
        match (self.source, self.gateway) {
            (_, IpAddr::V6(gateway)) if gateway.is_unicast_link_local() => false,
            (source, gateway) => network(source, self.prefix) != network(gateway, self.prefix),
        }
    }
}

fn rule_message(kind: u16, flags: i32, rule: &Rule) -> Message {
    const FR_ACT_TO_TBL: u8 = 1;

    let bits = if rule.source.is_ipv4() { 32 } else { 128 };
    let table = u8::try_from(rule.table).unwrap_or(libc::RT_TABLE_UNSPEC);
    let header = [family(rule.source) as u8, 0, bits, 0, table, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0];
    Message::new(kind, flags)
        .raw(&header)
        .attribute(FRA_SRC, &octets(rule.source))
        .attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes())
        .attribute(FRA_TABLE, &rule.table.to_ne_bytes())
        .attribute(FRA_PROTOCOL, &[PROTOCOL])
}

fn rule_error(verb: &str, rule: &Rule, cause: Cause) -> Error {
    let Rule { source, table, priority } = rule;
    Error::new(format!("{verb} the rule \"from {source} lookup {table} priority {priority}\""), cause)
}

pub(crate) fn read_rule(payload: &[u8]) -> Option<Rule> {
    let (fixed, rest) = payload.split_at_checked(FIXED)?;
    (attribute(rest, FRA_PROTOCOL)? == [PROTOCOL]).then_some(())?;
    Some(Rule {
        source: address(attribute(rest, FRA_SRC)?)?,
        table: attribute(rest, FRA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(fixed[4].into()),
        priority: u32_at(attribute(rest, FRA_PRIORITY)?, 0)?,
    })
}

const REPLACE: i32 = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;

/// Whether a route says from which address packets come that have none yet, or the kernel chooses one of the card's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Named,
    Open,
}

fn connected_message(table: u32, exit: &Exit, source: Source) -> Message {
    let mut header = fixed(family(exit.source), exit.prefix, 0, libc::RT_SCOPE_LINK);
    if exit.source.is_ipv6() {
        header[6] = libc::RT_SCOPE_UNIVERSE; // IPv6 knows no other
    }
    let message = Message::new(RTM_NEWROUTE, REPLACE)
        .raw(&header)
        .attribute(RTA_TABLE, &table.to_ne_bytes())
        .attribute(RTA_DST, &octets(network(exit.source, exit.prefix)))
        .attribute(RTA_OIF, &exit.ifindex.to_ne_bytes());
    from(message, exit, source)
}

fn from(message: Message, exit: &Exit, source: Source) -> Message {
    match source {
        Source::Named => message.attribute(RTA_PREFSRC, &octets(exit.source)),
        Source::Open => message,
    }
}

fn default_message(table: u32, exit: &Exit, metric: Option<u32>, source: Source) -> Message {
    let mut header = fixed(family(exit.source), 0, 0, libc::RT_SCOPE_UNIVERSE);
    if exit.onlink() {
        header[8..].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
    }
    let message = Message::new(RTM_NEWROUTE, REPLACE)
        .raw(&header)
        .attribute(RTA_TABLE, &table.to_ne_bytes())
        .attribute(RTA_OIF, &exit.ifindex.to_ne_bytes());
    let message = from(message, exit, source);
    let message = match (exit.source, exit.gateway) {
        // RFC 5549: a gateway of the other family is written with its family.
        (IpAddr::V4(_), IpAddr::V6(gateway)) => {
            let mut via = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
            via.extend_from_slice(&gateway.octets());
            message.attribute(RTA_VIA, &via)
        }
        (_, gateway) => message.attribute(RTA_GATEWAY, &octets(gateway)),
    };
    match metric {
        Some(metric) => message.attribute(RTA_PRIORITY, &metric.to_ne_bytes()),
        None => message,
    }
}

/// linux/rtnetlink.h: the metrics are attributes inside one.
fn at_most(message: Message, mtu: Option<u32>) -> Message {
    const RTAX_MTU: u16 = 2;

    match mtu {
        Some(mtu) => message.nest(RTA_METRICS, |metrics| metrics.attribute(RTAX_MTU, &mtu.to_ne_bytes())),
        None => message,
    }
}

pub(crate) fn read_default(raw: Vec<u8>) -> Option<DefaultRoute> {
    let (fixed, rest) = raw.split_at_checked(FIXED)?;
    Some(DefaultRoute {
        v6: i32::from(fixed[0]) == libc::AF_INET6,
        gateway: gateway(rest),
        ifindex: attribute(rest, RTA_OIF).and_then(|value| u32_at(value, 0)),
        source: attribute(rest, RTA_PREFSRC).and_then(address),
        metric: attribute(rest, RTA_PRIORITY).and_then(|value| u32_at(value, 0)).unwrap_or(0),
        protocol: fixed[5],
        raw,
    })
}

/// A listed route as a request: as `ip route restore` does, without what the kernel only tells.
fn replay(kind: u16, flags: i32, raw: &[u8]) -> Option<Message> {
    let (fixed, rest) = raw.split_at_checked(FIXED)?;
    let mut header = [0; FIXED];
    header.copy_from_slice(fixed);
    let kept = u32_at(fixed, 8)? & RTNH_F_ONLINK;
    header[8..].copy_from_slice(&kept.to_ne_bytes());
    let message = Message::new(kind, flags).raw(&header);
    let wanted = attributes(rest).filter(|(kind, _)| !matches!(*kind, RTA_CACHEINFO | RTA_EXPIRES));
    Some(wanted.fold(message, |message, (kind, value)| message.attribute(kind, value)))
}

/// struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags u32.
fn fixed(family: i32, destination_bits: u8, source_bits: u8, scope: u8) -> [u8; FIXED] {
    let table = libc::RT_TABLE_UNSPEC; // the attribute says which
    [family as u8, destination_bits, source_bits, 0, table, PROTOCOL, scope, libc::RTN_UNICAST, 0, 0, 0, 0]
}

fn table_of(fixed: &[u8], rest: &[u8]) -> u32 {
    attribute(rest, RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(fixed[4].into())
}

fn gateway(rest: &[u8]) -> Option<IpAddr> {
    let via = || attribute(rest, RTA_VIA).and_then(|via| address(via.get(2..)?));
    attribute(rest, RTA_GATEWAY).and_then(address).or_else(via)
}

fn changed(result: Result<(), Cause>, already: &[Errno]) -> Result<Changed, Cause> {
    match result {
        Ok(()) => Ok(Changed::Yes),
        Err(cause) if cause.errno().is_some_and(|errno| already.contains(&errno)) => Ok(Changed::No),
        Err(cause) => Err(cause),
    }
}

fn family(address: IpAddr) -> i32 {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => bytes_at::<4>(value, 0).map(|octets| Ipv4Addr::from(octets).into()),
        16 => bytes_at::<16>(value, 0).map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// The address with all bits after the prefix cleared.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & !host).into()
        }
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & !host).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(source: &str, prefix: u8, gateway: &str) -> Exit {
        Exit { ifindex: 1, source: source.parse().unwrap(), prefix, gateway: gateway.parse().unwrap() }
    }

    #[test]
    fn a_gateway_outside_the_prefix_is_onlink() {
        assert!(!exit("192.0.2.7", 24, "192.0.2.254").onlink());
        assert!(exit("192.0.2.7", 32, "192.0.2.254").onlink());
        assert!(exit("192.0.2.7", 24, "198.51.100.1").onlink());
        assert!(!exit("192.0.2.7", 0, "198.51.100.1").onlink());
        assert!(!exit("2001:db8::7", 128, "fe80::1").onlink());
        assert!(exit("2001:db8::7", 128, "2001:db8::1").onlink());
        assert!(!exit("2001:db8::7", 64, "2001:db8::1").onlink());
    }

    #[test]
    fn no_cut_of_a_rule_or_route_is_a_panic() {
        let rule = Rule { source: "2001:db8::7".parse().unwrap(), table: 7001, priority: 70 };
        let bytes = rule_message(RTM_NEWRULE, 0, &rule).seal(0);
        assert_eq!(read_rule(&bytes[16..]), Some(rule));
        let route = default_message(254, &exit("192.0.2.7", 24, "192.0.2.254"), Some(5), Source::Named).seal(0);
        for length in 0..bytes.len() - 16 {
            let _ = read_rule(&bytes[16..16 + length]);
            let cut = &route[16..][..length.min(route.len() - 16)];
            let _ = (read_default(cut.to_vec()), replay(RTM_NEWROUTE, 0, cut));
        }
    }
}
