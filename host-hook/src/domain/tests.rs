use std::error::Error as _;

use super::*;

mod odd;
mod others;

const A: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 1]);
const B: Mac = Mac([0x52, 0x54, 0, 0xaa, 0, 2]);

/// As libvirt 9.0 hands it to the hook, shortened.
const LIVE: &str = r#"<domain type='kvm' id='3' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>edge</name>
  <uuid>7a3c1f6e-0d5b-4f0e-9f59-6c1f0a2f9b11</uuid>
  <metadata>
    <lsm:vm xmlns:lsm="urn:lsm:1">
      <lsm:vnic mac="52:54:00:aa:00:01" lan="montreal"/>
      <lsm:vnic mac="52:54:00:AA:00:02"/>
    </lsm:vm>
  </metadata>
  <devices>
    <interface type='bridge'>
      <mac address='52:54:00:aa:00:01'/>
      <source bridge='br0'/>
      <target dev='vnet7'/>
      <model type='virtio'/>
      <mtu size='1400'/>
      <alias name='net0'/>
    </interface>
    <interface type='bridge'>
      <mac address='52:54:00:aa:00:02'/>
      <source bridge='lsm-spare'/>
    </interface>
    <channel type='unix'>
      <source mode='bind' path='/other'/>
      <target type='virtio' name='org.qemu.guest_agent.0'/>
    </channel>
    <channel type='unix'>
      <source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-3-edge/org.lsm.guest.0'/>
      <target type='virtio' name='org.lsm.guest.0' state='connected'/>
    </channel>
    <graphics type='vnc' passwd='hunter2'/>
    <vsock model='virtio'><cid auto='yes' address='42'/></vsock>
  </devices>
</domain>
"#;

fn plug(mac: Mac, bridge: &str, lan: Option<&str>) -> Plug {
    Plug { mac, bridge: bridge.into(), lan: lan.map(Into::into) }
}

#[test]
fn a_live_vm_is_read() {
    let domain = Domain::parse(LIVE).unwrap();
    assert_eq!((domain.name.as_str(), domain.uuid.as_str()), ("edge", "7a3c1f6e-0d5b-4f0e-9f59-6c1f0a2f9b11"));
    assert_eq!(domain.vnics, [Vnic { mac: A, lan: Some("montreal".into()) }, Vnic { mac: B, lan: None }]);
    let card = domain.interface(A).unwrap();
    assert_eq!(
        (card.kind.as_str(), card.bridge.as_deref(), card.tap.as_deref()),
        ("bridge", Some("br0"), Some("vnet7"))
    );
    assert_eq!((card.mtu, card.model.as_deref()), (Some(1400), Some("virtio")));
    assert_eq!(domain.interface(B).unwrap().tap, None);
    assert!(domain.guest_channel.unwrap().ends_with("domain-3-edge/org.lsm.guest.0"));
    assert_eq!(domain.vsock_cid, Some(42));
}

#[test]
fn metadata_is_searched_for_before_anything_is_parsed() {
    assert!(has_metadata(LIVE.as_bytes()));
    assert!(!has_metadata(b"") && !has_metadata(b"urn:lsm:") && !has_metadata(b"<domain>urn:lsn:1</domain>"));
    let fooled = "<domain><name>x</name><uuid>u</uuid><description>urn:lsm:1</description></domain>";
    assert!(has_metadata(fooled.as_bytes()) && Domain::parse(fooled).unwrap().vnics.is_empty());
}

