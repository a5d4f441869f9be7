//! What the operator of a lab's host wrote.

use super::StageOptions;
use crate::{
    family::Family,
    lan,
    topology::{SitePlan, Topology},
};

/// What `[lan.NAME]` says of addresses.
fn addressing(site: &SitePlan, word: &str, family: Family) -> String {
    let (v4, v6) = (format!("\"{}/24\"", site.address(0)), format!("\"{}/64\"", lan::prefix(site)));
    match word {
        "static" => {
            let of = |v4: String, v6: String| {
                let both = [(family.v4(), v4), (family.v6(), v6)].into_iter().filter(|(spoken, _)| *spoken);
                both.map(|(_, text)| format!("\"{text}\"")).collect::<Vec<_>>().join(", ")
            };
            let prefix = of(format!("{}/24", site.address(0)), format!("{}/64", lan::prefix(site)));
            let gateway = of(site.gateway.to_string(), site.gateway6().to_string());
            let pool = of(
                format!("{}-{}", site.address(100), site.address(199)),
                format!("{}-{}", site.address6(100), site.address6(199)),
            );
            format!("prefix = [{prefix}]\ngateway = [{gateway}]\npool = [{pool}]\n")
        }
        "dhcp" => format!("prefix = {v4}\naddressing = \"{word}\"\n"),
        "slaac" => format!("prefix = {v6}\naddressing = \"{word}\"\n"),
        _ => format!("prefix = [{v4}, {v6}]\naddressing = \"{word}\"\n"),
    }
}

pub(super) fn text(topology: &Topology, name: &str, options: &StageOptions) -> String {
    let site = topology.site(name);
    let policy = &options.policy;
    let mut text = format!(
        "name = \"{name}\"\n\n[tunnel]\naddress = \"{wan}\"\n\n[lan.{name}]\nbridge = \"{bridge}\"\n{addressing}",
        wan = site.wan,
        bridge = site.bridge,
        addressing = addressing(site, &options.addressing, options.topology.family),
    );
    for peer in topology.sites().iter().filter(|peer| peer.name != name) {
        text.push_str(&format!("\n[peer.{}]\naddress = \"{}\"\n", peer.name, peer.wan_port(16519)));
    }
    text.push_str(&format!("\n[policy]\n{policy}\n"));
    // The machine's own directories are no place for a lab's history.
    text.push_str("\n[reports]\nhistory = \"/run/lsm-history\"\nmetrics = \"/run/lsm-metrics\"\n");
    text
}
