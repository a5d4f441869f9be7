//! `lsm-hook adopt` and `lsm-hook disown`: a VM's persistent definition is changed through libvirt, after the operator has
//! seen what will change.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
};

use lsm_protocol::Mac;

use crate::{
    config::Config,
    domain::{self, Addition, Domain, Interface},
    libvirt::command::{virsh, virsh_given},
    story,
};

/// What the operator said.
#[derive(clap::Args)]
pub struct Arguments {
    /// libvirt's name of the VM.
    vm: String,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Only show what would change.
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
}

/// Makes a VM movable. `active`: which card is the one in use, where that is not the only one on a LAN.
///
/// # Errors
/// In words: what stands in the way.
pub fn adopt(arguments: &Arguments, active: Option<Mac>, config: &Path) -> Result<(), String> {
    let config = Config::load(config).map_err(|error| story(&error))?;
    let vm = &arguments.vm;
    let xml = definition(vm)?;
    let domain = Domain::parse(&xml).map_err(|error| story(&error))?;
    let (active, lan, bridge) = match domain.vnics.iter().find(|vnic| vnic.lan.is_some()) {
        // Has it all, or lacks a way to its agent only.
        Some(vnic) => (vnic.mac, vnic.lan.clone().unwrap_or_default(), String::new()),
        None => in_use(&domain, active, &config)?,
    };
    let spare = random_mac().map_err(|error| format!("cannot get random bytes: {error}"))?;
    let vsock = Path::new("/dev/vhost-vsock").exists();
    let addition = Addition { active, lan: &lan, bridge: &bridge, spare, vsock };
    let changed = domain::adopt(&xml, &addition).map_err(|error| story(&error))?;
    if !change(arguments, &xml, &changed)? {
        return Ok(());
    }
    println!("VM {vm} is adopted, in its persistent definition.");
    if is_running(vm) {
        println!(
            "It runs without that until it has been shut down and started: virsh shutdown {vm}, and when it is off, virsh start {vm}"
        );
    }
    println!("In it: install lsm-guest. Then: lsm-hook check {vm}");
    Ok(())
}

/// Undoes [`adopt`].
///
/// # Errors
/// In words: what stands in the way.
pub fn disown(arguments: &Arguments) -> Result<(), String> {
    let vm = &arguments.vm;
    let xml = definition(vm)?;
    let changed = domain::disown(&xml).map_err(|error| story(&error))?;
    if change(arguments, &xml, &changed)? {
        println!("VM {vm} is none of LSM's any more, in its persistent definition.");
        if is_running(vm) {
            println!("It keeps what it has until it has been shut down.");
        }
    }
    Ok(())
}

/// The card in use, its LAN and that LAN's bridge.
fn in_use(domain: &Domain, chosen: Option<Mac>, config: &Config) -> Result<(Mac, String, String), String> {
    let on_lan = |card: &Interface| {
        let bridge = bridge_of(card)?;
        let (lan, _) = config.lan_of_bridge(&bridge)?;
        Some((card.mac, lan.to_owned(), bridge))
    };
    let fits = |card: &&Interface| chosen.is_none_or(|mac| mac == card.mac);
    let cards: Vec<_> = domain.interfaces.iter().filter(fits).filter_map(on_lan).collect();
    match &cards[..] {
        [one] => Ok(one.clone()),
        [] => {
            let lans = config.lans.iter().map(|(name, lan)| format!("{name} ({})", lan.bridge)).collect::<Vec<_>>();
            Err(format!(
                "no network card of VM {} is plugged into a LAN of this host: {}; plug one in with \"virsh edit {}\", or add its bridge as a [lan.NAME] to host.toml (\"lsm-hook init --print\" shows how)",
                domain.name,
                if lans.is_empty() { "none is configured".to_owned() } else { lans.join(", ") },
                domain.name
            ))
        }
        several => {
            let macs = several.iter().map(|(mac, lan, _)| format!("{mac} ({lan})")).collect::<Vec<_>>().join(", ");
            Err(format!("VM {} has more than one card on a LAN: {macs}; say which is in use with --mac", domain.name))
        }
    }
}

/// The host's bridge that a card is plugged into, by a libvirt network or without.
fn bridge_of(card: &Interface) -> Option<String> {
    match card.kind.as_str() {
        "bridge" => card.bridge.clone(),
        "network" => {
            let xml = virsh(&["net-dumpxml", card.network.as_deref()?]).ok()?;
            let document = roxmltree::Document::parse(&xml).ok()?;
            let child = |name| document.root_element().children().find(|node| node.has_tag_name(name));
            let bridged = child("forward")?.attribute("mode") == Some("bridge");
            child("bridge").filter(|_| bridged)?.attribute("name").map(str::to_owned)
        }
        _ => None,
    }
}

fn definition(vm: &str) -> Result<String, String> {
    let info = virsh(&["dominfo", vm])?;
    if info.lines().any(|line| line.starts_with("Persistent:") && line.ends_with("no")) {
        return Err(format!(
            "VM {vm} has no persistent definition; make one with \"virsh dumpxml --inactive {vm}\" and \"virsh define\""
        ));
    }
    // With its passwords, which libvirt would otherwise forget. Shown are the lines that change, and those hold none.
    virsh(&["dumpxml", "--inactive", "--security-info", vm])
}

fn is_running(vm: &str) -> bool {
    virsh(&["domstate", vm]).is_ok_and(|state| state.trim() != "shut off")
}

/// Whether libvirt was given the new definition.
fn change(arguments: &Arguments, old: &str, new: &str) -> Result<bool, String> {
    if old == new {
        println!("VM {} has all that it needs; nothing to change", arguments.vm);
        return Ok(false);
    }
    differences(old, new).iter().for_each(|line| println!("{line}"));
    if arguments.dry_run {
        return Ok(false);
    }
    if !arguments.yes {
        if !io::stdin().is_terminal() {
            return Err("not changed: nobody is there to be asked; say --yes".to_owned());
        }
        print!("Change the persistent definition of VM {} like this? [y/N] ", arguments.vm);
        let mut answer = String::new();
        let asked = io::stdout().flush().and_then(|()| io::stdin().lock().read_line(&mut answer));
        asked.map_err(|error| error.to_string())?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            println!("not changed");
            return Ok(false);
        }
    }
    virsh_given(&["define", "/dev/stdin"], new)?;
    Ok(true)
}

/// The lines that only one of them has, in order: `-` of the old, `+` of the new.
fn differences(old: &str, new: &str) -> Vec<String> {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = |(a, b): &(&&str, &&str)| a == b;
    let head = old.iter().zip(&new).take_while(same).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(same).count();
    let (old, new) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    // The longest common subsequence, from the end; what is left are some hundred lines.
    let mut longest = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            longest[i][j] = if a == b { longest[i + 1][j + 1] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            lines.push(format!("- {}", old[i]));
            i += 1;
        } else {
            lines.push(format!("+ {}", new[j]));
            j += 1;
        }
    }
    lines
}

/// In the range that QEMU and libvirt use.
fn random_mac() -> io::Result<Mac> {
    let mut bytes = [0; 3];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(Mac([0x52, 0x54, 0, bytes[0], bytes[1], bytes[2]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_shown() {
        assert_eq!(differences("a\nb\nc\n", "a\nb\nc\n"), Vec::<String>::new());
        assert_eq!(differences("a\npasswd\nc", "a\nn1\npasswd\nn2\nc"), ["+ n1", "+ n2"]);
        assert_eq!(differences("a\nb\nc", "a\nx\nc"), ["- b", "+ x"]);
        assert_eq!(differences("a\nb", ""), ["- a", "- b"]);
    }
}
