use super::*;

const SHIPPED: &str = include_str!("../../../packaging/host.toml");

/// Every line that is a commented key or section, active.
fn uncommented() -> String {
    SHIPPED
        .lines()
        .map(|l| l.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(l))
        .collect::<Vec<_>>()
        .join("\n")
}

const GOOD: &str = r#"
name = "montreal"
[tunnel]
address = "198.51.100.1"
[lan.montreal]
bridge = "br0"
prefix = "10.1.0.0/24"
gateway = "10.1.0.1"
pool = "10.1.0.100-10.1.0.199"
[peer.dallas]
address = "dallas.example.org:16519"
"#;

#[test]
fn an_empty_file_is_the_defaults() {
    let config = Config::parse("").unwrap();
    assert_eq!(config.listen.to_string(), "[::]:16519");
    assert_eq!((config.tunnel, config.tls, config.policy), (None, Tls::default(), Policy::default()));
    assert_eq!(config.script_deadline, Duration::from_secs(10));
    assert!(!config.name.is_empty() && config.lans.is_empty() && config.peers.is_empty());
}

#[test]
fn the_shipped_file_shows_the_defaults_and_nothing_else() {
    assert_eq!(Config::parse(SHIPPED).unwrap(), Config::parse("").unwrap());
    let shown = Config::parse(&uncommented()).unwrap();
    let mut told = Config::parse(GOOD).unwrap();
    told.name = shown.name.clone();
    told.stream = ["192.0.2.1", "198.51.100.1"].map(|path| path.parse().unwrap()).to_vec();
    assert_eq!(shown, told);
    // Every key of the file's structs is shown: an unknown key's error lists what there is.
    for section in ["", "peer_channel", "tunnel", "tls", "lan.x", "peer.x", "policy", "stream", "scripts", "reports"] {
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let known = Config::parse(&format!("{header}zzz = 1")).unwrap_err().what;
        for key in known.split('`').skip(3).step_by(2) {
            let shown = SHIPPED.contains(&format!("\n#{key} = ")) || SHIPPED.contains(&format!("[{key}"));
            assert!(shown, "{section}.{key} is not in the shipped file ({known})");
        }
    }
}

#[test]
fn a_lan_of_both_families_says_each_in_any_order() {
    let dual = |prefix: &str, gateway: &str, pool: &str| {
        let lan = format!("[lan.a]\nbridge = \"br0\"\nprefix = {prefix}\ngateway = {gateway}\npool = {pool}\n");
        Config::parse(&lan).map_err(|wrong| wrong.what)
    };
    let prefixes = "[\"2001:db8:1::/64\", \"10.1.0.0/24\"]";
    let pools = "[\"10.1.0.100-10.1.0.199\", \"2001:db8:1::100-2001:db8:1::1ff\", \"10.1.0.7\"]";
    let config = dual(prefixes, "[\"10.1.0.1\", \"fe80::1\"]", pools).unwrap();
    let [four, six] = &config.lans["a"].subnets[..] else { panic!("{config:?}") };
    assert_eq!((four.prefix.to_string().as_str(), four.gateway.to_string().as_str()), ("10.1.0.0/24", "10.1.0.1"));
    assert_eq!((six.prefix.to_string().as_str(), six.gateway.to_string().as_str()), ("2001:db8:1::/64", "fe80::1"));
    assert_eq!((four.pool.addresses().count(), six.pool.addresses().count()), (101, 256));
    for (prefix, gateway, pool, told) in [
        (prefixes, "\"10.1.0.1\"", pools, "prefix 2001:db8:1::/64 has no gateway"),
        (prefixes, "[\"10.1.0.1\", \"2001:db8:2::1\"]", pools, "gateway 2001:db8:2::1 is outside 2001:db8:1::/64"),
        (prefixes, "[\"10.1.0.1\", \"10.1.0.2\", \"fe80::1\"]", pools, "gateways 10.1.0.1 and 10.1.0.2 are both"),
        (prefixes, "[\"10.1.0.1\", \"fe80::1\"]", "\"10.1.0.7\"", "the pool has no address of 2001:db8:1::/64"),
        ("\"10.1.0.0/24\"", "\"10.1.0.1\"", pools, "pool address 2001:db8:1::100 and prefix 10.1.0.0/24"),
        ("[\"10.1.0.0/24\", \"10.2.0.0/24\"]", "\"10.1.0.1\"", "\"10.1.0.7\"", "one prefix of IPv4, one of IPv6"),
        ("[]", "\"10.1.0.1\"", "\"10.1.0.7\"", "one prefix of IPv4, one of IPv6"),
        ("7", "\"10.1.0.1\"", "\"10.1.0.7\"", "prefix is neither a text"),
    ] {
        let error = dual(prefix, gateway, pool).unwrap_err();
        assert!(error.contains(told), "{prefix} {gateway} {pool}: {error}");
    }
}

