//! The lab's network: a client behind its router, sites with a LAN each, and a WAN between the sites.
//!
//! ```text
//!                       wire client_rtt          bridge br-NAME
//!            +- edge ---------------------- gw-NAME ---- NAME (the host; VMs' taps go into the bridge)
//!  client ---+                                             |
//!  10.9.0.2  +- 10.9.0.1 -- (other sites)                  | wire wan_rtt
//!                                                         wan (router) ---- (other sites)
//! ```
//! Site number i (from 1) has LAN 10.i.0.0/24 with gateway 10.i.0.1, and WAN address 172.30.i.2. In IPv6, where it is
//! spoken, these are 2001:db8:i::/64 and 2001:db8:i::1, and fd00:30:i::2; the client is 2001:db8:9::2.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{
    family::Family,
    lan,
    netns::Netns,
    shell::{LabError, Result, run},
    wire::{End, Wire, WireOptions},
};

/// The client's one address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
/// Its one of IPv6, where that is spoken.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 2);
/// Its interface.
pub const CLIENT_INTERFACE: &str = "eth0";

/// How far one site is from everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteLinks {
    /// The site's name: of its host, of its LAN, of the namespace. At most 11 characters.
    pub name: String,
    /// Round trip between the client and this site's LAN.
    pub client_rtt: Duration,
    /// This site's part of the round trip to another site: the two parts add up.
    pub wan_rtt: Duration,
}

/// The whole network.
#[derive(Debug, Clone, PartialEq)]
pub struct TopologyOptions {
    /// The sites, in the order of their numbers.
    pub sites: Vec<SiteLinks>,
    /// Rate of each link between the client's router and a LAN, Mbit/s.
    pub client_rate_mbit: u32,
    /// Rate of the WAN between sites, Mbit/s.
    pub wan_rate_mbit: u32,
    /// MTU of the WAN.
    pub wan_mtu: u32,
    /// MTU of the LANs.
    pub lan_mtu: u32,
    /// What the client and the LANs speak.
    pub family: Family,
    /// Whether the hosts reach each other over IPv6.
    pub wan_v6: bool,
    /// See [`WireOptions::queue`].
    pub queue: Duration,
    /// Raise the client's MPTCP limits to 8 subflows and 8 accepted addresses. The kernel's default accepts none.
    pub client_mptcp_limits: bool,
}

impl Default for TopologyOptions {
    /// Montreal far from the client (70 ms), dallas near (2 ms), 70 ms between them, 200 Mbit/s everywhere.
    fn default() -> TopologyOptions {
        let site = |name: &str, client_ms, wan_ms| SiteLinks {
            name: name.into(),
            client_rtt: Duration::from_millis(client_ms),
            wan_rtt: Duration::from_millis(wan_ms),
        };
        TopologyOptions {
            sites: vec![site("montreal", 70, 70), site("dallas", 2, 0)],
            client_rate_mbit: 200,
            wan_rate_mbit: 200,
            wan_mtu: 1500,
            lan_mtu: 1500,
            family: Family::V4,
            wan_v6: false,
            queue: Duration::from_millis(50),
            client_mptcp_limits: true,
        }
    }
}

/// Addresses and names of one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SitePlan {
    /// From 1.
    pub number: u8,
    /// Also the name of its LAN.
    pub name: String,
    /// The LAN's bridge on the host.
    pub bridge: String,
    /// The LAN's gateway; its prefix length is 24.
    pub gateway: Ipv4Addr,
    /// The host's address on the WAN.
    pub wan: IpAddr,
}

impl SitePlan {
    /// Address `host` of this site's LAN.
    #[must_use]
    pub fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, host)
    }

    /// The same of its /64 of IPv6; the number is written as it would be in decimal.
    #[must_use]
    pub fn address6(&self, host: u8) -> Ipv6Addr {
        let digits = u16::from_str_radix(&host.to_string(), 16).unwrap_or(host.into());
        Ipv6Addr::new(0x2001, 0xdb8, self.number.into(), 0, 0, 0, 0, digits)
    }

    /// The gateway in IPv6.
    #[must_use]
    pub fn gateway6(&self) -> Ipv6Addr {
        self.address6(1)
    }

    /// The host's address on the WAN and a port, as URLs and `host.toml` write them.
    #[must_use]
    pub fn wan_port(&self, port: u16) -> String {
        SocketAddr::new(self.wan, port).to_string()
    }
}

/// Of a router.
const FORWARDS: [(&str, &str); 2] = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];

/// The bridge on each host for vNICs that are in no LAN: nothing else is in it.
pub const SPARE_BRIDGE: &str = "lsm-spare";

/// The running network. Dropping it removes it.
#[derive(Debug)]
pub struct Topology {
    prefix: String,
    // Before the namespaces: dropped first.
    wires: BTreeMap<String, Wire>,
    namespaces: BTreeMap<String, Netns>,
    plans: Vec<SitePlan>,
    family: Family,
    wan_rtt: Duration,
}

