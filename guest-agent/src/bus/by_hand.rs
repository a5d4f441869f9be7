//! Addresses as an operator writes them, for a preparation by hand.

use std::net::IpAddr;

use lsm_protocol::{Addressing, Given, V4, V6};

/// `addresses`: one of each family at most, like `10.2.0.7/24` and `2001:db8:2::7/64`, or `dhcp` and `slaac` for those that
/// are to be got. Each that is written out needs a gateway of its family.
pub(super) fn addressing(addresses: &[String], gateways: &[String]) -> Result<Addressing, String> {
    let parse = |text: &String| text.parse().map_err(|e| format!("gateway {text:?}: {e}"));
    let mut gateways: Vec<IpAddr> = gateways.iter().map(parse).collect::<Result<_, _>>()?;
    let mut given = Vec::new();
    for text in addresses.iter().filter(|text| !matches!(text.as_str(), "dhcp" | "slaac")) {
        given.push(read(text, &mut gateways)?);
    }
    if let Some(left) = gateways.first() {
        return Err(format!("gateway {left} goes with none of the addresses"));
    }
    let (dhcp, slaac) = (addresses.iter().any(|text| text == "dhcp"), addresses.iter().any(|text| text == "slaac"));
    for (family, v4, got) in [("IPv4", true, dhcp), ("IPv6", false, slaac)] {
        if given.iter().filter(|one: &&Given<IpAddr>| one.address.is_ipv4() == v4).count() + usize::from(got) > 1 {
            return Err(format!("more than one {family} address; say one of each family at most"));
        }
    }
    let mut all: Addressing = given.into_iter().collect();
    if dhcp {
        all.v4 = V4::Dhcp(None);
    }
    if slaac {
        all.v6 = V6::Slaac(None);
    }
    Ok(all)
}

fn read(text: &str, gateways: &mut Vec<IpAddr>) -> Result<Given<IpAddr>, String> {
    let (address, prefix) =
        text.split_once('/').ok_or_else(|| format!("{text:?} has no prefix length: say 10.2.0.7/24"))?;
    let address: IpAddr = address.parse().map_err(|e| format!("{address:?}: {e}"))?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = prefix.parse().ok().filter(|length| (1..=most).contains(length));
    let prefix_len = prefix_len.ok_or_else(|| format!("prefix length {prefix:?} is not from 1 to {most}"))?;
    let at = gateways.iter().position(|gateway| gateway.is_ipv4() == address.is_ipv4());
    let gateway = at.map(|at| gateways.remove(at)).ok_or_else(|| format!("{address} has no gateway of its family"))?;
    Ok(Given { address, prefix_len, gateway })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(addresses: &[&str], gateways: &[&str]) -> Result<Addressing, String> {
        let [addresses, gateways] = [addresses, gateways].map(|all| all.iter().map(|&text| text.to_owned()).collect());
        let (addresses, gateways): (Vec<String>, Vec<String>) = (addresses, gateways);
        addressing(&addresses, &gateways)
    }

    #[test]
    fn both_families_in_any_order_and_nothing_that_does_not_go_together() {
        let both = of(&["2001:db8::7/64", "10.2.0.7/24"], &["10.2.0.1", "fe80::1"]).unwrap();
        let given: Vec<_> = both.given().map(|one| (one.address, one.prefix_len, one.gateway)).collect();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = [(ip("10.2.0.7"), 24, ip("10.2.0.1")), (ip("2001:db8::7"), 64, ip("fe80::1"))];
        assert_eq!(given, expected);
        assert_eq!(of(&["dhcp", "slaac"], &[]).unwrap(), Addressing { v4: V4::Dhcp(None), v6: V6::Slaac(None) });
        for (addresses, gateways, told) in [
            (&["10.2.0.7"][..], &["10.2.0.1"][..], "no prefix length"),
            (&["10.2.0.7/33"], &["10.2.0.1"], "not from 1 to 32"),
            (&["10.2.0.7/0"], &["10.2.0.1"], "not from 1 to 32"),
            (&["10.2.0.7/24"], &["fe80::1"], "10.2.0.7 has no gateway of its family"),
            (&["10.2.0.7/24"], &["10.2.0.1", "10.2.0.2"], "gateway 10.2.0.2 goes with none"),
            (&["10.2.0.7/24", "10.2.0.8/24"], &["10.2.0.1", "10.2.0.2"], "more than one IPv4 address"),
            (&["10.2.0.7/24", "dhcp"], &["10.2.0.1"], "more than one IPv4 address"),
            (&["dhcp"], &["10.2.0.1"], "goes with none"),
            (&["x/24"], &["10.2.0.1"], "\"x\""),
            (&["10.2.0.7/24"], &["y"], "gateway \"y\""),
        ] {
            let error = of(addresses, gateways).unwrap_err();
            assert!(error.contains(told), "{addresses:?} {gateways:?}: {error}");
        }
    }
}
