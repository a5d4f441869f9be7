//! `lsm-hook init`: a host.toml from what this host has. It is the shipped file, with its words, and what was found put
//! in; what only the operator can know is left open, and said.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use nix::ifaddrs::getifaddrs;

use crate::{
    config::{self, Prefix},
    peer::Identity,
};

const SHIPPED: &str = include_str!("../../packaging/host.toml");

/// What the operator said.
#[derive(clap::Args)]
pub struct Arguments {
    /// Another host, by the name in its certificates; where it is reached, if not by that name: NAME=HOST:PORT.
    #[arg(long, value_name = "NAME[=HOST:PORT]")]
    peer: Vec<String>,
    /// The LAN of the first bridge: the same name on all hosts that sit on it. Default: this host's name.
    #[arg(long)]
    lan: Option<String>,
    /// Addresses of the first bridge's LAN that this host may give to VMs, and nobody else gives out.
    #[arg(long, value_name = "FIRST-LAST")]
    pool: Option<String>,
    /// Print the file instead of writing it.
    #[arg(long)]
    print: bool,
    /// Replace a file in use; it stays as host.toml.old.
    #[arg(long, conflicts_with = "print")]
    force: bool,
}

/// What this host has.
#[derive(Default)]
struct Found {
    name: String,
    /// Where tunnels can start.
    underlay: Option<IpAddr>,
    bridges: Vec<Bridge>,
}

struct Bridge {
    name: String,
    prefix: Option<Prefix>,
    gateway: Option<Ipv4Addr>,
}

/// Writes the file, or prints it.
///
/// # Errors
/// In words, for a file in use, and where it cannot be written.
pub fn init(arguments: &Arguments, path: &Path) -> Result<(), String> {
    let found = look();
    let text = written(&found, arguments);
    if arguments.print {
        print!("{text}");
        return Ok(());
    }
    let cannot = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let present = fs::read_to_string(path).ok();
    if let Some(present) = present.filter(|present| says_something(present)) {
        if !arguments.force {
            return Err(format!(
                "{} is in use; --print shows what would be written, --force writes it and keeps the old one beside it",
                path.display()
            ));
        }
        fs::write(path.with_extension("toml.old"), present).map_err(cannot)?;
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(cannot)?;
    }
    fs::write(path, &text).map_err(cannot)?;
    println!("{} is written: this host is {}", path.display(), found.name);
    for bridge in &found.bridges {
        let prefix = bridge.prefix.map_or_else(|| "no IPv4 address here".to_owned(), |prefix| prefix.to_string());
        println!("  bridge {}: {prefix}", bridge.name);
    }
    for open in left_open(&found, arguments) {
        println!("left to you: {open}");
    }
    println!("now: lsm-hook check");
    Ok(())
}

/// A file whose every line is a comment or a section says nothing.
fn says_something(text: &str) -> bool {
    text.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with(['#', '[']))
}

fn left_open(found: &Found, arguments: &Arguments) -> Vec<&'static str> {
    let mut open = Vec::new();
    if found.underlay.is_none() {
        open.push("[tunnel] address: where the other hosts reach this one");
    }
    if found.bridges.is_empty() {
        open.push("a bridge with the LAN's card as a port, and [lan.NAME] for it");
    } else if arguments.pool.is_none() {
        open.push("pool: addresses of the LAN for VMs that come, which nobody else gives out (or --pool FIRST-LAST)");
    }
    if found.bridges.iter().any(|bridge| bridge.prefix.is_none() || bridge.gateway.is_none()) {
        open.push("prefix and gateway of LANs where this host has no address or no route");
    }
    if arguments.peer.is_empty() {
        open.push("[peer.NAME] for each of the other hosts (or --peer NAME)");
    }
    open
}

fn look() -> Found {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let names = Identity::names(&config::Tls::default());
    // Peers call this host by a name of its certificates.
    let name = if names.contains(&host) { host } else { names.into_iter().next().unwrap_or(host) };
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let addresses = addresses();
    let of = |device: &str| addresses.iter().find(|(name, ..)| name == device);
    let mut bridges: Vec<String> = fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|device| device.path().join("bridge").is_dir())
        .map(|device| device.file_name().to_string_lossy().into_owned())
        .filter(|name| is_lan(name))
        .collect();
    bridges.sort();
    let bridges = bridges
        .into_iter()
        .map(|name| Bridge {
            prefix: of(&name)
                .and_then(|(_, address, length)| format!("{}/{length}", network(*address, *length)).parse().ok()),
            gateway: gateway(&routes, &name),
            name,
        })
        .collect();
    let outward = outward(&routes).and_then(|device| of(&device)).or(addresses.first());
    Found { name, underlay: outward.map(|(_, address, _)| (*address).into()), bridges }
}