static LABS: AtomicU32 = AtomicU32::new(0);

impl Topology {
    /// Builds it all.
    ///
    /// # Errors
    /// Not root, `lab-wire` missing, or the kernel lacks veth, bridge, TAP or TBF.
    pub fn new(options: &TopologyOptions) -> Result<Topology> {
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("lsm{}.{number}", std::process::id());
        let (wires, namespaces, plans) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let wan_rtt = options.sites.iter().map(|site| site.wan_rtt).sum();
        let mut made = Topology { prefix, wires, namespaces, plans, family: options.family, wan_rtt };
        for name in ["client", "edge", "wan"] {
            made.add_namespace(name)?;
        }
        made.join("client", CLIENT_INTERFACE, "edge", "client", 1500)?;
        if options.family.v4() {
            made.ns("client").ip(&format!(
                "addr add {CLIENT}/24 dev {CLIENT_INTERFACE}\nroute add default via 10.9.0.1 dev {CLIENT_INTERFACE}\n"
            ))?;
        }
        made.ns("edge").ip("addr add 10.9.0.1/24 dev client\n")?;
        if options.family.v6() {
            made.ns("client").enable_ipv6(CLIENT_INTERFACE)?;
            made.ns("edge").enable_ipv6("client")?;
            made.ns("client").ip(&format!(
                "addr add {CLIENT6}/64 dev {CLIENT_INTERFACE} nodad\n\
                 route add default via 2001:db8:9::1 dev {CLIENT_INTERFACE}\n"
            ))?;
            made.ns("edge").ip("addr add 2001:db8:9::1/64 dev client nodad\n")?;
        }
        if options.client_mptcp_limits {
            made.ns("client").ip("mptcp limits set subflows 8 add_addr_accepted 8\n")?;
        }
        // What the client's captures see is what was on the wire.
        for (ns, interface) in [("client", CLIENT_INTERFACE), ("edge", "client")] {
            let mut ethtool = made.ns(ns).command("ethtool");
            run(ethtool.args(["-K", interface, "tso", "off", "gso", "off", "gro", "off"]))?;
        }
        for (number, links) in (1..).zip(&options.sites) {
            made.add_site(number, links, options)?;
        }
        for router in ["edge", "wan"] {
            made.ns(router).sysctl(&FORWARDS)?;
        }
        Ok(made)
    }

    fn add_site(&mut self, number: u8, links: &SiteLinks, options: &TopologyOptions) -> Result<()> {
        let name = links.name.as_str();
        let gateway_ns = format!("gw-{name}");
        let plan = SitePlan {
            number,
            name: name.into(),
            bridge: format!("br-{name}"),
            gateway: Ipv4Addr::new(10, number, 0, 1),
            wan: if options.wan_v6 {
                Ipv6Addr::new(0xfd00, 0x30, number.into(), 0, 0, 0, 0, 2).into()
            } else {
                Ipv4Addr::new(172, 30, number, 2).into()
            },
        };
        self.add_namespace(name)?;
        self.add_namespace(&gateway_ns)?;

        // The LAN: the host's bridge, the gateway on it, and the bridge for vNICs that are nowhere.
        let (bridge, mtu) = (&plan.bridge, options.lan_mtu);
        self.ns(name).ip(&format!(
            "link add {bridge} mtu {mtu} type bridge forward_delay 0 mcast_snooping 0\nlink set {bridge} up\n\
             link add {SPARE_BRIDGE} type bridge forward_delay 0 mcast_snooping 0\nlink set {SPARE_BRIDGE} up\n"
        ))?;
        self.join(name, "lan", &gateway_ns, "lan", mtu)?;
        self.ns(name).ip(&format!("link set lan master {bridge}\n"))?;

        // Client's router to gateway.
        let wire = WireOptions {
            delay: links.client_rtt / 2,
            rate_mbit: Some(options.client_rate_mbit),
            queue: options.queue,
            mtu: 1500,
            ..WireOptions::default()
        };
        self.connect(&format!("client-{name}"), ("edge", name), (&gateway_ns, "edge"), &wire)?;
        let SitePlan { gateway, wan, .. } = plan;
        let (gateway6, gateway_ns) = (plan.gateway6(), gateway_ns.as_str());
        self.ns("edge").ip(&format!(
            "addr add 10.8.{number}.1/24 dev {name}\nroute add 10.{number}.0.0/24 via 10.8.{number}.2\n"
        ))?;
        self.ns(gateway_ns).ip(&format!(
            "addr add 10.8.{number}.2/24 dev edge\naddr add {gateway}/24 dev lan\nroute add default via 10.8.{number}.1\n"
        ))?;
        if options.family.v6() {
            for (ns, interface) in [("edge", name), (gateway_ns, "edge"), (gateway_ns, "lan")] {
                self.ns(ns).enable_ipv6(interface)?;
            }
            let subnet = lan::prefix(&plan);
            self.ns("edge").ip(&format!(
                "addr add 2001:db8:8:{number}::1/64 dev {name} nodad\n\
                 route add {subnet}/64 via 2001:db8:8:{number}::2\n"
            ))?;
            self.ns(gateway_ns).ip(&format!(
                "addr add 2001:db8:8:{number}::2/64 dev edge nodad\naddr add {gateway6}/64 dev lan nodad\n\
                 route add default via 2001:db8:8:{number}::1\n"
            ))?;
        }
        self.ns(gateway_ns).sysctl(&FORWARDS)?;

        // Host to the WAN's router.
        let wire = WireOptions {
            delay: links.wan_rtt / 2,
            rate_mbit: Some(options.wan_rate_mbit),
            queue: options.queue,
            mtu: options.wan_mtu,
            ..WireOptions::default()
        };
        if links.wan_rtt.is_zero() {
            self.join(name, "wan", "wan", name, options.wan_mtu)?;
            // veth would carry a tunnel's super-frames whole, up to a wire that cannot.
            for (ns, interface) in [(name, "wan"), ("wan", name)] {
                let off = ["tx-udp_tnl-segmentation", "off", "tx-udp_tnl-csum-segmentation", "off"];
                run(self.ns(ns).command("ethtool").args(["-K", interface]).args(off))?;
            }
        } else {
            self.connect(&format!("wan-{name}"), (name, "wan"), ("wan", name), &wire)?;
        }
        let (router, length, flags) = match wan {
            IpAddr::V4(_) => (format!("172.30.{number}.1"), 24, ""),
            IpAddr::V6(_) => (format!("fd00:30:{number:x}::1"), 64, "nodad"),
        };
        if wan.is_ipv6() {
            self.ns("wan").enable_ipv6(name)?;
            self.ns(name).enable_ipv6("wan")?;
        }
        self.ns("wan").ip(&format!("addr add {router}/{length} dev {name} {flags}\n"))?;
        self.ns(name)
            .ip(&format!("addr add {wan}/{length} dev wan {flags}\nroute add default via {router} dev wan\n"))?;
        self.plans.push(plan);
        Ok(())
    }

