//! libvirt's network filters against spoofing: some let a card use one address only, and the next site's is another.

use std::collections::BTreeSet;

use lsm_protocol::finding::Finding;
use roxmltree::Document;

use crate::domain::Interface;

/// Filters that libvirt ships and that drop frames from addresses which a card did not have first.
const ONE_ADDRESS: [&str; 4] = ["no-ip-spoofing", "no-arp-spoofing", "no-arp-ip-spoofing", "no-ipv6-spoofing"];
/// No filter includes others this deep.
const DEEPEST: usize = 16;

/// `ask`: the description of a filter, by its name.
pub(super) fn in_the_way(vm: &str, card: &Interface, ask: &dyn Fn(&str) -> Result<String, String>) -> Option<Finding> {
    let filter = card.filter.as_deref()?;
    let what = format!("filter {}", card.mac);
    let mut within = BTreeSet::new();
    if let Err(why) = gather(filter, ask, &mut within, DEEPEST) {
        return Some(Finding::warning(what, format!("cannot read the filter {filter}: {why}"), "virsh nwfilter-list"));
    }
    let blocking: Vec<&str> = ONE_ADDRESS.into_iter().filter(|name| within.contains(*name)).collect();
    if blocking.is_empty() {
        return Some(Finding::good(what, format!("{filter} does not tie the card to an address")));
    }
    let found = format!(
        "{filter} ({}) lets the card use its first address only: frames from the next site's are dropped",
        blocking.join(", ")
    );
    let fix = format!(
        "virsh edit {vm}  # card {}: take out <filterref filter='{filter}'/>, or use clean-traffic's parts without {}",
        card.mac,
        blocking.join(", ")
    );
    Some(Finding::bad(what, found, fix))
}

/// The filter's name and those of all that it includes.
fn gather(
    filter: &str,
    ask: &dyn Fn(&str) -> Result<String, String>,
    within: &mut BTreeSet<String>,
    depth: usize,
) -> Result<(), String> {
    if depth == 0 || !within.insert(filter.to_owned()) {
        return Ok(());
    }
    let xml = ask(filter)?;
    let document = Document::parse(&xml).map_err(|error| error.to_string())?;
    let included = document.root_element().children().filter(|node| node.has_tag_name("filterref"));
    included.filter_map(|node| node.attribute("filter")).try_for_each(|name| gather(name, ask, within, depth - 1))
}

#[cfg(test)]
mod tests {
    use lsm_protocol::{Mac, finding::Verdict};

    use super::*;

    #[test]
    fn a_filter_is_judged_by_all_that_it_includes() {
        let card = |filter: Option<&str>| Interface {
            mac: Mac([2; 6]),
            kind: "bridge".into(),
            bridge: None,
            network: None,
            tap: None,
            mtu: None,
            model: None,
            filter: filter.map(str::to_owned),
        };
        let ask = |name: &str| {
            let includes: &[&str] = match name {
                "ours" => &["clean-traffic"],
                "clean-traffic" => &["no-mac-spoofing", "no-ip-spoofing", "ours"],
                "gone" => return Err("no filter gone".to_owned()),
                _ => &[],
            };
            let includes = includes.iter().map(|name| format!("<filterref filter='{name}'/>")).collect::<String>();
            Ok(format!("<filter name='{name}'>{includes}<rule action='drop'/></filter>"))
        };
        let judge = |filter| in_the_way("vm", &card(filter), &ask);
        assert_eq!(judge(None), None);
        assert_eq!(judge(Some("no-mac-spoofing")).unwrap().verdict, Verdict::Good);
        assert_eq!(judge(Some("gone")).unwrap().verdict, Verdict::Warning);
        let bad = judge(Some("ours")).unwrap();
        assert_eq!(bad.verdict, Verdict::Bad);
        assert!(bad.found.contains("ours (no-ip-spoofing)") && bad.fix.unwrap().starts_with("virsh edit vm"));
    }
}
