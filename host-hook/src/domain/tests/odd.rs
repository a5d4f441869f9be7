//! XML that libvirt would never write and any XML parser must read: rewritten, it is what a template says, byte for byte.

use proptest::{prelude::*, sample::select};

use super::*;

/// How one attribute is written.
#[derive(Clone, Debug)]
struct Style {
    before: &'static str,
    equals: &'static str,
    quote: char,
}

/// How a domain is written; what it says is separate.
#[derive(Clone, Debug)]
struct Shape {
    prefix: &'static str,
    attributes: Vec<Style>,
    noise: Vec<&'static str>,
    lan_first: bool,
    source_first: bool,
    childless: bool,
    spell: bool,
}

/// What it says: per vNIC the bridge and the LAN.
type Says = [(String, Option<String>); 2];

fn attribute(style: &Style, name: &str, value: &str) -> String {
    let Style { before, equals, quote } = style;
    format!("{before}{name}{equals}{quote}{value}{quote}")
}

impl Shape {
    /// `fresh[i]`: the rewriter's own way of writing a LAN where there was none.
    fn render(&self, says: &Says, fresh: [bool; 2], untouched: &Says) -> String {
        let noise = |i: usize| self.noise[i % self.noise.len()];
        let style = |i: usize| &self.attributes[i % self.attributes.len()];
        // Letters may be written as character references; only in what is not rewritten.
        let value = |now: &str, before: &str| {
            if self.spell && now == before && !now.is_empty() {
                let mut chars = now.chars();
                let first = chars.next().map_or(String::new(), |c| format!("&#x{:X};", u32::from(c)));
                first + chars.as_str()
            } else {
                now.to_owned()
            }
        };
        let element = |name: &str, attributes: String| {
            if self.childless { format!("<{name}{attributes}></{name}>") } else { format!("<{name}{attributes} />") }
        };
        let p = if self.prefix.is_empty() { String::new() } else { format!("{}:", self.prefix) };
        let xmlns = if p.is_empty() { "xmlns".to_owned() } else { format!("xmlns:{}", self.prefix) };
        let macs = ["52:54:00:aa:00:01", "52:54:00:AA:00:02"];
        let vnics: String = (0..2)
            .map(|i| {
                let mac = attribute(style(i), "mac", macs[i]);
                let lan = match &says[i].1 {
                    None => String::new(),
                    Some(lan) if fresh[i] => format!(" lan=\"{lan}\""),
                    Some(lan) => attribute(style(i + 2), "lan", &value(lan, untouched[i].1.as_deref().unwrap_or(""))),
                };
                // A fresh one always goes behind the address.
                let both = if self.lan_first && !fresh[i] { lan + &mac } else { mac + &lan };
                noise(i).to_owned() + &element(&format!("{p}vnic"), both)
            })
            .collect();
        let cards: String = (0..2)
            .map(|i| {
                let mac = element("mac", attribute(style(i + 4), "address", macs[i]));
                let bridge = attribute(style(i + 6), "bridge", &value(&says[i].0, &untouched[i].0));
                let source = element("source", bridge);
                let (one, two) = if self.source_first { (source, mac) } else { (mac, source) };
                format!(
                    "<interface\ttype='bridge'>{}{one}{}{two}{}</interface>",
                    noise(i + 1),
                    noise(i + 2),
                    noise(i + 3)
                )
            })
            .collect();
        format!(
            "<?xml version='1.0'?>{n0}<domain type='kvm'>{n1}<name><![CDATA[e]]>d<!-- no -->ge</name><uuid>1</uuid>{n2}<metadata>\
             <app:vnic xmlns:app='urn:other' mac='x' lan='y'/><{p}vm {xmlns}=\"urn:lsm:1\">{vnics}</{p}vm></metadata>\
             <devices>{cards}{n3}</devices>\n</domain>\n<!-- end -->\n",
            n0 = "<!-- <domain> -->\r\n",
            n1 = noise(0),
            n2 = noise(1),
            n3 = noise(2),
        )
    }
}

fn style() -> impl Strategy<Value = Style> {
    let many = Box::leak(" ".repeat(300).into_boxed_str());
    let before = select(vec![" ", "  ", "\n", "\t\t", "\r\n ", &*many]);
    let equals = select(vec!["=", " =", "= ", " = ", "\n=\t", &*Box::leak(format!("{many}=").into_boxed_str())]);
    (before, equals, select(vec!['\'', '"'])).prop_map(|(before, equals, quote)| Style { before, equals, quote })
}

fn shape() -> impl Strategy<Value = Shape> {
    let noise = select(vec![
        "",
        "\n    ",
        "<!-- <source bridge='no'/> lan=\"no\" -->",
        "<![CDATA[<mac address='52:54:00:aa:00:01'/>]]>",
        "<?pi bridge='br0'?>",
        "<other bridge='br0' lan='montreal'>&amp;é</other>",
        "<driver name='vhost'><source bridge='no'/></driver>",
        "<x:source xmlns:x='urn:x' bridge='no'/>",
    ]);
    (
        select(vec!["lsm", "", "l", "a-b.c"]),
        prop::collection::vec(style(), 1..9),
        prop::collection::vec(noise, 1..6),
        any::<[bool; 4]>(),
    )
        .prop_map(|(prefix, attributes, noise, [lan_first, source_first, childless, spell])| Shape {
            prefix,
            attributes,
            noise,
            lan_first,
            source_first,
            childless,
            spell,
        })
}

fn says() -> impl Strategy<Value = Says> {
    let one = || ("[a-z][a-z0-9-]{0,14}", prop::option::of("[a-z][a-z0-9_.-]{0,20}"));
    [one().boxed(), one().boxed()]
}

proptest! {
    #[test]
    fn only_what_was_told_changes(shape in shape(), old in says(), new in says(), which in any::<[bool; 2]>()) {
        let mut expected = old.clone();
        let mut fresh = [false; 2];
        let mut plugs = Vec::new();
        for (i, mac) in [A, B].into_iter().enumerate() {
            if which[i] {
                expected[i] = new[i].clone();
                fresh[i] = old[i].1.is_none() && new[i].1.is_some();
                plugs.push(plug(mac, &new[i].0, new[i].1.as_deref()));
            }
        }
        let xml = shape.render(&old, [false; 2], &old);
        let domain = Domain::parse(&xml).unwrap();
        prop_assert_eq!(&domain.name, "edge");
        for ((card, vnic), (bridge, lan)) in domain.interfaces.iter().zip(&domain.vnics).zip(&old) {
            prop_assert_eq!(card.bridge.as_ref(), Some(bridge));
            prop_assert_eq!(&vnic.lan, lan);
        }
        prop_assert_eq!(rewrite(&xml, &plugs).unwrap(), shape.render(&expected, fresh, &old));
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}", cut in 0usize..2000, insert in "[<>&'\"/a!\\[\\]-]{0,6}") {
        let _ = Domain::parse(&text);
        let at = LIVE.floor_char_boundary(cut.min(LIVE.len()));
        let broken = format!("{}{insert}{}", &LIVE[..at], &LIVE[at..]);
        let _ = rewrite(&broken, &[plug(A, "br1", Some("x")), plug(B, "br2", None)]);
    }
}