#[test]
fn contradictions_are_refused_with_words() {
    let vnic_b = "<lsm:vnic mac=\"52:54:00:AA:00:02\"/>";
    let cases = [
        ("<domain ", "<network ", "not a description of a VM: its root is not <domain>"),
        ("<name>edge</name>", "", "it has no <name>"),
        (vnic_b, "", "names 1 vNIC; 2 at least"),
        (vnic_b, "<lsm:vnic mac=\"52:54:00:aa:00:01\"/>", "names vNIC 52:54:00:aa:00:01 twice"),
        (
            vnic_b,
            "<lsm:vnic mac=\"52:54:00:aa:00:03\"/>",
            "names vNIC 52:54:00:aa:00:03, which it does not have; it has 52:54:00:aa:00:01, 52:54:00:aa:00:02",
        ),
        (vnic_b, "<lsm:vnic mac=\"52:54:00\"/>", "\"52:54:00\": not a MAC address"),
        (vnic_b, "<lsm:vnic/>", "a <vnic> without mac"),
        ("lan=\"montreal\"", "lan=\"mont real\"", "LAN \"mont real\", which cannot be a LAN's name"),
        ("address='52:54:00:aa:00:02'", "address='52:54:00:aa:00:01'", "more than one network card has that address"),
        ("</metadata>", "<x:vm xmlns:x='urn:lsm:1'/></metadata>", "<vm> element twice"),
    ];
    for (from, to, expected) in cases {
        // Once for the end tag of the root.
        let xml = LIVE.replacen(from, to, 1).replace(if from == "<domain " { "</domain>" } else { "\0" }, "</network>");
        let said = Domain::parse(&xml).unwrap_err().to_string();
        assert!(said.contains(expected), "{to}: {said}");
    }
}

#[test]
fn a_dtd_is_refused_and_no_error_shows_the_text() {
    let bomb = format!("<!DOCTYPE domain [<!ENTITY a 'x'>]>{LIVE}");
    let refused = Domain::parse(&bomb).unwrap_err();
    assert!(refused.source().unwrap().to_string().contains("DTD"), "{refused:?}");
    for end in (0..LIVE.len() - 12).step_by(7) {
        let refused = Domain::parse(&LIVE[..end]).unwrap_err();
        let said = format!("{refused} {refused:?} {:?}", refused.source());
        assert!(!said.contains("hunter2") && !said.contains("vnc"), "{said}");
    }
}

#[test]
fn plugs_move_bridges_and_lans_and_back() {
    let there = rewrite(LIVE, &[plug(A, "lsmb2a", Some("montreal")), plug(B, "br1", Some("dallas"))]).unwrap();
    assert_eq!(
        there,
        LIVE.replace("bridge='br0'", "bridge='lsmb2a'")
            .replace("bridge='lsm-spare'", "bridge='br1'")
            .replace("mac=\"52:54:00:AA:00:02\"/>", "mac=\"52:54:00:AA:00:02\" lan=\"dallas\"/>")
    );
    let back = rewrite(&there, &[plug(B, "lsm-spare", None), plug(A, "br0", Some("montreal"))]).unwrap();
    assert_eq!(back, LIVE);
    assert_eq!(rewrite(LIVE, &[]).unwrap(), LIVE);
    let spare = rewrite(LIVE, &[plug(A, "br0", None)]).unwrap();
    assert_eq!(spare, LIVE.replace(" lan=\"montreal\"", ""));
}

#[test]
fn what_cannot_be_plugged_is_refused_with_words() {
    let network = LIVE.replacen("type='bridge'", "type='network'", 1);
    let said = rewrite(&network, &[plug(A, "br1", None)]).unwrap_err().to_string();
    assert!(
        said.contains("VM edge: cannot plug vNIC 52:54:00:aa:00:01 into bridge br1: its type is \"network\""),
        "{said}"
    );
    let no_source = LIVE.replace("<source bridge='br0'/>", "");
    assert!(rewrite(&no_source, &[plug(A, "br1", None)]).unwrap_err().to_string().contains("no <source"));
    assert!(rewrite(LIVE, &[plug(Mac([2; 6]), "br1", None)]).unwrap_err().to_string().contains("not one of"));
    let twice = [plug(A, "br1", None), plug(A, "br2", None)];
    assert!(rewrite(LIVE, &twice).unwrap_err().to_string().contains("told twice"));
}

#[test]
fn what_is_inserted_cannot_break_out() {
    let nasty = "a'\"<b>&amp;\t\n\r";
    for quote in ['\'', '"'] {
        let xml = LIVE.replace("bridge='br0'", &format!("bridge={quote}br0{quote}"));
        let there = rewrite(&xml, &[plug(A, nasty, Some("montreal"))]).unwrap();
        assert_eq!(Domain::parse(&there).unwrap().interface(A).unwrap().bridge.as_deref(), Some(nasty));
    }
}
