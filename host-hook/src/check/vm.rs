//! A VM that is to move from here or has come here.

use std::path::Path;

use lsm_protocol::finding::Finding;

use super::nwfilter;
use crate::{
    config::Config,
    domain::{Domain, Interface, Vnic},
    hook,
    host::SPARE_BRIDGE,
    inventory::Vm,
    libvirt::command::virsh,
    status::Status,
    story,
};

pub(super) fn vm(name: &str, config: Option<&Config>) -> Vec<Finding> {
    let xml = match virsh(&["dumpxml", name]) {
        Ok(xml) => xml,
        Err(why) => return vec![Finding::bad("VM", why, "virsh list --all")],
    };
    let running = virsh(&["domstate", name]).is_ok_and(|state| state.trim() == "running");
    let status = if running { status() } else { None };
    let here = status.as_ref().and_then(|status| status.vms.iter().find(|vm| vm.name == name));
    let mut findings = described(name, &xml, here, config, Path::new("/dev/vhost-vsock").exists());
    for card in cards(&xml) {
        findings.extend(nwfilter::in_the_way(name, &card, &|filter| virsh(&["nwfilter-dumpxml", filter])));
    }
    findings.extend(status.as_ref().map(|_| known(name, here.is_some())));
    findings
}

/// The managed cards, with what libvirt filters on them.
fn cards(xml: &str) -> Vec<Interface> {
    let Ok(domain) = Domain::parse(xml) else { return Vec::new() };
    domain.vnics.iter().filter_map(|vnic| domain.interface(vnic.mac).cloned()).collect()
}

/// What its description says. `here`: as the service knows it, where it runs: a move changes which vNIC is on which LAN, and
/// not the description. `vsock`: whether this host has virtio-vsock for VMs.
fn described(name: &str, xml: &str, here: Option<&Vm>, config: Option<&Config>, vsock: bool) -> Vec<Finding> {
    let domain = match Domain::parse(xml) {
        Ok(domain) => domain,
        Err(error) => {
            let fix = format!("virsh metadata {name} urn:lsm:1 --config --live --edit");
            return vec![Finding::bad("metadata", story(&error), fix)];
        }
    };
    let adopt = format!("lsm-hook adopt {name}");
    if domain.vnics.is_empty() {
        return vec![Finding::bad("metadata", format!("VM {name} is none of LSM's: it moves without it"), adopt)];
    }
    let mut findings = vec![Finding::good("metadata", format!("names {} vNICs", domain.vnics.len()))];
    let lan = |vnic: &Vnic| match here.and_then(|vm| vm.vnic(vnic.mac)) {
        Some(now) => now.lan.clone(),
        None => vnic.lan.clone(),
    };
    for vnic in &domain.vnics {
        let Some(card) = domain.interface(vnic.mac) else { continue };
        findings.push(plugged(name, lan(vnic).as_deref(), card, config));
    }
    if domain.vnics.iter().all(|vnic| lan(vnic).is_some()) {
        let found =
            "each vNIC has a LAN: there is no spare for the next site's address until the last move has settled";
        findings.push(Finding::warning("spare vNIC", found, "lsm-hook status"));
    }
    findings.push(match (domain.has_vsock, domain.has_channel, vsock) {
        (true, true, true) => Finding::good("transport", "vsock, and the channel org.lsm.guest.0"),
        (true, false, true) => Finding::good("transport", "vsock"),
        (_, true, _) => Finding::good("transport", "the channel org.lsm.guest.0"),
        (true, false, false) => Finding::bad(
            "transport",
            "a vsock device, and this host has no /dev/vhost-vsock",
            format!("modprobe vhost_vsock  # or: {adopt}"),
        ),
        (false, false, _) => Finding::bad(
            "transport",
            "neither a vsock device nor the channel org.lsm.guest.0: the guest cannot be told",
            adopt,
        ),
    });
    findings
}

fn plugged(vm: &str, lan: Option<&str>, card: &Interface, config: Option<&Config>) -> Finding {
    let what = format!("vNIC {}", card.mac);
    let bridge = card.bridge.as_deref().unwrap_or_default();
    let edit = |change: &str| format!("virsh edit {vm}  # card {}: {change}", card.mac);
    if card.kind != "bridge" || bridge.is_empty() {
        let found = format!("its type is \"{}\": only cards on a bridge can be plugged elsewhere", card.kind);
        return Finding::bad(what, found, edit("<interface type='bridge'><source bridge='…'/>"));
    }
    let Some(lan) = lan else {
        return match config.and_then(|config| config.lan_of_bridge(bridge)) {
            Some((lan, _)) => {
                let found = format!("is spare, and plugged into {bridge}, which is LAN {lan}");
                Finding::bad(what, found, edit(&format!("<source bridge='{SPARE_BRIDGE}'/>")))
            }
            None => Finding::good(what, format!("spare, in {bridge}")),
        };
    };
    match config.map(|config| config.lans.get(lan)) {
        Some(Some(known)) if known.bridge != bridge => {
            let found = format!("is on LAN {lan}, which is bridge {} here, and plugged into {bridge}", known.bridge);
            Finding::bad(what, found, edit(&format!("<source bridge='{}'/>", known.bridge)))
        }
        Some(Some(_)) => Finding::good(what, format!("LAN {lan}, bridge {bridge}")),
        Some(None) if !bridge.starts_with("lsmb") => Finding::bad(
            what,
            format!("is on LAN {lan}, of which host.toml knows nothing"),
            format!(
                "editor /etc/lsm/host.toml  # add [lan.{lan}], or correct: virsh metadata {vm} urn:lsm:1 --config --live --edit"
            ),
        ),
        _ => Finding::good(what, format!("LAN {lan}, by {bridge}")),
    }
}

