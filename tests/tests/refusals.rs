//! Migrations that cannot be prepared are refused before anything moves, and the operator reads on the terminal of
//! `virsh migrate` what is wrong and what to do.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, process::Command, time::Duration};

use lsm_tests::{
    connections::Connections,
    domain::Domain,
    guest::Guest,
    pki::Authority,
    shell::{chain, run, run_with_input, wait_for},
    snapshot::Snapshot,
    stage::{Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);

/// What a case itself may have stopped.
const STOPPED: [&str; 3] =
    ["processes of montreal: - lsm-hook", "processes of dallas: - lsm-hook", "processes of the VM: - /bin/lsm-guest"];

/// A VM with live connections, and how everything was before.
struct Scene {
    stage: Stage,
    connections: Connections,
    before: Snapshot,
}

impl Scene {
    fn set() -> Scene {
        let stage = Stage::set(&StageOptions::default(), |what| eprintln!("{what}")).unwrap();
        let connections = Connections::open(&stage, 1).unwrap();
        let before = Snapshot::take(&stage).unwrap();
        Scene { stage, connections, before }
    }

    /// The migration is refused in these words, and there is a report of it; the VM runs on where it was, and nothing else
    /// is left of the attempt.
    fn refused(&mut self, case: &str, words: &[&str]) {
        let before = self.stage.history("dallas").unwrap().len();
        self.refused_unreported(case, words);
        let told = self.stage.history("dallas").unwrap();
        assert_eq!(told.len(), before + 1, "{case}: {told:#?}");
        let last = told.last().unwrap();
        assert_eq!((&last["vm"], &last["outcome"]), (&"vm".into(), &"refused".into()), "{case}: {last:#}");
        let why = last["why"].as_str().unwrap();
        assert!(words.iter().all(|word| why.contains(word)), "{case}: not all of {words:?} in: {last:#}");
    }

    /// The same, where nobody is there to report it.
    fn refused_unreported(&mut self, case: &str, words: &[&str]) {
        eprintln!("-- {case}");
        let said = chain(&self.stage.migrate("dallas").expect_err(case));
        for word in words {
            assert!(said.contains(word), "{case}: no {word:?} in: {said}");
        }
        assert_eq!(self.stage.guest.site().unwrap().name(), "montreal", "{case}");
        self.unharmed(case);
    }

    fn unharmed(&mut self, case: &str) {
        let left = self.connections.alive().and_then(|()| self.before.left(&self.stage, LIMIT, &STOPPED));
        let wrong = left.map_or_else(|error| chain(&error), |left| left.join("\n"));
        if !wrong.is_empty() {
            let logs = ["montreal", "dallas"].map(|site| self.stage.log(site)).join("\n----\n");
            panic!("{case}: {wrong}\n{logs}");
        }
    }

    /// Another line of dallas' configuration, and the service started with it.
    fn reconfigured(&mut self, old: &str, text: &str) {
        self.stage.reconfigure("dallas", old, text).unwrap();
        self.stage.restart_service("dallas").unwrap();
    }

    /// Another VM in montreal, of this LAN by its description.
    fn one_more(&self, name: &str, lan: &str) -> Guest {
        let site = self.stage.topology.site("montreal");
        let mut domain = Domain::new(name, self.stage.guest.domain().image.clone(), site);
        let lan = format!("lan=\"{lan}\"");
        domain.metadata = domain.metadata.map(|text| text.replace("lan=\"montreal\"", &lan).replace(":aa:", ":bb:"));
        (domain.mac_a, domain.mac_b) = (domain.mac_a.replace(":aa:", ":bb:"), domain.mac_b.replace(":aa:", ":bb:"));
        domain.address = site.address(11);
        Guest::boot(&domain, &self.stage.sites).unwrap()
    }

    /// What virsh says, which must not move that one.
    fn refused_to(&self, name: &str) -> String {
        let virsh = self.stage.site("montreal").virsh(&["migrate", "--live", name, "qemu+tcp://dallas/system"]);
        chain(&virsh.unwrap_err())
    }

    fn metadata(&self, text: &str) {
        let site = self.stage.site("montreal");
        site.virsh(&["metadata", "vm", "--live", "--uri", "urn:lsm:1", "--key", "lsm", "--set", text]).unwrap();
    }
}

#[test]
fn what_is_wrong_at_the_hosts_is_said_before_anything_moves() {
    if lacking() {
        return;
    }
    let mut scene = Scene::set();
    let [mac_a, mac_b] = [&scene.stage.guest.domain().mac_a, &scene.stage.guest.domain().mac_b].map(String::clone);

    let vm = |b: &str| format!(r#"<vm><vnic mac="{mac_a}" lan="montreal"/><vnic mac="{b}"/></vm>"#);
    scene.metadata(&vm("52:54:00:00:00:99"));
    scene.refused("a MAC that the VM has not", &["52:54:00:00:00:99", "virsh metadata vm urn:lsm:1 --edit"]);
    scene.metadata(&vm(&mac_b));

    scene.reconfigured("bridge = \"br-dallas\"", "bridge = \"br-nowhere\"");
    scene.refused(
        "no bridge",
        &["bridge br-nowhere of LAN dallas does not exist here; create it or correct [lan.dallas]"],
    );
    scene.reconfigured("br-nowhere", "br-dallas");

    scene.stage.stop_service("montreal");
    scene.refused(
        "the source's service is down",
        &["no peer runs this VM (montreal:", "check that lsm-hook runs on the source"],
    );
    scene.stage.restart_service("montreal").unwrap();

    scene.stage.stop_service("dallas");
    scene.refused_unreported(
        "the destination's service is down",
        &["cannot reach the host service", "systemctl start lsm-hook.socket"],
    );
    scene.stage.restart_service("dallas").unwrap();

    let pki = scene.stage.site("montreal").dir().join("etc/pki");
    let good = pki.with_extension("good");
    run(Command::new("cp").arg("-a").arg(&pki).arg(&good)).unwrap();
    let wan = scene.stage.topology.site("montreal").wan;
    Authority::new("somebody else").unwrap().equip(&pki, "montreal", wan).unwrap();
    scene.stage.restart_service("montreal").unwrap();
    scene.refused(
        "a certificate of another authority",
        &[
            "the certificate of peer montreal (checked against /etc/pki/CA/cacert.pem)",
            "all hosts need certificates of one CA",
        ],
    );
    run(Command::new("cp").arg("-a").arg(good.join(".")).arg(&pki)).unwrap();
    scene.stage.restart_service("montreal").unwrap();

    eprintln!("-- a LAN that no host knows");
    let guest = scene.one_more("lost", "atlantis");
    let said = scene.refused_to("lost");
    assert!(said.contains("host.toml there has no [lan.atlantis], the LAN of vNIC 52:54:00:bb:01:01"), "{said}");
    assert!(said.contains("add it, or correct the VM's metadata"), "{said}");
    assert_eq!(guest.must("echo alive").unwrap(), "alive\n");
    drop(guest);
    scene.unharmed("a LAN that no host knows");

    eprintln!("-- a network between the hosts that drops fragments");
    let nft = |text: &str| {
        let mut nft = scene.stage.topology.ns("montreal").command("nft");
        run_with_input(nft.args(["-f", "-"]), text).unwrap();
    };
    nft("add table ip narrow
         add chain ip narrow c { type filter hook prerouting priority -450; }
         add rule ip narrow c ip frag-off & 0x3fff != 0 drop");
    let said = chain(&scene.stage.migrate("dallas").unwrap_err());
    nft("delete table ip narrow");
    let words = "full frames are lost in the tunnel to the source host: they need packets of 1550 bytes between the hosts, and 1500";
    assert!(said.contains(words), "{said}");
    scene.unharmed("a network between the hosts that drops fragments");

    eprintln!("-- an unknown key");
    let good = scene.stage.reconfigure("dallas", "[policy]\n", "[policy]\nswich = \"auto\"\n").unwrap();
    let line = 1 + good.lines().position(|line| line == "[policy]").unwrap() + 1;
    let place = format!("/etc/lsm/host.toml:{line}:1");
    let call = |command: &str| {
        let called = scene.stage.site("dallas").command(scene.stage.hook()).arg(command).output().unwrap();
        (called.status.success(), [called.stdout, called.stderr].map(|said| String::from_utf8(said).unwrap()).concat())
    };
    for command in ["check", "serve"] {
        let (is_well, said) = call(command);
        assert!(!is_well && said.contains(&place) && said.contains("swich"), "{command}, {place}: {said}");
    }
    fs::write(scene.stage.site("dallas").dir().join("etc/lsm/host.toml"), good).unwrap();
    let (_, said) = call("check");
    assert!(said.contains("/etc/lsm/host.toml is in order"), "{said}");

    eprintln!("-- XML that is not a domain");
    let hook = fs::read_to_string(scene.stage.site("dallas").dir().join("etc/lsm/real-hook")).unwrap();
    for (xml, words) in [("<network xmlns:lsm='urn:lsm:1'/>", "not a description of a VM"), ("urn:lsm:1", "not XML")] {
        let mut call = scene.stage.site("dallas").command(hook.trim());
        let said = chain(&run_with_input(call.args(["hook", "vm", "migrate", "begin", "-"]), xml).unwrap_err());
        assert!(said.contains(words), "{said}");
    }

    scene.reconfigured("pool = [\"10.2.0.100-10.2.0.199\"]", "pool = [\"10.2.0.100\"]");
    scene.stage.migrate("dallas").unwrap();
    scene.connections.alive().unwrap();

    eprintln!("-- a pool whose last address the first VM has");
    let guest = scene.one_more("second", "montreal");
    let said = scene.refused_to("second");
    assert!(
        said.contains("the pool of LAN dallas has no free address of 10.2.0.0/24; enlarge [lan.dallas] pool"),
        "{said}"
    );
    assert_eq!(guest.must("echo alive").unwrap(), "alive\n");
    drop(guest);

    scene.connections.end().unwrap();
    scene.stage.settled(LIMIT).unwrap();
}

#[test]
fn an_unprepared_guest_is_refused_or_joins_later_as_policy_says() {
    if lacking() {
        return;
    }
    let mut scene = Scene::set();
    scene.stage.kill_agent().unwrap();
    scene.reconfigured("[policy]\n", "[policy]\nunprepared = \"refuse\"\nprepare_wait_ms = 1500\n");
    scene.refused("no agent", &["the guest was not prepared within 1500 ms", "set unprepared = \"post-join\""]);

    eprintln!("-- no agent, but post-join");
    scene.reconfigured("unprepared = \"refuse\"", "unprepared = \"post-join\"");
    scene.stage.migrate("dallas").unwrap();
    let warned =
        |stage: &Stage| stage.log("dallas").lines().any(|line| line.contains(" WARN ") && line.contains("prepared"));
    wait_for("a warning", LIMIT, || warned(&scene.stage).then_some(())).unwrap();
    assert_eq!(scene.stage.guest.site().unwrap().name(), "dallas");
    scene.connections.alive().unwrap(); // through the home tunnel
    scene.stage.start_agent().unwrap();
    let joined = scene.stage.agent_is(&["switched", "settling"], LIMIT).unwrap();
    assert_eq!(joined["waiting"], 0, "{joined}");
    scene.connections.alive().unwrap();
    scene.connections.end().unwrap();
    scene.stage.settled(LIMIT).unwrap();
}
