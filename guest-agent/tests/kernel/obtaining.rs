//! Addresses from a LAN, for a VM in which nobody else asks for them.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use lsm_guest::{
    dhcp::{self, Card, Failure, Lease},
    slaac,
    vnic::Vnics,
};
use lsm_protocol::Mac;

use crate::place::{Place, alone, run, runtime, until};

pub(crate) const MAC: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);
/// Made of it (RFC 4291, appendix A), in the prefix that the routers here advertise.
pub(crate) const AUTOCONFIGURED: &str = "2001:db8:2:0:5054:ff:feaa:2";

/// The vNIC `v`, and its LAN, where `g` has 10.2.0.1/24.
fn lan() -> (Place, Card) {
    let lan = Place::new();
    lan.plug("v", "g");
    run(&format!("ip link set dev v address {MAC}"));
    lan.run("ip address add 10.2.0.1/24 dev g");
    let card = runtime().block_on(async { Vnics::open().unwrap().find(MAC).await.unwrap().unwrap() });
    (lan, Card { ifindex: card.index, mac: MAC })
}

fn acquire(card: Card) -> Result<Lease, Failure> {
    runtime().block_on(dhcp::acquire(card, || 0))
}

/// A server of the system's in a place, with its files; both end with it.
pub(crate) struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    /// `None` where it is not installed.
    fn start(lan: &Place, program: &'static str, arguments: impl FnOnce(&Path) -> Vec<String>) -> Option<Server> {
        if !Path::new("/usr/sbin").join(program).exists() {
            let reason = format!("needs {program}; run tests/install --tests");
            assert!(std::env::var_os("LSM_EXPECT_ALL").is_none_or(|value| value != "1"), "{reason}");
            eprintln!("skipped: {reason}");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("lsm-{program}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let arguments = arguments(&directory);
        let child = lan.call(move || Command::new(program).args(arguments).stdin(Stdio::null()).spawn().unwrap());
        Some(Server { child, directory })
    }

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

pub(crate) fn dnsmasq(lan: &Place, range: &'static str) -> Option<Server> {
    let server = Server::start(lan, "dnsmasq", |directory| {
        let mut arguments: Vec<String> = [
            "--keep-in-foreground --conf-file=/dev/null --port=0 --interface=g --bind-interfaces --user=root --pid-file",
            "--no-ping --dhcp-authoritative --dhcp-option=option:router,10.2.0.1",
        ]
        .iter()
        .flat_map(|line| line.split(' '))
        .map(str::to_owned)
        .collect();
        arguments.push(format!("--dhcp-range={range},255.255.255.0,1h"));
        arguments.push(format!("--dhcp-leasefile={}", directory.join("leases").display()));
        arguments.push(format!("--log-facility={}", directory.join("log").display()));
        arguments
    })?;
    until("dnsmasq to serve", || server.read("log").contains("started").then_some(()));
    Some(server)
}

#[test]
fn an_address_is_got_extended_and_given_back() {
    alone(|| {
        let (lan, card) = lan();
        let Some(server) = dnsmasq(&lan, "10.2.0.200,10.2.0.210") else { return };
        let begun = Instant::now();
        let lease = acquire(card).unwrap();
        eprintln!("DHCP without an owner, on a direct link: {:?}", begun.elapsed());
        assert_eq!((lease.prefix_len, lease.gateway), (24, Ipv4Addr::new(10, 2, 0, 1)));
        assert_eq!((lease.renew, lease.end), (Some(1_800_000), Some(3_600_000)));
        assert!(server.read("leases").contains(&lease.address.to_string()));

        for now in [1_800_000, 3_500_000] {
            let later = runtime().block_on(dhcp::extend(card, &lease, || now)).unwrap();
            assert_eq!((later.address, later.end), (lease.address, Some(now + 3_600_000)));
        }
        runtime().block_on(async { dhcp::release(card, &lease) }).unwrap();
        until("the address to be free again", || {
            (!server.read("leases").contains(&lease.address.to_string())).then_some(())
        });
        // Of a server that knows nothing of it.
        let other = Lease { address: Ipv4Addr::new(10, 2, 9, 9), ..lease };
        let refused = runtime().block_on(dhcp::extend(card, &other, || 0)).unwrap_err();
        assert!(matches!(refused, Failure::Nak { .. }), "{refused}");
    });
}

#[test]
fn an_address_that_somebody_has_is_declined_for_another() {
    alone(|| {
        let (lan, card) = lan();
        let Some(server) = dnsmasq(&lan, "10.2.0.200,10.2.0.201") else { return };
        // Which of the two is offered is the server's choice, and the same each time.
        let first = acquire(card).unwrap();
        runtime().block_on(async { dhcp::release(card, &first) }).unwrap();
        lan.run(&format!("ip address add {}/32 dev lo", first.address));
        let second = acquire(card).unwrap();
        assert_ne!(second.address, first.address);
        let log = server.read("log");
        assert!(log.contains(&format!("DHCPDECLINE(g) {}", first.address)), "{log}");
    });
}

/// The kind of a message, the address it gives, its options.
pub(crate) type Said = (u8, Ipv4Addr, Vec<u8>);

/// A server that answers each question with what `answer` makes of its kind.
pub(crate) fn wicked(lan: &Place, answer: fn(u8) -> Option<Said>) {
    lan.call(move || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)).unwrap();
        socket.set_broadcast(true).unwrap();
        let interface = socket2::SockRef::from(&socket).bind_device(Some(b"g"));
        interface.unwrap();
        // Ends with the test's process.
        std::thread::spawn(move || {
            let mut bytes = [0; 1500];
            while let Ok(length) = socket.recv(&mut bytes) {
                let kind = bytes[240..length].windows(3).find(|w| w[..2] == [53, 1]).map_or(0, |w| w[2]);
                let Some((kind, address, options)) = answer(kind) else { continue };
                let mut reply = bytes[..240].to_vec();
                reply[0] = 2;
                reply[16..20].copy_from_slice(&address.octets());
                reply.extend([53, 1, kind, 54, 4, 10, 2, 0, 1]);
                reply.extend(options);
                reply.push(255);
                socket.send_to(&reply, (Ipv4Addr::BROADCAST, 68)).unwrap();
            }
        });
    });
}

