//! The agent by hand, and what becomes of a migration when the agent or a host's service dies in the middle of it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::Connections,
    shell::{Result, chain, wait_for},
    snapshot::Snapshot,
    stage::{Migration, Stage, StageOptions, lacking},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
/// MiB/s for the copy alone, for time to do harm.
const SLOW: [&str; 2] = ["--bandwidth", "12"];

fn set() -> Stage {
    let options = StageOptions { policy: "switch = \"early\"".into(), ..StageOptions::default() };
    Stage::set(&options, |what| eprintln!("{what}")).unwrap()
}

/// Unwraps, with everybody's log where that fails.
fn told<T>(stage: &Stage, case: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        let logs = ["montreal", "dallas"].map(|site| stage.log(site)).join("\n----\n");
        let places = stage.guest.processors();
        let agent = stage.guest.agent();
        panic!("{case}: {}\n{logs}\n----\n{places}\n----\n{agent}", chain(&error))
    })
}

fn migrating(stage: &Stage, to: &str, until: &str) -> Migration {
    let mut migration = stage.begin(to, &SLOW).unwrap();
    told(stage, until, stage.agent_is(&[until], LIMIT));
    let source = stage.guest.site().unwrap();
    let copies = || source.virsh(&["domjobinfo", "vm"]).is_ok_and(|job| job.contains("Memory processed"));
    wait_for("the copy to begin", LIMIT, || copies().then_some(())).unwrap();
    assert!(migration.goes_on(), "the copy was over before the agent was {until}");
    migration
}

/// The migration succeeds, and the connections are alive.
fn arrives(stage: &Stage, to: &str, case: &str, mut migration: Migration, connections: &mut Connections) {
    told(stage, case, migration.end(LIMIT));
    assert_eq!(stage.guest.site().unwrap().name(), to, "{case}");
    told(stage, case, connections.alive());
}

#[test]
fn by_hand_without_a_migration() {
    if lacking() {
        return;
    }
    let stage = set();
    let mut connections = Connections::open(&stage, 0).unwrap();
    let (a, b) = (&stage.guest.domain().mac_a, &stage.guest.domain().mac_b);
    // There is no tunnel: the spare is plugged into a LAN by hand, and stays so.
    let taps = stage.site("montreal").virsh(&["domiflist", "vm"]).unwrap();
    let tap =
        taps.lines().find(|line| line.contains(b.as_str())).and_then(|line| line.split_whitespace().next()).unwrap();
    stage.topology.ns("montreal").ip(&format!("link set {tap} master br-montreal\n")).unwrap();
    let before = Snapshot::take(&stage).unwrap();
    let json = |command: &str| -> Value {
        let text = told(&stage, command, stage.guest.must(command));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}: {text}"))
    };
    let refused = |command: &str, words: &str| {
        let outcome = stage.guest.exec(command).unwrap();
        assert!(outcome.status != 0 && outcome.stderr.contains(words), "{command}: {outcome:?}");
    };

    assert_eq!(json("lsm-guest status --json")["state"], "idle");
    refused("lsm-guest switch", "prepare first");
    let nobody =
        format!("lsm-guest prepare --old {a} --new 52:54:00:00:00:99 --address 10.1.0.77/24 --gateway 10.1.0.1");
    refused(&nobody, "the VM has no vNIC 52:54:00:00:00:99");
    let silent = format!("lsm-guest prepare --old {a} --new {b} --address 10.1.0.77/24 --gateway 10.1.0.250");
    refused(&silent, "gateway 10.1.0.250 of the new LAN did not answer");
    told(&stage, "refusals by hand", before.restored(&stage, LIMIT, ""));

    let prepare = format!("lsm-guest prepare --old {a} --new {b} --address 10.1.0.77/24 --gateway 10.1.0.1 --json");
    let prepared = json(&prepare);
    assert_eq!((&prepared["state"], &prepared["joined"]), (&"prepared".into(), &4.into()), "{prepared}");
    refused(&prepare, "another migration");
    let rehearsed = json("lsm-guest switch --dry-run --json");
    assert_eq!(rehearsed["done"], false);
    assert!(rehearsed["steps"].to_string().contains("ip mptcp endpoint change 10.1.0.77 nobackup"), "{rehearsed}");
    assert_eq!(json("lsm-guest status --json")["state"], "prepared");
    connections.alive().unwrap();

    assert_eq!(json("lsm-guest switch --json")["done"], true);
    assert_eq!(json("lsm-guest status --json")["state"], "switched early");
    connections.alive().unwrap();
    json("lsm-guest switch --to old --json");
    assert_eq!(json("lsm-guest status --json")["state"], "prepared");
    assert_eq!(json("lsm-guest abort --json")["aborted"], true);
    assert_eq!(json("lsm-guest status --json")["state"], "idle");
    connections.alive().unwrap();
    // After a flip an endpoint without flags goes on covering the address in use.
    told(&stage, "by hand", before.restored(&stage, LIMIT, "endpoints and limits of the VM: + 10.1.0.10 id"));
    connections.end().unwrap();
}