#[test]
fn every_key_arrives() {
    let config = Config::parse(
        r#"
        name = "a"
        [peer_channel]
        listen = "[::]:99"
        [tunnel]
        address = "2001:db8::1"
        port = 8472
        mtu = 1400
        encrypt = "wireguard"
        wireguard_port = 51820
        [tls]
        ca = "/1"
        cert = "/2"
        key = "/3"
        client_cert = "/4"
        client_key = "/5"
        [lan.v6]
        bridge = "br6"
        prefix = "2001:db8:6::/64"
        gateway = "2001:db8:6::1"
        pool = ["2001:db8:6::10-2001:db8:6::1f", "2001:db8:6::30"]
        mtu = 9000
        addressing = "static"
        offer = false
        [lan.v4]
        bridge = "br4"
        prefix = "10.4.0.0/24"
        gateway = "10.4.0.1"
        pool = "10.4.0.9"
        [peer."b.example.org"]
        address = "[2001:db8::2]:16519"
        [policy]
        join = "never"
        switch = "early"
        unprepared = "refuse"
        prepare_wait_ms = 250
        drain = "10m"
        min_survival = "95%"
        lease_s = 9
        [scripts]
        deadline_s = 600
        [reports]
        history = "/h"
        metrics = "/m"
        "#,
    )
    .unwrap();
    assert_eq!(config.listen.port(), 99);
    assert_eq!(
        config.tunnel,
        Some(Underlay {
            address: "2001:db8::1".parse().unwrap(),
            port: 8472,
            mtu: Some(1400),
            encrypt: Encrypt::Wireguard,
            wireguard_port: 51_820,
        })
    );
    assert_eq!(config.tls.client_key, PathBuf::from("/5"));
    let (name, lan) = config.lan_of_bridge("br6").unwrap();
    assert_eq!((name, lan.mtu, lan.subnets.len(), lan.subnets[0].pool.addresses().count()), ("v6", 9000, 1, 17));
    assert_eq!(config.offered_lan().unwrap().0, "v4", "the only one that is left");
    assert_eq!(config.peer_names(), ["b.example.org"]);
    assert_eq!(config.script_deadline, Duration::from_secs(600));
    assert_eq!(
        (config.reports.history.as_path(), config.reports.collector()),
        (Path::new("/h"), Some(Path::new("/m")))
    );
    assert_eq!(
        config.policy,
        Policy {
            join: Join::Never,
            switch: Switch::Early,
            unprepared: Unprepared::Refuse,
            prepare_wait: Duration::from_millis(250),
            drain: Drain::For(Duration::from_secs(600)),
            min_survival: Survival::Percent(95),
            lease: Duration::from_secs(9),
        }
    );
}

/// `GOOD` with one line replaced, and what is then said of it: `line:column: words`.