pub(crate) const OFFERED: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 57);
/// Mask, router, an hour.
pub(crate) const GOOD: [u8; 18] = [1, 4, 255, 255, 255, 0, 3, 4, 10, 2, 0, 1, 51, 4, 0, 0, 14, 16];
pub(crate) const DISCOVER: u8 = 1;
pub(crate) const OFFER: u8 = 2;
pub(crate) const ACK: u8 = 5;
pub(crate) const NAK: u8 = 6;

#[test]
fn without_an_answer_it_is_said_who_did_not_give_one() {
    alone(|| {
        let (_lan, card) = lan();
        let begun = Instant::now();
        let said = acquire(card).unwrap_err().to_string();
        assert!(said.starts_with("no DHCP server answered within 3.5 s"), "{said}");
        assert!(begun.elapsed() < Duration::from_secs(4));
    });
}

#[test]
fn a_server_that_refuses_is_quoted() {
    alone(|| {
        let (lan, card) = lan();
        wicked(&lan, |kind| {
            let words = b"\x38\x06no\nway";
            Some(if kind == DISCOVER { (OFFER, OFFERED, GOOD.to_vec()) } else { (NAK, OFFERED, words.to_vec()) })
        });
        let said = acquire(card).unwrap_err().to_string();
        assert_eq!(said, "DHCP server 10.2.0.1 refused (\"noway\"); see its log");
    });
}

#[test]
fn an_address_in_use_and_one_outside_of_its_subnet_are_not_taken() {
    alone(|| {
        let (lan, card) = lan();
        lan.run("ip address add 10.2.0.57/24 dev g");
        wicked(&lan, |kind| match kind {
            DISCOVER => Some((OFFER, OFFERED, GOOD.to_vec())),
            3 => Some((ACK, OFFERED, GOOD.to_vec())),
            _ => None,
        });
        let said = acquire(card).unwrap_err().to_string();
        assert!(said.starts_with("10.2.0.57, which DHCP server 10.2.0.1 gave, is in use by "), "{said}");
    });
    alone(|| {
        let (lan, card) = lan();
        wicked(&lan, |kind| {
            Some((if kind == DISCOVER { OFFER } else { ACK }, Ipv4Addr::new(10, 3, 0, 57), GOOD.to_vec()))
        });
        let said = acquire(card).unwrap_err().to_string();
        assert!(said.contains("10.3.0.57/24 with the router 10.2.0.1 outside of it"), "{said}");
    });
}

/// As the agent has them before it asks.
fn set_parameters() {
    for (name, value) in slaac::PARAMETERS {
        let _ = lsm_guest::sysctl::set(&format!("net/ipv6/conf/v/{name}"), value);
    }
    lsm_guest::sysctl::set(&format!("net/ipv6/neigh/v/{}", slaac::RETRANS.0), slaac::RETRANS.1).unwrap();
}

