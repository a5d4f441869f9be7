//! README's "Set up two hosts", typed line by line: from two hosts without LSM to a VM that has moved, and was let go.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, path::Path, process::Command, time::Duration};

use lsm_tests::{
    connections::Connections,
    distribution::{self, Owner},
    domain::Domain,
    guest::Guest,
    host::{BRIDGE, Host},
    image::{Image, ImageBuilder, static_program},
    lan::{Lan, LanOptions},
    needs,
    packages::{Packages, sources},
    shell::{Result, chain, run, run_with_input},
    stage::{Stage, TCP, UDP, lacking},
    topology::{Topology, TopologyOptions},
};

const LIMIT: Duration = Duration::from_secs(90);
const HERE: &str = "dallas";
const THERE: &str = "montreal";

fn lacking_tools() -> bool {
    let tools =
        needs::missing(&["/usr/bin/systemd-nspawn", "/usr/bin/script", "/usr/bin/openssl"], "run tests/install");
    lacking() || needs::lacking(tools.or_else(|| distribution::disk().err().map(|error| error.to_string())))
}

/// The commands of the section's code blocks, as they are typed in dallas; "VM" is the VM's name.
fn typed() -> Vec<Vec<String>> {
    let readme = fs::read_to_string(sources().join("README.md")).unwrap();
    let section = readme.split("\n## ").find(|section| section.starts_with("Set up two hosts\n")).unwrap();
    let blocks = section.split("```\n").skip(1).step_by(2);
    let command = |line: &str| line.split(" #").next().unwrap_or_default().trim().replace(" VM", " vm");
    blocks.map(|block| block.lines().map(command).filter(|line| !line.is_empty()).collect()).collect()
}

/// The same on the other host.
fn turned(line: &str) -> String {
    line.replace(THERE, "\0").replace(HERE, THERE).replace('\0', HERE).replace("10.2.0.", "10.1.0.")
}

/// One after the other.
fn all(host: &Host, lines: &[String]) {
    for line in lines {
        eprintln!("{}# {line}", host.site.name());
        let line = line.as_str();
        // It asks, and only somebody at a terminal.
        let said = if line.starts_with("lsm-hook adopt") {
            let mut script = host.site.command("script");
            run_with_input(script.args(["--quiet", "--return", "--command", line, "/dev/null"]), "y\n")
        } else {
            host.type_in(line)
        };
        eprintln!("{}", said.as_ref().map_or_else(|error| chain(error), Clone::clone));
        said.unwrap();
    }
}

fn image(packages: &Packages) -> Image {
    let package = packages.files("deb").into_iter().find(|file| file.to_string_lossy().contains("lsm-guest_")).unwrap();
    let name = format!("/root/{}", package.file_name().unwrap().to_string_lossy());
    let traffic = static_program("lsm-tests", "lsm-traffic").unwrap();
    let image = ImageBuilder::new("6.12").distribution(Owner::Networkd).program(&traffic).unwrap();
    let serve = format!("chrt -f 10 /bin/lsm-traffic serve --tcp {TCP} --udp {UDP}");
    image.service("traffic", &serve).file(&name, 0o644, fs::read(package).unwrap()).build().unwrap()
}

#[test]
fn from_two_fresh_hosts_to_the_first_move() {
    if lacking_tools() {
        return;
    }
    let blocks = typed();
    let [install, pki, set_up, look, adopt, in_the_vm, go, release] = &blocks[..] else {
        panic!("README has other blocks than these: {blocks:#?}");
    };
    let packages = Packages::build(&["--format", "deb"]).unwrap();
    let image = image(&packages);

    let topology = Topology::new(&TopologyOptions::default()).unwrap();
    let hook = packages.files("deb").into_iter().find(|file| file.to_string_lossy().contains("lsm-hook_")).unwrap();
    let hook_to = format!("/root/{}", hook.file_name().unwrap().to_string_lossy());
    let cache = sources().join("tests/cache").canonicalize().unwrap();
    // Nobody writes to the VM's disk: a share that both have.
    let files: [(&Path, &str); 2] = [(&hook, &hook_to), (&cache, &cache.to_string_lossy())];
    let [here, there] = [HERE, THERE].map(|name| Host::boot(&topology, name, &files).unwrap());
    let sites = vec![here.site.clone(), there.site.clone()];

    let mut domain = Domain::new("vm", image, topology.site(HERE));
    (domain.plain, domain.bridge, domain.memory_mib) = (true, BRIDGE.into(), 512);
    let reserved = vec![(domain.mac_a.clone(), 10)];
    let options = LanOptions { reserved, ..LanOptions::default() };
    let lans = [HERE, THERE].map(|name| Lan::serve(&topology, name, &options).unwrap());
    fs::write(here.site.inside("/root/vm.xml"), domain.xml()).unwrap();
    here.site.virsh(&["define", "/root/vm.xml"]).unwrap();
    here.site.virsh(&["start", "vm"]).unwrap();
    let guest = Guest::known(&domain, &sites);

    let turned = |lines: &[String]| lines.iter().map(|line| turned(line)).collect::<Vec<_>>();
    let both = |lines: &[String]| {
        all(&here, lines);
        all(&there, &turned(lines));
    };
    both(install);
    let (copy, make): (Vec<String>, Vec<String>) = pki.iter().cloned().partition(|line| line.starts_with("scp "));
    all(&here, &make);
    assert_eq!(copy, [format!("scp -r pki/{THERE}/. {THERE}:/etc/pki/")]);
    let to = there.site.inside("/etc/pki");
    fs::create_dir_all(&to).unwrap();
    run(Command::new("cp").arg("-r").arg(here.site.inside(&format!("/root/pki/{THERE}/."))).arg(to)).unwrap();
    both(set_up);
    both(look);
    guest.boots().unwrap();
    for line in adopt {
        all(&here, std::slice::from_ref(line));
        // It presses a button, and the lab's VM has nobody who hears that.
        if line == "virsh shutdown vm" {
            guest.must("(sleep 1; systemctl poweroff) >/dev/null 2>&1 &").unwrap();
        }
    }
    guest.boots().unwrap();
    for line in in_the_vm {
        eprintln!("vm# {line}");
        let said = guest.exec_within(&format!("cd /root && {line} 2>&1"), 3 * LIMIT).unwrap();
        eprintln!("{}", said.stdout);
        assert_eq!(said.status, 0, "{line}");
    }

    let stage = Stage::given(topology, lans.into(), sites, guest).unwrap();
    if let Err(error) = moves(&stage, || all(&here, go), || all(&there, &turned(release))) {
        let logs = [&here, &there]
            .map(|host| host.type_in("journalctl --no-pager -u lsm-hook -u libvirtd").unwrap_or_default());
        panic!("{}\n{}\n{}", chain(&error), logs.join("\n----\n"), stage.story());
    }
}

/// Multipath TCP follows by itself, and the plain connection lives on by the old address until it is released.
fn moves(stage: &Stage, go: impl FnOnce(), release: impl FnOnce()) -> Result<()> {
    let mut connections = Connections::open(stage, 0)?;
    let mut plain = Connections::open_more(stage, 0, 1)?;
    go();
    connections.alive()?;
    plain.alive()?;
    stage.holds_old_address(LIMIT)?;
    release();
    stage.agent_is(&["idle"], LIMIT)?;
    stage.settled(LIMIT)?;
    connections.alive()?;
    connections.end()
}
