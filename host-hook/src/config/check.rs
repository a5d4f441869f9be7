//! From what the file says to what the service may rely on. Each error names the way out.

mod lan;

use std::{collections::BTreeMap, net::IpAddr, ops::Range, path::Path, time::Duration};

use lsm_protocol::forecast::Survival;
use lsm_records::places::Places;
use toml::{Spanned, Value};

use super::{
    Config, DEFAULT_LISTEN, DEFAULT_PATH, DEFAULT_TUNNEL_PORT, DEFAULT_WIREGUARD_PORT, Drain, Peer, Policy, Tls,
    Underlay, Wrong,
    file::{self, File, Text},
};
use crate::stream::MOST_PATHS;

type Checked<T> = Result<T, Wrong>;

/// An error at `span`.
fn wrong<T>(span: Range<usize>, what: impl Into<String>) -> Checked<T> {
    Err(Wrong { at: span.start, what: what.into() })
}

/// A text that `parse` understands, or an error where it stands.
fn text<T>(text: &Text, parse: impl FnOnce(&str) -> Result<T, String>) -> Checked<T> {
    parse(text.get_ref()).or_else(|what| wrong(text.span(), what))
}

pub(super) fn config(file: File) -> Checked<Config> {
    let name = match &file.name {
        Some(name) => text(name, |n| if is_host_name(n) { Ok(n.to_owned()) } else { Err(not_a_host_name(n)) })?,
        None => own_host_name()?,
    };
    let listen = match &file.peer_channel.listen {
        Some(listen) => text(listen, |l| {
            l.parse().map_err(|_| format!("\"{l}\" is not an address and a port; write it like \"[::]:16519\""))
        })?,
        None => DEFAULT_LISTEN,
    };
    let tunnel = tunnel(&file.tunnel)?;
    let lans = lan::lans(&file.lan)?;
    let peers = peers(&file.peer, &name, tunnel.is_some())?;
    let policy = policy(&file.policy)?;
    let stream = stream(&file.stream)?;
    let script_deadline = match &file.scripts.deadline_s {
        Some(s) => lsm_scripts::deadline(*s.get_ref()).or_else(|what| wrong(s.span(), what))?,
        None => lsm_scripts::DEADLINE,
    };
    let keys = Path::new(DEFAULT_PATH).with_file_name("keys");
    let reports = match file.reports {
        Some(reports) => {
            let at = reports.span();
            reports.into_inner().checked().or_else(|what| wrong(at, what))?
        }
        None => Places::default(),
    };
    Ok(Config { name, listen, tunnel, tls: tls(file.tls), lans, peers, keys, policy, stream, script_deadline, reports })
}

fn tunnel(tunnel: &file::Tunnel) -> Checked<Option<Underlay>> {
    let port = match &tunnel.port {
        Some(port) if *port.get_ref() == 0 => return wrong(port.span(), "port 0 cannot be a tunnel's; use 4789"),
        Some(port) => *port.get_ref(),
        None => DEFAULT_TUNNEL_PORT,
    };
    let encrypt = tunnel.encrypt.unwrap_or_default();
    let wireguard_port = match &tunnel.wireguard_port {
        Some(port) if *port.get_ref() == 0 => return wrong(port.span(), "port 0 cannot be WireGuard's; use 16520"),
        Some(at) if *at.get_ref() == port => {
            let what =
                format!("port {port} is the tunnels' own, inside WireGuard; give WireGuard another, such as 16520");
            return wrong(at.span(), what);
        }
        Some(port) => *port.get_ref(),
        None => DEFAULT_WIREGUARD_PORT,
    };
    let Some(address) = &tunnel.address else { return Ok(None) };
    let at = address.span();
    let address = text(address, address_of)?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return wrong(at, format!("{address} cannot be the end of a tunnel; give an address that the peers can reach"));
    }
    let mtu = match &tunnel.mtu {
        None => None,
        Some(mtu) => match mtu.get_ref() {
            Value::String(word) if word == "auto" => None,
            Value::Integer(bytes) => Some(mtu_of(*bytes, address, mtu.span())?),
            _ => return wrong(mtu.span(), "mtu is neither \"auto\" nor a number of bytes"),
        },
    };
    Ok(Some(Underlay { address, port, mtu, encrypt, wireguard_port }))
}

fn stream(stream: &file::Stream) -> Checked<Vec<IpAddr>> {
    let mut paths = Vec::new();
    for written in &stream.paths {
        let path = text(written, address_of)?;
        if path.is_unspecified() || path.is_multicast() || path.is_loopback() {
            return wrong(
                written.span(),
                format!("{path} cannot be a path to another host; give an address of a card"),
            );
        }
        if paths.contains(&path) {
            return wrong(written.span(), format!("{path} is twice in paths; each path is an address of its own"));
        }
        if paths.len() == MOST_PATHS {
            return wrong(written.span(), format!("the kernel uses {MOST_PATHS} paths at most; leave some out"));
        }
        paths.push(path);
    }
    Ok(paths)
}

fn tls(tls: file::Tls) -> Tls {
    let ours = Tls::default();
    Tls {
        ca: tls.ca.unwrap_or(ours.ca),
        cert: tls.cert.unwrap_or(ours.cert),
        key: tls.key.unwrap_or(ours.key),
        client_cert: tls.client_cert.unwrap_or(ours.client_cert),
        client_key: tls.client_key.unwrap_or(ours.client_key),
    }
}