#[test]
fn the_agent_is_killed_in_the_middle() {
    if lacking() {
        return;
    }
    let stage = set();
    let again = |when: &str| told(&stage, when, stage.kill_agent().and_then(|()| stage.start_agent()));

    // A plain connection keeps the old path, and with it the agent from settling.
    let mut connections = Connections::open(&stage, 1).unwrap();
    let migration = migrating(&stage, "dallas", "prepared");
    again("prepared");
    arrives(&stage, "dallas", "killed when prepared", migration, &mut connections);
    told(&stage, "killed when prepared", stage.agent_is(&["settling"], LIMIT));
    again("settling");
    told(&stage, "killed before it settled", stage.agent_is(&["settling"], LIMIT));
    told(&stage, "killed before it settled", connections.alive());
    told(&stage, "killed before it settled", connections.end());
    told(&stage, "killed before it settled", stage.settled(LIMIT));

    let mut connections = Connections::open(&stage, 0).unwrap();
    let migration = migrating(&stage, "montreal", "switched early");
    again("switched early");
    arrives(&stage, "montreal", "killed after the early flip", migration, &mut connections);
    told(&stage, "killed after the early flip", stage.settled(LIMIT));
    told(&stage, "killed after the early flip", connections.alive());
    told(&stage, "killed after the early flip", connections.end());
}

#[test]
fn a_host_s_service_is_killed_while_memory_is_copied() {
    if lacking() {
        return;
    }
    let mut stage = set();
    let mut connections = Connections::open(&stage, 0).unwrap();
    for (from, to, killed) in [("montreal", "dallas", "montreal"), ("dallas", "montreal", "montreal")] {
        let case = format!("the service of {killed} killed on the way from {from} to {to}");
        eprintln!("-- {case}");
        let migration = migrating(&stage, to, "prepared");
        stage.restart_service(killed).unwrap();
        arrives(&stage, to, &case, migration, &mut connections);
        told(&stage, &case, stage.settled(LIMIT));
        told(&stage, &case, connections.alive());
    }
    connections.end().unwrap();
}

#[test]
fn a_service_that_is_killed_is_not_taken_for_the_arrival() {
    if lacking() {
        return;
    }
    let options = StageOptions { policy: "switch = \"arrival\"".into(), ..StageOptions::default() };
    let mut stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let mut connections = Connections::open(&stage, 0).unwrap();
    let mut migration = migrating(&stage, "dallas", "prepared");
    stage.restart_service("montreal").unwrap();
    let case = "killed, with a flip at arrival";
    // The end of its channel may make the guest flip; the next service takes that back.
    told(&stage, case, stage.agent_said("told to switch back", LIMIT));
    told(&stage, case, stage.agent_is(&["prepared"], LIMIT));
    assert!(migration.goes_on(), "the copy was over before the guest had flipped back");
    arrives(&stage, "dallas", case, migration, &mut connections);
    told(&stage, case, stage.settled(LIMIT));
    told(&stage, case, connections.alive());
    connections.end().unwrap();
}