    /// The namespace of that name: `client`, `edge`, `wan`, a site's name, or `gw-` and a site's name.
    ///
    /// # Panics
    /// There is none: the test is wrong.
    #[must_use]
    pub fn ns(&self, name: &str) -> &Netns {
        let found = self.namespaces.get(name);
        found.unwrap_or_else(|| panic!("the lab has no namespace {name}, only {:?}", self.namespaces.keys()))
    }

    /// The wire of that name: `client-SITE`, or `wan-SITE` where the site's part of the WAN has a delay.
    ///
    /// # Errors
    /// There is none.
    pub fn wire(&self, name: &str) -> Result<&Wire> {
        let none = || LabError::Other(format!("the lab has no wire {name}, only {:?}", self.wires.keys()));
        self.wires.get(name).ok_or_else(none)
    }

    /// The client's addresses, IPv4 first.
    #[must_use]
    pub fn client(&self) -> Vec<IpAddr> {
        self.family.of(CLIENT, CLIENT6)
    }

    /// Round trip between two sites, as long as there are no more.
    #[must_use]
    pub fn wan_rtt(&self) -> Duration {
        self.wan_rtt
    }

    /// The sites.
    #[must_use]
    pub fn sites(&self) -> &[SitePlan] {
        &self.plans
    }

    /// The site of that name.
    ///
    /// # Panics
    /// There is none: the test is wrong.
    #[must_use]
    pub fn site(&self, name: &str) -> &SitePlan {
        self.plans.iter().find(|plan| plan.name == name).unwrap_or_else(|| panic!("the lab has no site {name}"))
    }

    /// What this lab's names start with, unlike any other's on the machine.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn add_namespace(&mut self, name: &str) -> Result<()> {
        let ns = Netns::new(&format!("{}-{name}", self.prefix))?;
        self.namespaces.insert(name.into(), ns);
        Ok(())
    }

    /// A plain cable, both ends up.
    fn join(&self, a: &str, a_interface: &str, b: &str, b_interface: &str, mtu: u32) -> Result<()> {
        let (a, b) = (self.ns(a).name(), self.ns(b).name());
        let cable =
            format!("link add {a_interface} mtu {mtu} netns {a} type veth peer name {b_interface} mtu {mtu} netns {b}");
        run(Command::new("ip").args(cable.split(' ')))?;
        run(Command::new("ip").args(["-n", a, "link", "set", a_interface, "up"]))?;
        run(Command::new("ip").args(["-n", b, "link", "set", b_interface, "up"]))?;
        Ok(())
    }

    fn connect(&mut self, name: &str, a: (&str, &str), b: (&str, &str), options: &WireOptions) -> Result<()> {
        let end = |(ns, interface)| End { ns: self.ns(ns), interface };
        let wire = Wire::new(end(a), end(b), options)?;
        self.wires.insert(name.into(), wire);
        Ok(())
    }
}
