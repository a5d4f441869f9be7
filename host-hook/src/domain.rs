//! What LSM needs to know of a VM, from its domain XML. The XML itself is never kept, printed or logged: it can hold
//! passwords.

mod adopt;
mod rewrite;

use std::path::PathBuf;

use lsm_protocol::Mac;
use roxmltree::{Document, Node};

pub use self::{
    adopt::{Addition, adopt, disown},
    rewrite::{Plug, rewrite},
};
use crate::config::is_lan_name;

/// The namespace of LSM's metadata. libvirt keeps the element as it is, whatever the prefix.
const NAMESPACE: &str = "urn:lsm:1";
/// The virtio-serial port that the guest agent listens on.
const GUEST_CHANNEL: &str = "org.lsm.guest.0";
/// The move needs a vNIC for the old address and one for the new.
const FEWEST_VNICS: usize = 2;

/// A VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// libvirt's name of it.
    pub name: String,
    /// libvirt's id of it, as text.
    pub uuid: String,
    /// The vNICs that LSM manages, in the order of the metadata. Empty where the VM has no LSM metadata: the search of
    /// [`has_metadata`] can be fooled, a parser cannot.
    pub vnics: Vec<Vnic>,
    /// Every network card of the VM.
    pub interfaces: Vec<Interface>,
    /// Whether it has the guest agent's virtio-serial port, running or not.
    pub has_channel: bool,
    /// The host's end of the guest agent's virtio-serial port: a Unix socket. In the XML of `migrate begin` it is the
    /// source's.
    pub guest_channel: Option<PathBuf>,
    /// Whether it has a vsock device, with an address yet or not.
    pub has_vsock: bool,
    /// The guest's address on vsock.
    pub vsock_cid: Option<u32>,
    /// Disks of this host that libvirt copies where it is told to copy storage, by their names in the VM (`vda`).
    pub disks: Vec<String>,
}

impl Domain {
    /// The network card with this address.
    pub fn interface(&self, mac: Mac) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.mac == mac)
    }
}

/// A vNIC that LSM manages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vnic {
    /// Which network card it is.
    pub mac: Mac,
    /// The LAN that it belongs to; `None`: spare.
    pub lan: Option<String>,
}

/// A network card of the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its Ethernet address.
    pub mac: Mac,
    /// libvirt's type: `bridge`, `network`, `ethernet`, …
    pub kind: String,
    /// The bridge that it is plugged into.
    pub bridge: Option<String>,
    /// The libvirt network that it is plugged into instead.
    pub network: Option<String>,
    /// The tap on the host. Changes with every migration.
    pub tap: Option<String>,
    /// The MTU that libvirt tells the guest, in bytes.
    pub mtu: Option<u32>,
    /// What the guest sees: `virtio`, …
    pub model: Option<String>,
    /// libvirt's network filter on it.
    pub filter: Option<String>,
}

/// The XML cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DomainError {
    /// It is not well-formed, or has a DTD.
    #[error("libvirt's description of the VM is not XML that can be read; look at it with \"virsh dumpxml\"")]
    NotXml(#[source] roxmltree::Error),
    /// It describes something else.
    #[error("not a description of a VM: {0}; was it meant for another hook?")]
    NotADomain(&'static str),
    /// The metadata is not what it should be.
    #[error("VM {vm}: {what}; correct it with \"virsh metadata {vm} urn:lsm:1 --edit\"")]
    Metadata {
        /// The VM's name.
        vm: String,
        /// What is wrong.
        what: String,
    },
    /// A vNIC cannot be plugged where it should be.
    #[error("VM {vm}: cannot plug vNIC {mac} into bridge {bridge}: {why}")]
    Plug {
        /// The VM's name.
        vm: String,
        /// The vNIC.
        mac: Mac,
        /// Where to.
        bridge: String,
        /// Why not, and what to do.
        why: String,
    },
}

/// Whether the XML may have LSM metadata: a search for the namespace that costs next to nothing, for VMs that are none
/// of LSM's business. libvirt writes the namespace in plain letters, so that `false` is certain; `true` is not.
pub fn has_metadata(xml: &[u8]) -> bool {
    let namespace = NAMESPACE.as_bytes();
    xml.windows(namespace.len()).any(|window| window == namespace)
}

impl Domain {
    /// Reads libvirt's description of a VM.
    ///
    /// # Errors
    /// For XML that is not a domain's, and metadata that contradicts it or itself.
    pub fn parse(xml: &str) -> Result<Self, DomainError> {
        Self::read(&document(xml)?)
    }

    fn read(document: &Document<'_>) -> Result<Self, DomainError> {
        let root = document.root_element();
        if !root.has_tag_name("domain") {
            return Err(DomainError::NotADomain("its root is not <domain>"));
        }
        let name = text(root, "name").ok_or(DomainError::NotADomain("it has no <name>"))?;
        let uuid = text(root, "uuid").ok_or(DomainError::NotADomain("it has no <uuid>"))?;
        let interfaces: Vec<_> = interfaces(root).map(|(mac, node)| interface(mac, node)).collect();
        let vnics = vnics(root)
            .and_then(|vnics| vnics.map_or(Ok(Vec::new()), |vnics| agree(vnics, &interfaces)))
            .map_err(|what| DomainError::Metadata { vm: name.clone(), what })?;
        let devices = || children(root, "devices");
        let channel = devices()
            .flat_map(|d| children(d, "channel"))
            .find(|c| child(*c, "target").and_then(|t| t.attribute("name")) == Some(GUEST_CHANNEL))
            .filter(|c| c.attribute("type") == Some("unix"));
        let guest_channel = channel.and_then(|c| child(c, "source")?.attribute("path")).map(PathBuf::from);
        let vsock = || devices().flat_map(|d| children(d, "vsock"));
        let vsock_cid = vsock().find_map(|v| child(v, "cid")?.attribute("address")?.trim().parse().ok());
        let disks = devices()
            .flat_map(|d| children(d, "disk"))
            .filter(|disk| matches!(disk.attribute("device"), None | Some("disk")))
            .filter(|disk| matches!(disk.attribute("type"), Some("file" | "block")))
            .filter(|disk| child(*disk, "readonly").is_none() && child(*disk, "shareable").is_none())
            .filter_map(|disk| Some(child(disk, "target")?.attribute("dev")?.to_owned()))
            .collect();
        Ok(Self {
            name,
            uuid,
            vnics,
            interfaces,
            has_channel: channel.is_some(),
            guest_channel,
            has_vsock: vsock().next().is_some(),
            vsock_cid,
            disks,
        })
    }
}

fn document(xml: &str) -> Result<Document<'_>, DomainError> {
    // roxmltree refuses a DTD unless told otherwise: entities could grow the text without bound.
    Document::parse(xml).map_err(DomainError::NotXml)
}

