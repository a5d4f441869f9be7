//! The LANs of the file: what each is by itself, and that they go together.

use std::{collections::BTreeMap, net::IpAddr};

use toml::{Spanned, Value};

use super::{
    super::{Addressing, DEFAULT_LAN_MTU, Lan, Pool, Prefix, Subnet, Wrong, is_lan_name},
    Checked, address_of, at, bridge_name,
    file::{self, Text},
    mtu_of, text, wrong,
};

pub(super) fn lans(written: &BTreeMap<Text, file::Lan>) -> Checked<BTreeMap<String, Lan>> {
    let mut lans: BTreeMap<String, Lan> = BTreeMap::new();
    // In the order of the file, so that the later of two that disagree is the one found wrong.
    let mut in_order: Vec<_> = written.iter().collect();
    in_order.sort_by_key(|(name, _)| name.span().start);
    for (name, file) in in_order.iter().copied() {
        let lan = lan(name, file)?;
        for (other, earlier) in &lans {
            if earlier.bridge == lan.bridge {
                return wrong(
                    at(&file.bridge, name),
                    format!("bridge {} is LAN {other} already; a bridge is one LAN", lan.bridge),
                );
            }
            let shared = earlier.subnets.iter().flat_map(|a| lan.subnets.iter().map(move |b| (a, b)));
            if let Some(shared) = shared.filter_map(|(a, b)| a.pool.shared_with(&b.pool)).next() {
                return wrong(
                    at(&file.pool, name),
                    format!("the pools of {other} and {} both hold {shared}; take it out of one", name.get_ref()),
                );
            }
        }
        lans.insert(name.get_ref().clone(), lan);
    }
    one_offered(&in_order, &mut lans)?;
    Ok(lans)
}

/// Which LAN's addresses a VM gets that comes from elsewhere: nothing but the operator's word says it where there are
/// several. The only one is offered by itself.
fn one_offered(written: &[(&Text, &file::Lan)], lans: &mut BTreeMap<String, Lan>) -> Checked<()> {
    let said = |file: &file::Lan| file.offer.as_ref().map(|offer| *offer.get_ref());
    let mut offered = written.iter().filter(|(_, file)| said(file) == Some(true));
    if let (Some((first, _)), Some((name, second))) = (offered.next(), offered.next()) {
        return wrong(
            at(&second.offer, name),
            format!("LAN {} is offered already; VMs that arrive get an address of one LAN", first.get_ref()),
        );
    }
    let open: Vec<&Text> = written.iter().filter(|(_, file)| said(file).is_none()).map(|(name, _)| *name).collect();
    match (lans.values().any(|lan| lan.offer), &open[..]) {
        (true, _) | (false, []) => Ok(()),
        (false, [only]) => {
            lans.entry(only.get_ref().clone()).and_modify(|lan| lan.offer = true);
            Ok(())
        }
        (false, [first, second, ..]) => wrong(
            second.span(),
            format!(
                "VMs that arrive could get an address of LAN {} or of {}; add offer = true to the one, or offer = false to the others",
                first.get_ref(),
                second.get_ref()
            ),
        ),
    }
}

fn lan(name: &Text, file: &file::Lan) -> Checked<Lan> {
    let called = name.get_ref();
    if !is_lan_name(called) {
        return wrong(
            name.span(),
            format!("\"{called}\" cannot be a LAN's name; use up to 63 letters, digits, \"-\", \"_\" and \".\""),
        );
    }
    let missing = |key: &str, like: &str| Wrong {
        at: name.span().start,
        what: format!("LAN {called} has no {key}; add {key} = {like}"),
    };
    let bridge = file.bridge.as_ref().ok_or_else(|| missing("bridge", "\"br0\""))?;
    let bridge = text(bridge, bridge_name)?;
    let prefixes = file.prefix.as_ref().ok_or_else(|| missing("prefix", "\"10.1.0.0/24\""))?;
    let word = file.addressing.as_ref().map(|word| *word.get_ref()).unwrap_or_default();
    let (subnets, addressing) = if word == file::Addressing::Static {
        let gateways = file.gateway.as_ref().ok_or_else(|| missing("gateway", "\"10.1.0.1\""))?;
        let pool = file.pool.as_ref().ok_or_else(|| missing("pool", "\"10.1.0.100-10.1.0.199\""))?;
        (subnets(prefixes, gateways, pool)?, Addressing::Static)
    } else {
        if file.gateway.is_some() || file.pool.is_some() {
            let what = "the LAN itself gives gateway and addresses there; leave out gateway and pool, or addressing";
            return wrong(at(&file.addressing, name), what);
        }
        (Vec::new(), obtained(word, prefixes)?)
    };
    let mtu = match &file.mtu {
        Some(mtu) => {
            let bytes = i64::from(*mtu.get_ref());
            // The last one's family demands most.
            let families = [subnets.last().map(|subnet| subnet.gateway), addressing.last_family()];
            families.into_iter().flatten().last().map_or(Ok(DEFAULT_LAN_MTU), |any| mtu_of(bytes, any, mtu.span()))?
        }
        None => DEFAULT_LAN_MTU,
    };
    Ok(Lan { bridge, subnets, mtu, addressing, offer: file.offer.as_ref().is_some_and(|offer| *offer.get_ref()) })
}