/// Bridges of container engines, of libvirt's networks behind NAT and of LSM itself are no LANs.
fn is_lan(bridge: &str) -> bool {
    let docker =
        bridge.strip_prefix("br-").is_some_and(|id| id.len() == 12 && id.bytes().all(|c| c.is_ascii_hexdigit()));
    !docker && !["lsm", "virbr", "docker", "podman", "cni", "lxc", "lxd"].iter().any(|other| bridge.starts_with(other))
}

/// Device, address and prefix length of every IPv4 address but the loopback's.
fn addresses() -> Vec<(String, Ipv4Addr, u32)> {
    let all = getifaddrs().into_iter().flatten();
    all.filter_map(|entry| {
        let address = entry.address?.as_sockaddr_in()?.ip();
        let mask = entry.netmask?.as_sockaddr_in()?.ip();
        (!address.is_loopback()).then(|| (entry.interface_name, address, u32::from(mask).count_ones()))
    })
    .collect()
}

fn network(address: Ipv4Addr, length: u32) -> Ipv4Addr {
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    (u32::from(address) & mask).into()
}

/// Device and gateway of each default route (proc_net(5), `route`).
fn default_routes(routes: &str) -> impl Iterator<Item = (&str, Ipv4Addr)> {
    routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(fields.get(at)?, 16).ok();
        // In the byte order of the network, printed as a number of this machine's.
        (number(1)? == 0 && number(7)? == 0).then_some((fields[0], Ipv4Addr::from(number(2)?.to_ne_bytes())))
    })
}

fn gateway(routes: &str, device: &str) -> Option<Ipv4Addr> {
    default_routes(routes).find(|(of, gateway)| *of == device && !gateway.is_unspecified()).map(|(_, gateway)| gateway)
}

fn outward(routes: &str) -> Option<String> {
    default_routes(routes).next().map(|(device, _)| device.to_owned())
}