fn peers(written: &BTreeMap<Text, file::Peer>, own: &str, tunnels: bool) -> Checked<BTreeMap<String, Peer>> {
    let mut peers = BTreeMap::new();
    for (name, file) in written {
        let called = name.get_ref();
        if !is_host_name(called) {
            return wrong(name.span(), not_a_host_name(called));
        }
        if called == own {
            return wrong(name.span(), format!("{called} is this host; name the other hosts only, or set name"));
        }
        let Some(address) = &file.address else {
            return wrong(name.span(), format!("peer {called} has no address; add address = \"{called}:16519\""));
        };
        let address = text(address, peer_address)?;
        if !tunnels {
            return wrong(
                name.span(),
                format!(
                    "moves to or from {called} need tunnels, and there is no address for them; \
                     add address = \"this host's address on the underlay\" under [tunnel]"
                ),
            );
        }
        peers.insert(called.clone(), Peer { address });
    }
    Ok(peers)
}

fn policy(file: &file::Policy) -> Checked<Policy> {
    let usual = Policy::default();
    let prepare_wait = match &file.prepare_wait_ms {
        Some(ms) => {
            let wait = Duration::from_millis(*ms.get_ref());
            if wait > Policy::LONGEST_PREPARE_WAIT {
                let longest = Policy::LONGEST_PREPARE_WAIT.as_millis();
                return wrong(
                    ms.span(),
                    format!("prepare_wait_ms keeps libvirt waiting and may be {longest} at most; the default is 5000"),
                );
            }
            wait
        }
        None => usual.prepare_wait,
    };
    let lease = match &file.lease_s {
        Some(s) if !(5..=86_400).contains(s.get_ref()) => {
            return wrong(s.span(), "lease_s must be from 5 to 86400 seconds; the default is 60");
        }
        Some(s) => Duration::from_secs(*s.get_ref()),
        None => usual.lease,
    };
    Ok(Policy {
        join: file.join.unwrap_or(usual.join),
        switch: file.switch.unwrap_or(usual.switch),
        unprepared: file.unprepared.unwrap_or(usual.unprepared),
        prepare_wait,
        drain: file.drain.as_ref().map_or(Ok(usual.drain), |drain| text(drain, drain_of))?,
        min_survival: file.min_survival.as_ref().map_or(Ok(usual.min_survival), survival_of)?,
        lease,
    })
}

fn survival_of(written: &Spanned<Value>) -> Checked<Survival> {
    let survival = match written.get_ref() {
        Value::Integer(number) => u32::try_from(*number).ok().map(Survival::Number),
        Value::String(share) => {
            let digits = share.strip_suffix('%').filter(|digits| digits.bytes().all(|c| c.is_ascii_digit()));
            digits.and_then(|digits| digits.parse().ok()).filter(|share| *share <= 100).map(Survival::Percent)
        }
        _ => None,
    };
    survival.map_or_else(
        || wrong(written.span(), "min_survival is neither a share like \"95%\" nor a number of connections like 20"),
        Ok,
    )
}

fn drain_of(text: &str) -> Result<Drain, String> {
    let duration = || {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = text[..digits].parse().ok()?;
        let seconds = match &text[digits..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return None,
        };
        number.checked_mul(seconds).map(Duration::from_secs)
    };
    match text {
        "until-idle" => Ok(Drain::UntilIdle),
        "forever" => Ok(Drain::Forever),
        _ => duration().map(Drain::For).ok_or_else(|| {
            format!("\"{text}\" is not \"until-idle\", \"forever\" or a duration like \"30s\", \"10m\", \"2h\", \"1d\"")
        }),
    }
}

fn address_of(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("\"{text}\" is not an IP address; write it like \"192.0.2.7\" or \"2001:db8::7\""))
}

fn peer_address(text: &str) -> Result<String, String> {
    let known = text.rsplit_once(':').is_some_and(|(host, port)| {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let host_is_one = match bare {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host_name(host),
        };
        host_is_one && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    if known {
        return Ok(text.to_owned());
    }
    Err(format!(
        "\"{text}\" is not a host and a port; write it like \"dallas.example.org:16519\" or \"[2001:db8::7]:16519\""
    ))
}

/// Bytes of an MTU: what the address family demands at least, what VXLAN can wrap at most.
fn mtu_of(bytes: i64, family: IpAddr, at: Range<usize>) -> Checked<u32> {
    let least = if family.is_ipv4() { 576 } else { 1280 };
    match u32::try_from(bytes) {
        Ok(mtu) if (least..=65_000).contains(&mtu) => Ok(mtu),
        _ => wrong(at, format!("an MTU of {bytes} cannot be; use a number from {least} to 65000")),
    }
}

/// A bridge the kernel can have (IFNAMSIZ is 16 with its end), and not one that lives and dies with a tunnel.
fn bridge_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
        return Err(format!("\"{text}\" cannot be a bridge's name; \"ip link\" lists what there is"));
    }
    if text.starts_with("lsmb") || text.starts_with("lsmt") {
        return Err(format!("bridge {text} would be one of the tunnels' own; name the LAN's bridge"));
    }
    Ok(text.to_owned())
}

/// What can stand in a certificate's subject alternative names: a DNS name or an IPv4 address.
fn is_host_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn not_a_host_name(name: &str) -> String {
    format!("\"{name}\" is not a host's name; use the DNS name that stands in its certificate")
}

fn own_host_name() -> Checked<String> {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    if is_host_name(&name) {
        return Ok(name);
    }
    wrong(0..0, format!("this host calls itself \"{name}\", which is not a usable name; set name = \"…\""))
}

/// Where the key's value stands, or else its section.
fn at<T>(value: &Option<Spanned<T>>, section: &Text) -> Range<usize> {
    value.as_ref().map_or(section.span(), Spanned::span)
}