/// The prefixes say which addresses the LAN is expected to give.
fn obtained(word: file::Addressing, written: &Spanned<Value>) -> Checked<Addressing> {
    let all: Result<Vec<Prefix>, String> =
        texts("prefix", "10.1.0.0/24", written)?.into_iter().map(str::parse).collect();
    let all = all.or_else(|what| wrong(written.span(), what))?;
    let (mut dhcp, mut slaac) = (None, None);
    for prefix in &all {
        let prefix_len = prefix.length();
        match prefix.address() {
            IpAddr::V4(address) => dhcp = Some(lsm_protocol::Subnet { address, prefix_len }),
            IpAddr::V6(_) if prefix_len != 64 => {
                return wrong(written.span(), format!("of {prefix} no VM makes an address: slaac needs a /64"));
            }
            IpAddr::V6(address) => slaac = Some(lsm_protocol::Subnet { address, prefix_len }),
        }
    }
    let needed = match word {
        file::Addressing::Dhcp => "one of IPv4",
        file::Addressing::Slaac => "one of IPv6",
        _ => "one of IPv4 and one of IPv6",
    };
    let (v4, v6) = (word != file::Addressing::Slaac, word != file::Addressing::Dhcp);
    if (dhcp.is_some(), slaac.is_some()) != (v4, v6) || all.len() != usize::from(v4) + usize::from(v6) {
        return wrong(written.span(), format!("this addressing needs {needed}, and no other prefix"));
    }
    Ok(Addressing::Obtained { dhcp, slaac })
}

/// One of each family at most; IPv4 first. The family says which gateway and which part of the pool goes with which prefix.
fn subnets(prefixes: &Spanned<Value>, gateways: &Spanned<Value>, pool: &Spanned<Value>) -> Checked<Vec<Subnet>> {
    let written = texts("prefix", "10.1.0.0/24", prefixes)?;
    let all: Result<Vec<Prefix>, String> = written.into_iter().map(str::parse).collect();
    let mut all = all.or_else(|what| wrong(prefixes.span(), what))?;
    let routers: Result<Vec<IpAddr>, String> =
        texts("gateway", "10.1.0.1", gateways)?.into_iter().map(address_of).collect();
    let routers = routers.or_else(|what| wrong(gateways.span(), what))?;
    let given = Pool::parse(&texts("pool", "10.1.0.100-10.1.0.199", pool)?).or_else(|what| wrong(pool.span(), what))?;
    all.sort_by_key(|prefix| !prefix.address().is_ipv4());
    let of = |v4| all.iter().filter(|prefix| prefix.address().is_ipv4() == v4).count();
    if !matches!((of(true), of(false)), (1, 0) | (0, 1) | (1, 1)) {
        return wrong(prefixes.span(), "a LAN has one prefix of IPv4, one of IPv6, or one of each");
    }
    for gateway in &routers {
        if !all.iter().any(|prefix| prefix.address().is_ipv4() == gateway.is_ipv4()) {
            let prefix = all.first().map(ToString::to_string).unwrap_or_default();
            let what =
                format!("gateway {gateway} and prefix {prefix} are of different families; use IPv4 or IPv6 for both");
            return wrong(gateways.span(), what);
        }
    }
    for (first, _) in given.ranges() {
        if let (false, Some(prefix)) =
            (all.iter().any(|prefix| prefix.address().is_ipv4() == first.is_ipv4()), all.first())
        {
            let what = format!(
                "pool address {first} and prefix {prefix} are of different families; use IPv4 or IPv6 for both"
            );
            return wrong(pool.span(), what);
        }
    }
    all.into_iter().map(|prefix| subnet(prefix, (&routers, gateways), (&given, pool))).collect()
}

fn subnet(
    prefix: Prefix,
    (routers, gateways): (&[IpAddr], &Spanned<Value>),
    (given, written_pool): (&Pool, &Spanned<Value>),
) -> Checked<Subnet> {
    let v4 = prefix.address().is_ipv4();
    let mut routers = routers.iter().filter(|gateway| gateway.is_ipv4() == v4);
    let gateway = match (routers.next(), routers.next()) {
        (Some(gateway), None) => *gateway,
        (None, _) => return wrong(gateways.span(), format!("prefix {prefix} has no gateway; add one of its family")),
        (Some(first), Some(second)) => {
            let what = format!("gateways {first} and {second} are both of {prefix}; name the one that VMs are to use");
            return wrong(gateways.span(), what);
        }
    };
    // A router is known by its link-local address too (RFC 4861, 4.2).
    let is_link_local = matches!(gateway, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if !is_link_local {
        usable(&prefix, gateway).or_else(|why| wrong(gateways.span(), format!("gateway {gateway} {why}")))?;
    }
    let Some(pool) = given.of_family(v4) else {
        return wrong(written_pool.span(), format!("the pool has no address of {prefix}; name those that VMs may get"));
    };
    for &(first, last) in pool.ranges() {
        for end in [first, last] {
            usable(&prefix, end).or_else(|why| wrong(written_pool.span(), format!("pool address {end} {why}")))?;
        }
    }
    if pool.contains(gateway) {
        let what = format!("the pool would give the gateway's address {gateway} to a VM; leave it out");
        return wrong(written_pool.span(), what);
    }
    Ok(Subnet { prefix, gateway, pool })
}

/// A text, or a list of such.
fn texts<'a>(key: &str, like: &str, written: &'a Spanned<Value>) -> Checked<Vec<&'a str>> {
    let texts: Option<Vec<&str>> = match written.get_ref() {
        Value::String(one) => Some(vec![one]),
        Value::Array(many) => many.iter().map(Value::as_str).collect(),
        _ => None,
    };
    texts.map_or_else(
        || wrong(written.span(), format!("{key} is neither a text like \"{like}\" nor a list of such")),
        Ok,
    )
}

fn usable(prefix: &Prefix, address: IpAddr) -> Result<(), String> {
    if !prefix.contains(address) {
        return Err(format!("is outside {prefix}; correct one of them"));
    }
    prefix.reserved(address).map_or(Ok(()), |what| Err(format!("is {what} of {prefix}; use another")))
}
