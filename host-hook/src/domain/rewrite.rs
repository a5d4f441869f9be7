//! The VM's description with its vNICs plugged elsewhere, every other byte as it was: libvirt compares what the guest
//! would see, and what is not touched cannot be broken.

use std::{borrow::Cow, ops::Range};

use lsm_protocol::Mac;
use roxmltree::{Attribute, Node};

use super::{Domain, DomainError, child, document, interfaces, vnic_mac, vnic_nodes};

/// Where a vNIC belongs on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    /// The vNIC.
    pub mac: Mac,
    /// The bridge that its tap goes into.
    pub bridge: String,
    /// What the metadata says afterwards; `None`: spare.
    pub lan: Option<String>,
}

/// One place of the text and what stands there afterwards.
pub(super) struct Edit {
    pub(super) at: Range<usize>,
    pub(super) instead: String,
}

/// `xml` with each vNIC of `plugs` on its new bridge and the metadata saying so. The tap's name is left to libvirt.
///
/// # Errors
/// What [`Domain::parse`] refuses, and a plug for what is not a managed vNIC on a bridge.
pub fn rewrite(xml: &str, plugs: &[Plug]) -> Result<String, DomainError> {
    let document = document(xml)?;
    let domain = Domain::read(&document)?;
    let root = document.root_element();
    let metadata = |what| DomainError::Metadata { vm: domain.name.clone(), what };
    let vnics = vnic_nodes(root).map_err(metadata)?.unwrap_or_default();
    let mut edits = Vec::new();
    for (index, plug) in plugs.iter().enumerate() {
        let refuse = |why: String| DomainError::Plug {
            vm: domain.name.clone(),
            mac: plug.mac,
            bridge: plug.bridge.clone(),
            why,
        };
        if plugs[..index].iter().any(|earlier| earlier.mac == plug.mac) {
            return Err(refuse("it was told twice where to go".into()));
        }
        let vnic = vnics
            .iter()
            .find(|node| vnic_mac(**node) == Ok(plug.mac))
            .ok_or_else(|| refuse("it is not one of the VM's managed vNICs; name it in the metadata".into()))?;
        let (_, card) = interfaces(root)
            .find(|(mac, _)| *mac == plug.mac)
            .ok_or_else(|| refuse("the VM has no such network card".into()))?;
        edits.extend(bridge(card, &plug.bridge, xml).map_err(refuse)?);
        edits.extend(lan(*vnic, plug.lan.as_deref(), xml));
    }
    Ok(apply(xml, edits))
}

fn bridge(card: Node<'_, '_>, bridge: &str, xml: &str) -> Result<Option<Edit>, String> {
    let kind = card.attribute("type").unwrap_or_default();
    if kind != "bridge" {
        return Err(format!(
            "its type is \"{kind}\", and only <interface type='bridge'> can be plugged elsewhere; \
             change it with \"virsh edit\""
        ));
    }
    let attribute = child(card, "source")
        .and_then(|source| source.attribute_node("bridge"))
        .ok_or("it has no <source bridge='…'>; add one with \"virsh edit\"")?;
    Ok((attribute.value() != bridge)
        .then(|| Edit { at: value_of(attribute, xml), instead: escape(bridge).into_owned() }))
}

fn lan(vnic: Node<'_, '_>, lan: Option<&str>, xml: &str) -> Option<Edit> {
    match (vnic.attribute_node("lan"), lan) {
        (Some(old), Some(new)) if old.value() == new => None,
        (Some(old), Some(new)) => Some(Edit { at: value_of(old, xml), instead: escape(new).into_owned() }),
        (Some(old), None) => {
            // With the space before it: going there and back leaves no trace.
            let start = xml[..old.range().start].trim_end_matches([' ', '\t', '\r', '\n']).len();
            Some(Edit { at: start..old.range().end, instead: String::new() })
        }
        (None, Some(new)) => {
            let end = vnic.attribute_node("mac")?.range().end;
            Some(Edit { at: end..end, instead: format!(" lan=\"{}\"", escape(new)) })
        }
        (None, None) => None,
    }
}

/// What is between the attribute's quotes. Found from its end, as roxmltree's own range is off where more than 255 spaces
/// stand around the equals sign.
pub(super) fn value_of(attribute: Attribute<'_, '_>, xml: &str) -> Range<usize> {
    let quote = attribute.range().end - 1;
    let start = xml[..quote].rfind(xml[quote..].chars().next().unwrap_or('"')).map_or(quote, |opening| opening + 1);
    start..quote
}

pub(super) fn apply(xml: &str, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| edit.at.start);
    let mut text = String::with_capacity(xml.len() + edits.iter().map(|edit| edit.instead.len()).sum::<usize>());
    let mut done = 0;
    for edit in edits {
        text.push_str(&xml[done..edit.at.start]);
        text.push_str(&edit.instead);
        done = edit.at.end;
    }
    text.push_str(&xml[done..]);
    text
}

/// Text that may stand in an attribute's value, whichever quotes are around it.
pub(super) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"', '\'', '\t', '\n', '\r']) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            // As they are, they would be read back as spaces (XML 1.0, section 3.3.3).
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            c => escaped.push(c),
        }
    }
    Cow::Owned(escaped)
}