#[test]
fn a_lan_that_gives_out_addresses_itself_says_of_which_subnets() {
    let lan = |addressing: &str, prefix: &str| {
        let lan = format!("[lan.a]\nbridge = \"br0\"\nprefix = {prefix}\naddressing = \"{addressing}\"\n");
        Config::parse(&lan).map(|config| config.lans["a"].addressing).map_err(|wrong| wrong.what)
    };
    let (v4, v6) = ("\"10.1.0.0/24\"", "\"2001:db8:1::/64\"");
    let both = format!("[{v6}, {v4}]");
    for (addressing, prefix, shown, crosses) in [
        ("dhcp", v4, "10.1.0.0/24 -", (true, false)),
        ("slaac", v6, "- 2001:db8:1::/64", (false, true)),
        ("dhcp+slaac", &both, "10.1.0.0/24 2001:db8:1::/64", (true, true)),
    ] {
        let found = lan(addressing, prefix).unwrap();
        let Addressing::Obtained { dhcp, slaac } = found else { panic!("{found:?}") };
        let show = |subnet: Option<String>| subnet.unwrap_or_else(|| "-".to_owned());
        let told = format!("{} {}", show(dhcp.map(|s| s.to_string())), show(slaac.map(|s| s.to_string())));
        assert_eq!(told, shown);
        assert_eq!((found.crossing().dhcp, found.crossing().ra), crosses);
    }
    for (addressing, prefix, told) in [
        ("dhcp", v6, "this addressing needs one of IPv4"),
        ("slaac", v4, "this addressing needs one of IPv6"),
        ("dhcp+slaac", v4, "this addressing needs one of IPv4 and one of IPv6"),
        ("dhcp", "[\"10.1.0.0/24\", \"10.2.0.0/24\"]", "this addressing needs one of IPv4, and no other prefix"),
        ("slaac", "\"2001:db8::/48\"", "slaac needs a /64"),
    ] {
        let error = lan(addressing, prefix).unwrap_err();
        assert!(error.contains(told), "{addressing} {prefix}: {error}");
    }
}

