//! What makes a VM movable, put into its persistent definition and taken out again, every other byte as it was: the
//! metadata, the second vNIC, a way to the guest's agent.

use lsm_protocol::Mac;
use roxmltree::Node;

use super::{
    Domain, DomainError, GUEST_CHANNEL, NAMESPACE, child, children, document,
    rewrite::{Edit, apply, escape, value_of},
};
use crate::host::SPARE_BRIDGE;

/// What a VM is given.
pub struct Addition<'a> {
    /// The card in use.
    pub active: Mac,
    /// The LAN that it is on, and its bridge here.
    pub lan: &'a str,
    pub bridge: &'a str,
    /// The second card's address.
    pub spare: Mac,
    /// Whether this host has virtio-vsock for VMs.
    pub vsock: bool,
}

/// `xml` with what it lacks. A VM that has metadata already gets a way to its agent only, where it has none.
///
/// # Errors
/// What [`Domain::parse`] refuses, and an `active` that is none of the VM's cards.
pub fn adopt(xml: &str, addition: &Addition<'_>) -> Result<String, DomainError> {
    let document = document(xml)?;
    let domain = Domain::read(&document)?;
    let root = document.root_element();
    let refuse = |what: String| DomainError::Metadata { vm: domain.name.clone(), what };
    let devices = child(root, "devices").ok_or(DomainError::NotADomain("it has no <devices>"))?;
    let mut edits = Vec::new();
    let mut added = String::new();
    let mut with_vsock = false;
    if !domain.has_channel {
        added.push_str("<channel type='unix'>\n  <target type='virtio' name='org.lsm.guest.0'/>\n</channel>\n");
    }
    if addition.vsock && !domain.has_vsock {
        with_vsock = true;
        added.push_str("<vsock model='virtio'>\n  <cid auto='yes'/>\n</vsock>\n");
    }
    if domain.vnics.is_empty() {
        let card = card(devices, addition.active);
        let card = card.ok_or_else(|| refuse(format!("it has no network card {}", addition.active)))?;
        edits.extend(on_a_bridge(card, addition.bridge, xml));
        added.insert_str(0, &spare(addition.spare));
        let metadata = metadata(addition, with_vsock);
        edits.push(match child(root, "metadata") {
            Some(other) => inside(other, &metadata, xml),
            None => {
                let name = child(root, "name").ok_or(DomainError::NotADomain("it has no <name>"))?;
                beside(name, &format!("<metadata>\n{}</metadata>\n", shifted(&metadata, "  ")), xml)
            }
        });
    }
    if !added.is_empty() {
        // After the last card: libvirt numbers cards in this order, and the guest may name them so.
        edits.push(match children(devices, "interface").last() {
            Some(last) => beside(last, &added, xml),
            None => inside(devices, &added, xml),
        });
    }
    Ok(apply(xml, edits))
}

/// `xml` without what [`adopt`] adds. A card's change to a bridge stays: it is the card in use.
///
/// # Errors
/// What [`Domain::parse`] refuses, and a VM without LSM metadata.
pub fn disown(xml: &str) -> Result<String, DomainError> {
    let document = document(xml)?;
    let domain = Domain::read(&document)?;
    let root = document.root_element();
    let ours = |node: &Node<'_, '_>| node.has_tag_name((NAMESPACE, "vm"));
    let (Some(metadata), false) = (child(root, "metadata"), domain.vnics.is_empty()) else {
        let what = "it has no LSM metadata: there is nothing to undo".to_owned();
        return Err(DomainError::Metadata { vm: domain.name, what });
    };
    let vm = metadata.children().find(ours);
    let added = vm.and_then(|vm| vm.attribute("added")).unwrap_or_default();
    let alone = metadata.children().filter(Node::is_element).count() == 1;
    let mut edits: Vec<Edit> = Vec::new();
    edits.extend(if alone { Some(metadata) } else { vm }.map(|node| without(node, xml)));
    let spares = domain.vnics.iter().filter(|vnic| vnic.lan.is_none()).map(|vnic| vnic.mac);
    for devices in children(root, "devices") {
        let spare = spares
            .clone()
            .filter_map(|mac| card(devices, mac))
            .filter(|card| child(*card, "source").and_then(|source| source.attribute("bridge")) == Some(SPARE_BRIDGE));
        let channel = children(devices, "channel").filter(|channel| {
            child(*channel, "target").and_then(|target| target.attribute("name")) == Some(GUEST_CHANNEL)
        });
        let vsock = children(devices, "vsock").filter(|_| added == "vsock");
        edits.extend(spare.chain(channel).chain(vsock).map(|node| without(node, xml)));
    }
    Ok(apply(xml, edits))
}