/// The shipped file with the values in their places: after the words about each section.
fn written(found: &Found, arguments: &Arguments) -> String {
    let mut text = String::new();
    let mut awaited: Option<String> = None;
    for line in SHIPPED.lines() {
        if line.is_empty()
            && let Some(sections) = awaited.take()
        {
            text.push_str(&sections);
        }
        if line.starts_with("#name = ") && !found.name.is_empty() {
            text.push_str(&format!("name = \"{}\"\n", found.name));
        } else if line == "#address = \"198.51.100.1\""
            && let Some(address) = found.underlay
        {
            text.push_str(&format!("address = \"{address}\"\n"));
        } else {
            match line {
                "#[lan.montreal]" => awaited = Some(lans(found, arguments)),
                "#[peer.dallas]" => awaited = Some(peers(&arguments.peer)),
                _ => {}
            }
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

fn lans(found: &Found, arguments: &Arguments) -> String {
    let short = found.name.split('.').next().unwrap_or_default();
    let several = found.bridges.len() > 1;
    let section = |(index, bridge): (usize, &Bridge)| {
        let first = index == 0;
        let name = match &arguments.lan {
            Some(lan) if first => lan.clone(),
            _ if first => short.to_owned(),
            _ => format!("{short}-{}", bridge.name),
        };
        let key = |key: &str, value: Option<String>, like: &str| match value {
            Some(value) => format!("{key} = \"{value}\"\n"),
            None => format!("#{key} = \"{like}\"   # say which\n"),
        };
        let pool = arguments.pool.clone().filter(|_| first);
        format!(
            "[lan.{name}]\nbridge = \"{}\"\n{}{}{}{}",
            bridge.name,
            key("prefix", bridge.prefix.map(|prefix| prefix.to_string()), "10.1.0.0/24"),
            key("gateway", bridge.gateway.map(|gateway| gateway.to_string()), "10.1.0.1"),
            key("pool", pool, "10.1.0.100-10.1.0.199"),
            if several { format!("offer = {first}\n") } else { String::new() }
        )
    };
    found.bridges.iter().enumerate().map(section).collect()
}

fn peers(peers: &[String]) -> String {
    let section = |peer: &String| {
        let (name, address) = peer.split_once('=').map_or((peer.as_str(), None), |(name, at)| (name, Some(at)));
        let address = address.map_or_else(|| format!("{name}:16519"), str::to_owned);
        format!("[peer.\"{name}\"]\naddress = \"{address}\"\n")
    };
    peers.iter().map(section).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn arguments(pool: Option<&str>, peers: &[&str]) -> Arguments {
        let peer = peers.iter().map(|peer| (*peer).to_owned()).collect();
        Arguments { peer, lan: None, pool: pool.map(str::to_owned), print: false, force: false }
    }

    fn montreal() -> Found {
        let bridge = |name: &str, prefix: Option<&str>| Bridge {
            name: name.to_owned(),
            prefix: prefix.map(|prefix| prefix.parse().unwrap()),
            gateway: prefix.map(|_| Ipv4Addr::new(10, 1, 0, 1)),
        };
        Found {
            name: "montreal.example.org".to_owned(),
            underlay: Some(Ipv4Addr::new(198, 51, 100, 1).into()),
            bridges: vec![bridge("br0", Some("10.1.0.0/24"))],
        }
    }

    fn load(text: &str) -> Result<Config, String> {
        let file = std::env::temp_dir().join(format!("lsm-init-{}.toml", std::process::id()));
        fs::write(&file, text).unwrap();
        let config = Config::load(&file);
        fs::remove_file(&file).unwrap();
        config.map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_written_loads_and_says_what_was_found() {
        let said = arguments(Some("10.1.0.200-10.1.0.209"), &["dallas.example.org", "oslo=192.0.2.9:1"]);
        let text = written(&montreal(), &said);
        let config = load(&text).unwrap();
        assert_eq!(config.name, "montreal.example.org");
        assert_eq!(config.tunnel.unwrap().address.to_string(), "198.51.100.1");
        let lan = &config.lans["montreal"];
        let [subnet] = &lan.subnets[..] else { panic!("{lan:?}") };
        assert_eq!((lan.bridge.as_str(), subnet.prefix.to_string().as_str()), ("br0", "10.1.0.0/24"));
        let (gateway, addresses) = (subnet.gateway.to_string(), subnet.pool.addresses().count());
        assert_eq!((gateway.as_str(), addresses, lan.offer), ("10.1.0.1", 10, true));
        assert_eq!(config.peers["dallas.example.org"].address, "dallas.example.org:16519");
        assert_eq!(config.peers["oslo"].address, "192.0.2.9:1");
        assert!(SHIPPED.lines().filter(|line| line.starts_with("# ")).all(|line| text.contains(line)), "words lost");
        assert!(left_open(&montreal(), &said).is_empty());
    }

    #[test]
    fn what_is_not_known_is_left_open_and_named() {
        let said = arguments(None, &[]);
        let error = load(&written(&montreal(), &said)).unwrap_err();
        assert!(error.contains("LAN montreal has no pool; add pool = "), "{error}");
        assert_eq!(left_open(&montreal(), &said).len(), 2);
        let nothing = Found::default();
        assert_eq!(written(&nothing, &said), SHIPPED);
        assert_eq!(left_open(&nothing, &said).len(), 3);
        assert!(!says_something(SHIPPED) && says_something(&written(&montreal(), &said)));
    }

    #[test]
    fn routes_and_bridges_are_read_as_the_kernel_shows_them() {
        let routes = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                      br0 0000010A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
                      br0 00000000 0100010A 0003 0 0 0 00000000 0 0 0\n";
        assert_eq!(gateway(routes, "br0"), Some(Ipv4Addr::new(10, 1, 0, 1)));
        assert_eq!((gateway(routes, "br1"), outward(routes).as_deref()), (None, Some("br0")));
        assert_eq!(network(Ipv4Addr::new(10, 1, 0, 77), 24), Ipv4Addr::new(10, 1, 0, 0));
        for (bridge, lan) in
            [("br0", true), ("br-lan", true), ("br-0123456789ab", false), ("virbr0", false), ("lsm-spare", false)]
        {
            assert_eq!(is_lan(bridge), lan, "{bridge}");
        }
    }
}
