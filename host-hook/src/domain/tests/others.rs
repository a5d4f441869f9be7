//! Descriptions as other programs write them, put down after their documented forms: what LSM has no business with stays,
//! byte for byte.

use super::*;

const OTHERS: [(&str, &str); 7] = [
    ("OpenStack Nova", include_str!("others/nova.xml")),
    ("oVirt VDSM", include_str!("others/vdsm.xml")),
    ("Proxmox VE", include_str!("others/proxmox.xml")),
    ("vagrant-libvirt", include_str!("others/vagrant.xml")),
    ("virt-install", include_str!("others/virt-install.xml")),
    ("cockpit-machines", include_str!("others/cockpit.xml")),
    ("KubeVirt", include_str!("others/kubevirt.xml")),
];

fn addition() -> Addition<'static> {
    Addition { active: A, lan: "montreal", bridge: "br0", spare: B, vsock: false }
}

#[test]
fn without_metadata_they_are_none_of_ours() {
    for (whose, xml) in OTHERS {
        assert!(!has_metadata(xml.as_bytes()), "{whose}");
        let domain = Domain::parse(xml).unwrap();
        assert!(domain.vnics.is_empty() && domain.interface(A).is_some(), "{whose}");
    }
}

#[test]
fn adopted_they_move_and_nothing_else_changes() {
    for (whose, xml) in OTHERS.into_iter().filter(|(whose, _)| *whose != "KubeVirt") {
        let adopted = adopt(xml, &addition()).unwrap();
        assert_eq!(disown(&adopted).unwrap(), xml, "{whose}");
        let there = [plug(A, "lsmb7", Some("montreal")), plug(B, "br1", Some("dallas"))];
        let moved = rewrite(&adopted, &there).unwrap();
        let expected = adopted
            .replace("bridge='br0'", "bridge='lsmb7'")
            .replace("bridge=\"br0\"", "bridge=\"lsmb7\"")
            .replace("bridge='lsm-spare'", "bridge='br1'")
            .replace("<lsm:vnic mac='52:54:00:aa:00:02'/>", "<lsm:vnic mac='52:54:00:aa:00:02' lan=\"dallas\"/>");
        assert_eq!(moved, expected, "{whose}");
        assert_ne!(moved, adopted, "{whose}");
        let back = [plug(A, "br0", Some("montreal")), plug(B, "lsm-spare", None)];
        assert_eq!(rewrite(&moved, &back).unwrap(), adopted, "{whose}");
    }
}

/// Its card is a tap that KubeVirt itself makes: there is no bridge to plug it elsewhere by, and a move says so.
#[test]
fn a_card_without_a_bridge_is_refused_with_words() {
    let (_, kubevirt) = OTHERS[6];
    let metadata = "<lsm:vm xmlns:lsm='urn:lsm:1'><lsm:vnic mac='52:54:00:aa:00:01' lan='x'/><lsm:vnic mac='52:54:00:aa:00:02'/></lsm:vm></metadata>";
    let card =
        "<interface type='bridge'><mac address='52:54:00:aa:00:02'/><source bridge='lsm-spare'/></interface></devices>";
    let xml = kubevirt.replace("</metadata>", metadata).replace("</devices>", card);
    let said = rewrite(&xml, &[plug(A, "lsmb7", Some("x"))]).unwrap_err().to_string();
    assert!(
        said.contains("its type is \"ethernet\", and only <interface type='bridge'> can be plugged elsewhere"),
        "{said}"
    );
}