fn card<'a, 'input>(devices: Node<'a, 'input>, mac: Mac) -> Option<Node<'a, 'input>> {
    let is = |card: &Node<'_, '_>| {
        child(*card, "mac").and_then(|m| m.attribute("address")?.trim().parse().ok()) == Some(mac)
    };
    children(devices, "interface").find(is)
}

fn spare(mac: Mac) -> String {
    format!(
        "<interface type='bridge'>\n  <mac address='{mac}'/>\n  <source bridge='{SPARE_BRIDGE}'/>\n  <model type='virtio'/>\n</interface>\n"
    )
}

fn metadata(addition: &Addition<'_>, with_vsock: bool) -> String {
    // Read by `disown` alone.
    let added = if with_vsock { " added='vsock'" } else { "" };
    format!(
        "<lsm:vm xmlns:lsm='{NAMESPACE}'{added}>\n  <lsm:vnic mac='{}' lan='{}'/>\n  <lsm:vnic mac='{}'/>\n</lsm:vm>\n",
        addition.active,
        escape(addition.lan),
        addition.spare
    )
}

/// A card on a libvirt network that is a bridge of the host, put on that bridge itself: only those can be plugged
/// elsewhere.
fn on_a_bridge(card: Node<'_, '_>, bridge: &str, xml: &str) -> Vec<Edit> {
    let (Some(kind), Some(source)) = (card.attribute_node("type"), child(card, "source")) else { return Vec::new() };
    if kind.value() == "bridge" {
        return Vec::new();
    }
    vec![
        Edit { at: value_of(kind, xml), instead: "bridge".to_owned() },
        Edit { at: source.range(), instead: format!("<source bridge='{}'/>", escape(bridge)) },
    ]
}

/// Lines after an element, indented as it is.
fn beside(node: Node<'_, '_>, lines: &str, xml: &str) -> Edit {
    let at = node.range().end;
    Edit { at: at..at, instead: format!("\n{}", shifted(lines, indent(node, xml)).trim_end()) }
}

/// Lines at the end of an element, indented one step more than it.
fn inside(node: Node<'_, '_>, lines: &str, xml: &str) -> Edit {
    let indent = indent(node, xml);
    let inner = shifted(lines, &format!("{indent}  "));
    let text = &xml[node.range()];
    match text.rfind("</") {
        // Just behind what is in it, before the white space of the end tag.
        Some(end) => {
            let at = node.range().start + text[..end].trim_end().len();
            Edit { at: at..at, instead: format!("\n{}", inner.trim_end()) }
        }
        None => {
            let name = node.tag_name().name();
            Edit { at: node.range(), instead: format!("<{name}>\n{inner}{indent}</{name}>") }
        }
    }
}

/// Without an element, and without the line break and white space before it.
fn without(node: Node<'_, '_>, xml: &str) -> Edit {
    let start = xml[..node.range().start].trim_end().len();
    Edit { at: start..node.range().end, instead: String::new() }
}

/// What stands before an element in its line, where that is white space.
fn indent<'a>(node: Node<'_, '_>, xml: &'a str) -> &'a str {
    let before = &xml[..node.range().start];
    let line = &before[before.rfind('\n').map_or(0, |newline| newline + 1)..];
    if line.trim().is_empty() { line } else { "" }
}