fn configure(card: Card) -> Result<slaac::Configured, slaac::Failure> {
    runtime().block_on(async { slaac::acquire(card, &Vnics::open().unwrap()).await })
}

/// The LAN with a vNIC that comes up as the agent makes it.
fn advertised() -> (Place, Card) {
    let (lan, card) = lan();
    run("ip link set dev v down");
    set_parameters();
    run("ip link set dev v up");
    lan.run("sysctl -q -w net.ipv6.conf.all.forwarding=1");
    lan.run("ip address add 2001:db8:2::1/64 dev g nodad");
    lan.run("ip address add fe80::1/64 dev g nodad");
    (lan, card)
}

pub(crate) fn radvd(lan: &Place, lifetime: u16) -> Option<Server> {
    Server::start(lan, "radvd", |directory| {
        let text = format!(
            "interface g {{ AdvSendAdvert on; AdvDefaultLifetime {lifetime}; MaxRtrAdvInterval 10; AdvRASrcAddress {{ fe80::1; }}; prefix 2001:db8:2::/64 {{ }}; }};\n"
        );
        fs::write(directory.join("conf"), text).unwrap();
        let file = |name: &str| directory.join(name).display().to_string();
        ["--nodaemon", "--logmethod=none", "--config", &file("conf"), "--pidfile", &file("pid")]
            .map(str::to_owned)
            .to_vec()
    })
}

#[test]
fn an_address_of_a_router_s_prefix() {
    alone(|| {
        let (lan, card) = advertised();
        let Some(_radvd) = radvd(&lan, 1800) else { return };
        let begun = Instant::now();
        let configured = configure(card).unwrap();
        eprintln!("SLAAC without an owner, on a direct link: {:?}", begun.elapsed());
        assert_eq!((configured.address, configured.prefix_len), (AUTOCONFIGURED.parse().unwrap(), 64));
        assert!(configured.gateway.is_unicast_link_local());
        assert!(!run("ip -6 route show default").contains("default"), "the main table is as before");
    });
}

#[test]
fn a_router_that_is_none_any_more_is_named() {
    alone(|| {
        let (lan, card) = advertised();
        let Some(_radvd) = radvd(&lan, 0) else { return };
        let said = configure(card).unwrap_err().to_string();
        assert!(said.contains("says that it is none any more (lifetime 0)"), "{said}");
    });
}

#[test]
fn without_a_router_it_is_said() {
    alone(|| {
        let (_lan, card) = advertised();
        let said = configure(card).unwrap_err().to_string();
        assert!(said.starts_with("no router advertised itself within 3.5 s"), "{said}");
    });
}

#[test]
fn a_duplicate_of_the_address_is_refused() {
    alone(|| {
        let (lan, card) = advertised();
        lan.run(&format!("ip address add {AUTOCONFIGURED}/64 dev g nodad"));
        let Some(_radvd) = radvd(&lan, 1800) else { return };
        let said = configure(card).unwrap_err().to_string();
        assert!(said.starts_with(&format!("{AUTOCONFIGURED} is in use by somebody else on the LAN")), "{said}");
    });
}

/// The one that may be used is taken, whichever speaks first.
#[test]
fn of_two_routers_one_that_is_none_does_not_count() {
    alone(|| {
        let (lan, card) = advertised();
        lan.run("ip address add fe80::bad/64 dev g nodad");
        let Some(_radvd) = radvd(&lan, 1800) else { return };
        lan.call(|| {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::RAW, Some(socket2::Protocol::ICMPV6))
                    .unwrap();
            socket.bind_device(Some(b"g")).unwrap();
            let at = |address: Ipv6Addr| -> socket2::SockAddr {
                std::net::SocketAddrV6::new(address, 0, 0, index("g")).into()
            };
            socket.bind(&at("fe80::bad".parse().unwrap())).unwrap();
            socket.set_multicast_if_v6(index("g")).unwrap();
            socket.set_multicast_hops_v6(255).unwrap();
            std::thread::spawn(move || {
                // High preference, lifetime 0, no prefix.
                let none = [134, 0, 0, 0, 64, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                for _ in 0..20 {
                    let _ = socket.send_to(&none, &at("ff02::1".parse().unwrap()));
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        });
        let configured = configure(card).unwrap();
        assert_eq!(configured.gateway, "fe80::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(configured.address, AUTOCONFIGURED.parse::<Ipv6Addr>().unwrap());
    });
}

fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}