#[test]
fn errors_say_where_and_what_to_do() {
    let golden = [
        (
            "name = \"montreal\"",
            "nmae = \"montreal\"",
            concat!(
                "2:1: unknown field `nmae`, expected one of `name`, `peer_channel`, `tunnel`, `tls`, `lan`, `peer`, `policy`, `stream`, `scripts`, `reports`",
                "; lsm-hook ",
                env!("CARGO_PKG_VERSION"),
                " has no such key: is the file of another version?"
            ),
        ),
        (
            "name = \"montreal\"",
            "name = \"mont real\"",
            "2:8: \"mont real\" is not a host's name; use the DNS name that stands in its certificate",
        ),
        (
            "name = \"montreal\"",
            "name = \"dallas\"",
            "10:7: dallas is this host; name the other hosts only, or set name",
        ),
        ("name = \"montreal\"", "name = \"é\" = 3", "2:12: unexpected key or value, expected newline, `#`"),
        (
            "address = \"198.51.100.1\"",
            "address = \"198.51.100\"",
            "4:11: \"198.51.100\" is not an IP address; write it like \"192.0.2.7\" or \"2001:db8::7\"",
        ),
        (
            "address = \"198.51.100.1\"",
            "address = \"0.0.0.0\"",
            "4:11: 0.0.0.0 cannot be the end of a tunnel; give an address that the peers can reach",
        ),
        (
            "address = \"198.51.100.1\"",
            "port = 4789",
            "10:7: moves to or from dallas need tunnels, and there is no address for them; add address = \"this host's address on the underlay\" under [tunnel]",
        ),
        (
            "address = \"198.51.100.1\"",
            "address = \"198.51.100.1\"\nmtu = \"big\"",
            "5:7: mtu is neither \"auto\" nor a number of bytes",
        ),
        (
            "address = \"198.51.100.1\"",
            "address = \"198.51.100.1\"\nmtu = 100",
            "5:7: an MTU of 100 cannot be; use a number from 576 to 65000",
        ),
        (
            "address = \"198.51.100.1\"",
            "address = \"198.51.100.1\"\nencrypt = \"ipsec\"",
            "5:11: unknown variant `ipsec`, expected `none` or `wireguard`",
        ),
        (
            "address = \"198.51.100.1\"",
            "address = \"198.51.100.1\"\nwireguard_port = 4789",
            "5:18: port 4789 is the tunnels' own, inside WireGuard; give WireGuard another, such as 16520",
        ),
        (
            "address = \"198.51.100.1\"",
            "address = \"198.51.100.1\"\nport = 70000",
            "5:8: invalid value: integer `70000`, expected u16",
        ),
        (
            "[lan.montreal]",
            "[lan.\"mont/real\"]",
            "5:6: \"mont/real\" cannot be a LAN's name; use up to 63 letters, digits, \"-\", \"_\" and \".\"",
        ),
        ("bridge = \"br0\"", "", "5:6: LAN montreal has no bridge; add bridge = \"br0\""),
        (
            "bridge = \"br0\"",
            "bridge = \"a-bridge-too-long\"",
            "6:10: \"a-bridge-too-long\" cannot be a bridge's name; \"ip link\" lists what there is",
        ),
        (
            "bridge = \"br0\"",
            "bridge = \"lsmb1f\"",
            "6:10: bridge lsmb1f would be one of the tunnels' own; name the LAN's bridge",
        ),
        (
            "prefix = \"10.1.0.0/24\"",
            "prefix = \"10.1.0.7/24\"",
            "7:10: \"10.1.0.7/24\" is an address in a subnet, not a subnet; did you mean \"10.1.0.0/24\"?",
        ),
        (
            "prefix = \"10.1.0.0/24\"",
            "prefix = \"10.1.0.0\"",
            "7:10: \"10.1.0.0\" is not a subnet; write it like \"10.1.0.0/24\" or \"2001:db8:1::/64\"",
        ),
        (
            "prefix = \"10.1.0.0/24\"",
            "prefix = \"2001:db8::/64\"",
            "8:11: gateway 10.1.0.1 and prefix 2001:db8::/64 are of different families; use IPv4 or IPv6 for both",
        ),
        (
            "gateway = \"10.1.0.1\"",
            "gateway = \"10.2.0.1\"",
            "8:11: gateway 10.2.0.1 is outside 10.1.0.0/24; correct one of them",
        ),
        (
            "gateway = \"10.1.0.1\"",
            "gateway = \"10.1.0.255\"",
            "8:11: gateway 10.1.0.255 is the broadcast address of 10.1.0.0/24; use another",
        ),
        (
            "gateway = \"10.1.0.1\"",
            "gateway = \"10.1.0.150\"",
            "9:8: the pool would give the gateway's address 10.1.0.150 to a VM; leave it out",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = \"10.1.0.100-10.1.1.199\"",
            "9:8: pool address 10.1.1.199 is outside 10.1.0.0/24; correct one of them",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = \"10.1.0.9-10.1.0.2\"",
            "9:8: \"10.1.0.9-10.1.0.2\" runs backwards; write \"10.1.0.2-10.1.0.9\"",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = [\"10.1.0.9-10.1.0.20\", \"10.1.0.12\"]",
            "9:8: the pool names 10.1.0.12 twice; take it out of \"10.1.0.12\"",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = []",
            "9:8: the pool is empty; name the addresses that VMs may get",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = 3",
            "9:8: pool is neither a text like \"10.1.0.100-10.1.0.199\" nor a list of such",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = \"10.1.0.9\"\naddressing = \"dhcp\"",
            "10:14: the LAN itself gives gateway and addresses there; leave out gateway and pool, or addressing",
        ),
        (
            "pool = \"10.1.0.100-10.1.0.199\"",
            "pool = \"10.1.0.9\"\naddressing = \"dhpc\"",
            "10:14: unknown variant `dhpc`, expected one of `static`, `dhcp`, `slaac`, `dhcp+slaac`",
        ),
        (
            "[peer.dallas]",
            "[lan.b]\nbridge = \"br0\"\nprefix = \"10.2.0.0/24\"\ngateway = \"10.2.0.1\"\npool = \"10.2.0.9\"\n[peer.dallas]",
            "11:10: bridge br0 is LAN montreal already; a bridge is one LAN",
        ),
        (
            "[peer.dallas]",
            "[lan.b]\nbridge = \"br1\"\nprefix = \"10.2.0.0/24\"\ngateway = \"10.2.0.1\"\npool = \"10.2.0.9\"\n[peer.dallas]",
            "10:6: VMs that arrive could get an address of LAN montreal or of b; add offer = true to the one, or offer = false to the others",
        ),
        (
            "[peer.dallas]",
            "offer = true\n[lan.b]\nbridge = \"br1\"\nprefix = \"10.2.0.0/24\"\ngateway = \"10.2.0.1\"\npool = \"10.2.0.9\"\noffer = true\n[peer.dallas]",
            "16:9: LAN montreal is offered already; VMs that arrive get an address of one LAN",
        ),
        (
            "[peer.dallas]",
            "[lan.b]\nbridge = \"br1\"\nprefix = \"10.1.0.0/16\"\ngateway = \"10.1.0.1\"\npool = \"10.1.0.199-10.1.1.9\"\n[peer.dallas]",
            "14:8: the pools of montreal and b both hold 10.1.0.199; take it out of one",
        ),
        (
            "address = \"dallas.example.org:16519\"",
            "",
            "10:7: peer dallas has no address; add address = \"dallas:16519\"",
        ),
        (
            "address = \"dallas.example.org:16519\"",
            "address = \"dallas.example.org\"",
            "11:11: \"dallas.example.org\" is not a host and a port; write it like \"dallas.example.org:16519\" or \"[2001:db8::7]:16519\"",
        ),
        (
            "[peer.dallas]",
            "[policy]\nswitch = \"late\"\n[peer.dallas]",
            "11:10: unknown variant `late`, expected one of `auto`, `early`, `arrival`",
        ),
        (
            "[peer.dallas]",
            "[policy]\nprepare_wait_ms = 60000\n[peer.dallas]",
            "11:19: prepare_wait_ms keeps libvirt waiting and may be 20000 at most; the default is 5000",
        ),
        (
            "[peer.dallas]",
            "[policy]\nmin_survival = \"101%\"\n[peer.dallas]",
            "11:16: min_survival is neither a share like \"95%\" nor a number of connections like 20",
        ),
        (
            "[peer.dallas]",
            "[policy]\nmin_survival = 0.9\n[peer.dallas]",
            "11:16: min_survival is neither a share like \"95%\" nor a number of connections like 20",
        ),
        (
            "[peer.dallas]",
            "[policy]\nlease_s = 1\n[peer.dallas]",
            "11:11: lease_s must be from 5 to 86400 seconds; the default is 60",
        ),
        (
            "[peer.dallas]",
            "[scripts]\ndeadline_s = 601\n[peer.dallas]",
            "11:14: deadline_s must be from 1 to 600 seconds; the default is 10",
        ),
        (
            "[peer.dallas]",
            "[policy]\ndrain = \"30\"\n[peer.dallas]",
            "11:9: \"30\" is not \"until-idle\", \"forever\" or a duration like \"30s\", \"10m\", \"2h\", \"1d\"",
        ),
    ];
    let mut differ = Vec::new();
    for (line, instead, expected) in golden {
        assert!(GOOD.contains(line), "{line}");
        let text = GOOD.replacen(line, instead, 1);
        let said = match Config::parse(&text) {
            Ok(_) => "accepted".to_owned(),
            Err(wrong) => {
                let (line, column) = position(&text, wrong.at);
                format!("{line}:{column}: {}", wrong.what)
            }
        };
        if said != expected {
            differ.push(format!("{instead}\n  said     {said}\n  expected {expected}"));
        }
    }
    assert!(differ.is_empty(), "\n{}", differ.join("\n"));
}

#[test]
fn the_files_name_is_in_every_error() {
    let missing = Config::load(Path::new("/nonexistent/host.toml")).unwrap_err();
    assert!(missing.to_string().contains("/nonexistent/host.toml"), "{missing}");
    let path = std::env::temp_dir().join(format!("lsm-config-{}.toml", std::process::id()));
    fs::write(&path, "[policy]\n  x = 1\n").unwrap();
    let said = Config::load(&path).unwrap_err().to_string();
    fs::remove_file(&path).unwrap();
    assert!(said.starts_with(&format!("{}:2:3: unknown field `x`", path.display())), "{said}");
}

#[test]
fn a_path_of_the_stream_is_an_address_of_its_own() {
    let wrong = |paths: &str| Config::parse(&format!("[stream]\npaths = [{paths}]\n")).unwrap_err().what;
    assert!(wrong("\"192.0.2.1\", \"192.0.2.1\"").contains("192.0.2.1 is twice in paths"));
    assert!(wrong("\"127.0.0.1\"").contains("cannot be a path"));
    assert!(wrong("\"eth1\"").contains("eth1"));
    let many = (1..=9).map(|last| format!("\"192.0.2.{last}\"")).collect::<Vec<_>>().join(", ");
    assert!(wrong(&many).contains("8 paths at most"));
}