fn shifted(lines: &str, by: &str) -> String {
    lines.lines().map(|line| format!("{by}{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIVE: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
    const SPARE: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);
    const PLAIN: &str = "<domain type='kvm'>\n  <name>edge</name>\n  <uuid>u</uuid>\n  <devices>\n    <emulator>q</emulator>\n    <interface type='bridge'>\n      <mac address='52:54:00:aa:00:01'/>\n      <source bridge='br0'/>\n    </interface>\n    <graphics type='vnc' passwd='x'/>\n  </devices>\n</domain>\n";

    fn addition(vsock: bool) -> Addition<'static> {
        Addition { active: ACTIVE, lan: "here", bridge: "br0", spare: SPARE, vsock }
    }

    #[test]
    fn a_vm_gets_what_it_lacks_and_loses_it_again() {
        let other =
            PLAIN.replace("  <devices>", "  <metadata>\n    <x:y xmlns:x='urn:x'/>\n  </metadata>\n  <devices>");
        for plain in [PLAIN, &other] {
            for vsock in [false, true] {
                let adopted = adopt(plain, &addition(vsock)).unwrap();
                let domain = Domain::parse(&adopted).unwrap();
                assert_eq!(domain.vnics.len(), 2);
                assert_eq!((domain.vnics[0].mac, domain.vnics[0].lan.as_deref()), (ACTIVE, Some("here")));
                assert_eq!(domain.interface(SPARE).unwrap().bridge.as_deref(), Some(SPARE_BRIDGE));
                assert_eq!((domain.has_channel, domain.has_vsock), (true, vsock));
                assert_eq!(disown(&adopted).unwrap(), plain, "{adopted}");
                assert_eq!(adopt(&adopted, &addition(vsock)).unwrap(), adopted, "twice is once");
            }
        }
        let expected = "    </interface>\n    <interface type='bridge'>\n      <mac address='52:54:00:aa:00:02'/>\n      <source bridge='lsm-spare'/>\n";
        assert!(adopt(PLAIN, &addition(false)).unwrap().contains(expected));
    }

    #[test]
    fn what_the_operator_gave_it_stays() {
        let vsock = PLAIN.replace("    <graphics", "    <vsock><cid auto='yes'/></vsock>\n    <graphics");
        let adopted = adopt(&vsock, &addition(true)).unwrap();
        assert_eq!(adopted.matches("<vsock").count(), 1);
        assert_eq!(disown(&adopted).unwrap(), vsock);
        let own = adopt(PLAIN, &addition(false)).unwrap().replace("bridge='lsm-spare'", "bridge='br9'");
        assert_eq!(Domain::parse(&disown(&own).unwrap()).unwrap().interfaces.len(), 2);
    }

    #[test]
    fn a_card_of_a_network_is_put_on_its_bridge() {
        let network = PLAIN
            .replace("type='bridge'", "type='network'")
            .replace("<source bridge='br0'/>", "<source network='lan' portid='7'/>");
        assert_eq!(adopt(&network, &addition(false)).unwrap(), adopt(PLAIN, &addition(false)).unwrap());
    }

    #[test]
    fn odd_shapes_hold() {
        let empty = PLAIN.replace("  <uuid>", "  <metadata/>\n  <uuid>");
        assert_eq!(Domain::parse(&adopt(&empty, &addition(false)).unwrap()).unwrap().vnics.len(), 2);
        let one_line: String = PLAIN.lines().map(str::trim).collect();
        let adopted = adopt(&one_line, &addition(true)).unwrap();
        assert_eq!(Domain::parse(&adopted).unwrap().vnics.len(), 2);
        assert_eq!(disown(&adopted).unwrap(), one_line);
        assert!(
            adopt(PLAIN, &Addition { active: SPARE, ..addition(false) })
                .unwrap_err()
                .to_string()
                .contains("no network card")
        );
        assert!(disown(PLAIN).unwrap_err().to_string().contains("nothing to undo"));
    }
}