fn children<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> impl Iterator<Item = Node<'a, 'input>> {
    node.children().filter(move |n| n.has_tag_name(name) && n.tag_name().namespace().is_none())
}

fn child<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

/// The text of a child, whatever comments are in it.
fn text(node: Node<'_, '_>, name: &'static str) -> Option<String> {
    let pieces = child(node, name)?.children().filter(Node::is_text);
    let text = pieces.filter_map(|piece| piece.text()).collect::<String>().trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The network cards that have an address: all, in what libvirt hands to a hook.
fn interfaces<'a, 'input>(root: Node<'a, 'input>) -> impl Iterator<Item = (Mac, Node<'a, 'input>)> {
    children(root, "devices")
        .flat_map(|devices| children(devices, "interface"))
        .filter_map(|node| Some((child(node, "mac")?.attribute("address")?.trim().parse().ok()?, node)))
}

fn interface(mac: Mac, node: Node<'_, '_>) -> Interface {
    let attribute = |element, name: &str| child(node, element).and_then(|n| n.attribute(name)).map(str::to_owned);
    Interface {
        mac,
        kind: node.attribute("type").unwrap_or_default().to_owned(),
        bridge: attribute("source", "bridge"),
        network: attribute("source", "network"),
        tap: attribute("target", "dev"),
        mtu: attribute("mtu", "size").and_then(|size| size.trim().parse().ok()),
        model: attribute("model", "type"),
        filter: attribute("filterref", "filter"),
    }
}

/// LSM's metadata elements: `<vnic>` in `<vm>` in the domain's own `<metadata>`; `None` where there is no `<vm>`.
fn vnic_nodes<'a, 'input>(root: Node<'a, 'input>) -> Result<Option<Vec<Node<'a, 'input>>>, String> {
    let mut vms = children(root, "metadata").flat_map(|m| m.children()).filter(|n| n.has_tag_name((NAMESPACE, "vm")));
    let Some(vm) = vms.next() else { return Ok(None) };
    if vms.next().is_some() {
        return Err("its metadata has LSM's <vm> element twice".into());
    }
    Ok(Some(vm.children().filter(|n| n.has_tag_name((NAMESPACE, "vnic"))).collect()))
}

fn vnic_mac(node: Node<'_, '_>) -> Result<Mac, String> {
    let mac = node.attribute("mac").ok_or("its metadata has a <vnic> without mac")?;
    mac.trim().parse().map_err(|not_a_mac| format!("its metadata names vNIC \"{mac}\": {not_a_mac}"))
}

fn vnics(root: Node<'_, '_>) -> Result<Option<Vec<Vnic>>, String> {
    let Some(nodes) = vnic_nodes(root)? else { return Ok(None) };
    let mut vnics: Vec<Vnic> = Vec::new();
    for node in nodes {
        let mac = vnic_mac(node)?;
        let lan = node.attribute("lan").filter(|lan| !lan.is_empty());
        if let Some(bad) = lan.filter(|lan| !is_lan_name(lan)) {
            return Err(format!(
                "its metadata puts vNIC {mac} on LAN \"{bad}\", which cannot be a LAN's name (letters, digits, \"-\", \
                 \"_\", \".\")"
            ));
        }
        if vnics.iter().any(|earlier| earlier.mac == mac) {
            return Err(format!("its metadata names vNIC {mac} twice"));
        }
        vnics.push(Vnic { mac, lan: lan.map(str::to_owned) });
    }
    Ok(Some(vnics))
}

fn agree(vnics: Vec<Vnic>, interfaces: &[Interface]) -> Result<Vec<Vnic>, String> {
    for Vnic { mac, .. } in &vnics {
        match interfaces.iter().filter(|interface| interface.mac == *mac).count() {
            1 => {}
            0 if interfaces.is_empty() => {
                return Err(format!("its metadata names vNIC {mac}, and the VM has no network card"));
            }
            0 => {
                let has = interfaces.iter().map(|i| i.mac.to_string()).collect::<Vec<_>>().join(", ");
                return Err(format!("its metadata names vNIC {mac}, which it does not have; it has {has}"));
            }
            // A failover pair has one address for two cards: nobody could tell which is meant.
            _ => return Err(format!("its metadata names vNIC {mac}, and more than one network card has that address")),
        }
    }
    if vnics.len() < FEWEST_VNICS {
        return Err(format!(
            "its metadata names {} vNIC{}; {FEWEST_VNICS} at least are needed: one for the old address, one for the new",
            vnics.len(),
            if vnics.len() == 1 { "" } else { "s" }
        ));
    }
    Ok(vnics)
}

#[cfg(test)]
mod tests;
