//! Bytes that another party wrote, given to what decodes them: any bytes at all, and no panic, nor a change where none was
//! meant. For the fuzzer, and for the test that replays what it has found.

use std::ops::Range;

use lsm_protocol::MigrationId;

use crate::{
    config::Config,
    domain::{Domain, Plug, rewrite},
    hook::{self, HookRequest},
    libvirt::{job, virsh},
    tunnel::full_frames,
};

/// A VM's description, its vNICs plugged elsewhere: the rest stays as it was, to the byte.
pub fn domain(bytes: &[u8]) {
    let Ok(xml) = std::str::from_utf8(bytes) else { return };
    let Ok(domain) = Domain::parse(xml) else { return };
    for spare in [true, false] {
        let lan = |index| (!spare).then(|| format!("lan-{index}"));
        let vnics = domain.vnics.iter().enumerate();
        let plugs = vnics.map(|(index, vnic)| Plug { mac: vnic.mac, bridge: "br-'&there".into(), lan: lan(index) });
        let plugs: Vec<Plug> = plugs.collect();
        let Ok(plugged) = rewrite(xml, &plugs) else { continue };
        assert_eq!(around(xml), around(&plugged), "more was changed than vNICs");
        let is = Domain::parse(&plugged).expect("what was understood is understood with its vNICs elsewhere");
        assert!(
            is.vnics.iter().zip(&plugs).all(|(vnic, plug)| (vnic.mac, &vnic.lan) == (plug.mac, &plug.lan)),
            "{is:?}"
        );
        for vnic in &is.vnics {
            let card = is.interface(vnic.mac).expect("a managed card is still there");
            assert_eq!(card.bridge.as_deref(), Some("br-'&there"));
        }
        assert_eq!(rewrite(&plugged, &plugs).ok().as_ref(), Some(&plugged), "done twice is done once");
    }
}

/// All that is in neither a network card nor one of LSM's vNICs.
fn around(xml: &str) -> String {
    let document = roxmltree::Document::parse(xml).expect("it was parsed before");
    let ours = |node: &roxmltree::Node<'_, '_>| matches!(node.tag_name().name(), "interface" | "vnic");
    let inside: Vec<Range<usize>> = document.descendants().filter(ours).map(|node| node.range()).collect();
    let mut text = String::new();
    let mut at = 0;
    for range in inside {
        if range.start >= at {
            text.push_str(&xml[at..range.start]);
            at = range.end;
        }
    }
    text.push_str(&xml[at..]);
    text
}

/// `host.toml`.
pub fn configuration(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Config::understand(text, "host.toml".as_ref());
    }
}

/// What comes on the hook's socket.
pub fn hook_call(bytes: &[u8]) {
    let mut bytes = bytes;
    let _ = hook::read::<HookRequest>(&mut bytes);
}

/// What virsh prints, with names that a VM's owner has chosen.
pub fn virsh(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = job::parse(&text);
    for line in text.lines() {
        let _ = virsh::parse_lifecycle(line);
        let _ = virsh::parse_monitor(line);
    }
}

/// A frame out of a tunnel, where it is tried.
pub fn trial(bytes: &[u8]) {
    for kind in [full_frames::QUESTION, full_frames::ANSWER] {
        let _ = full_frames::understood(bytes, kind, MigrationId([0xaa; 16]));
    }
}