/// What the service says, if it runs.
fn status() -> Option<Status> {
    serde_json::from_str(&hook::ask("status", "").ok()?.stdout).ok()
}

/// The service learns of a VM when it starts, or by asking libvirt.
fn known(name: &str, knows: bool) -> Finding {
    if knows {
        return Finding::good("service", format!("knows that {name} runs here"));
    }
    let found = format!("does not know that {name} runs here: no host would find it");
    Finding::bad("service", found, "systemctl restart lsm-hook")
}

#[cfg(test)]
mod tests {
    use lsm_protocol::finding::Verdict;

    use super::*;

    const XML: &str = "<domain type='kvm'><name>edge</name><uuid>u</uuid><metadata><vm xmlns='urn:lsm:1'>\
        <vnic mac='52:54:00:aa:00:01' lan='here'/><vnic mac='52:54:00:aa:00:02'/></vm></metadata><devices>\
        <interface type='bridge'><mac address='52:54:00:aa:00:01'/><source bridge='br0'/></interface>\
        <interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='lsm-spare'/></interface>\
        <channel type='unix'><target type='virtio' name='org.lsm.guest.0'/></channel></devices></domain>";

    fn config(test: &str) -> Config {
        let file = std::env::temp_dir().join(format!("lsm-check-vm-{test}-{}", std::process::id()));
        let lan =
            "[lan.here]\nbridge = \"br0\"\nprefix = \"10.9.0.0/24\"\ngateway = \"10.9.0.1\"\npool = \"10.9.0.9\"\n";
        std::fs::write(&file, lan).unwrap();
        let config = Config::load(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        config
    }

    #[test]
    fn what_keeps_a_vm_from_moving_is_found_in_its_description() {
        let config = config("description");
        let bad = |from: &str, to: &str, vsock| {
            assert!(from.is_empty() || XML.contains(from), "{from}");
            let findings = described("edge", &XML.replace(from, to), None, Some(&config), vsock);
            let bad = findings.into_iter().filter(|finding| finding.verdict != Verdict::Good);
            bad.map(|finding| format!("{} {}", finding.what, finding.fix.unwrap_or_default())).collect::<Vec<_>>()
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(bad("", "", false), none);
        assert_eq!(bad("urn:lsm:1", "urn:other", false), ["metadata lsm-hook adopt edge"]);
        assert!(bad("<vnic mac='52:54:00:aa:00:02'/>", "", false)[0].contains("virsh metadata edge"));
        assert!(bad("bridge='br0'", "bridge='br9'", false)[0].ends_with("<source bridge='br0'/>"));
        assert!(bad("bridge='lsm-spare'", "bridge='br0'", false)[0].ends_with("<source bridge='lsm-spare'/>"));
        assert!(bad("lan='here'", "lan='there'", false)[0].contains("add [lan.there]"));
        assert!(
            bad(
                "type='bridge'><mac address='52:54:00:aa:00:01'",
                "type='network'><mac address='52:54:00:aa:00:01'",
                false
            )[0]
            .contains("type='bridge'")
        );
        assert_eq!(bad("aa:00:02'/></vm>", "aa:00:02' lan='here'/></vm>", false).len(), 2);
        assert_eq!(bad("org.lsm.guest.0", "org.other.0", false), ["transport lsm-hook adopt edge"]);
        let vsock = "<vsock><cid auto='yes'/></vsock>";
        assert_eq!(
            bad("<channel type='unix'><target type='virtio' name='org.lsm.guest.0'/></channel>", vsock, true),
            none
        );
        let lacking =
            bad("<channel type='unix'><target type='virtio' name='org.lsm.guest.0'/></channel>", vsock, false);
        assert!(lacking[0].contains("modprobe vhost_vsock"), "{lacking:?}");
    }

    #[test]
    fn after_a_move_the_spare_is_the_one_that_the_service_knows() {
        let moved = XML.replace("aa:00:02'/></vm>", "aa:00:02' lan='here'/></vm>").replace("lsm-spare", "br0");
        let moved = moved.replacen("br0", "lsmb00000007", 1).replace("lan='here'/><vnic", "lan='there'/><vnic");
        let moved = moved.replace("<uuid>u<", "<uuid>00000000-0000-0000-0000-000000000007<");
        let config = config("moved");
        let warned = |here: Option<&Vm>| {
            let findings = described("edge", &moved, here, Some(&config), false);
            findings.iter().any(|finding| finding.verdict == Verdict::Warning)
        };
        let mut here = Vm::of(&Domain::parse(&moved).unwrap(), &config).unwrap();
        assert!(warned(None) && warned(Some(&here)), "not settled");
        here.vnics[0].lan = None;
        assert!(!warned(Some(&here)));
    }
}
