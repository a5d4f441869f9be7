//! A VM goes back to the site whose address it still holds: that address is the direct one again, and its plain
//! connections with it. Called off, everything is as it was.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{net::IpAddr, time::Duration};

use lsm_tests::{
    connections::Connections,
    shell::{Result, chain, run, wait_for},
    snapshot::Snapshot,
    stage::{Migration, Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);
/// MiB/s of a copy that must last: some 80 MiB are copied.
const SLOW: [&str; 2] = ["--bandwidth", "12"];

/// A VM that has moved to dallas and holds its address of montreal for a plain connection.
fn held(switch: &str) -> (Stage, Connections) {
    let options = StageOptions { policy: format!("switch = \"{switch}\""), ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    let case = "the move to dallas";
    told(&stage, case, stage.migrate("dallas"));
    told(&stage, case, stage.holds_old_address(LIMIT));
    told(&stage, case, connections.alive());
    (stage, connections)
}

/// Fails with what everybody has logged.
fn told<T>(stage: &Stage, case: &str, result: Result<T>) -> T {
    result.unwrap_or_else(|error| {
        let logs = ["montreal", "dallas"].map(|site| stage.log(site)).join("\n----\n");
        let looks =
            "cat /var/log/lsm-guest.log; lsm-guest status; lsm-guest forecast; cat /proc/net/tcp; ip mptcp endpoint";
        let agent = stage.guest.exec(looks).map(|outcome| outcome.stdout).unwrap_or_default();
        panic!("{case}: {}\n{logs}\n----\n{agent}", chain(&error))
    })
}

/// The VM's address on that card.
fn address(stage: &Stage, card: &str) -> IpAddr {
    let listing = stage.guest.must(&format!("ip -4 -o addr show dev {card}")).unwrap();
    let address = listing.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

/// Each host has so many migrations and tunnels.
fn each_host_has(stage: &Stage, number: usize) -> Result<()> {
    wait_for(&format!("{number} migrations and tunnels at each host"), LIMIT, || {
        let has = |site: &str| {
            let migrations = stage.status(site).ok()?["migrations"].as_array()?.len();
            (migrations == number && stage.tunnels(site).ok()? == number).then_some(())
        };
        has("montreal").and(has("dallas"))
    })
}

#[test]
fn the_held_address_is_direct_again_with_its_plain_connections() {
    if lacking() {
        return;
    }
    let (stage, mut connections) = held("early");
    // These know the VM by its address of dallas alone.
    let there = address(&stage, "eth1");
    let mut others = Connections::open_at(&stage.topology, there, 1, 1).unwrap();
    let case = "the way back";
    told(&stage, case, stage.migrate("montreal"));
    assert_eq!(stage.guest.site().unwrap().name(), "montreal");
    told(&stage, case, connections.alive());
    told(&stage, case, others.alive());
    // What is left is the home tunnel of the address of dallas, for the plain connection to that.
    told(&stage, case, each_host_has(&stage, 1));
    told(&stage, case, stage.holds_old_address(LIMIT));
    told(&stage, case, connections.alive());
    let mac = &stage.guest.domain().mac_a;
    let entries =
        run(stage.topology.ns("montreal").command("bridge").args(["fdb", "show", "br", "br-montreal"])).unwrap();
    let entry = entries.lines().find(|line| line.contains(mac.as_str())).unwrap_or_default();
    assert!(entry.contains("dev vnet"), "the held address is not direct: {entries}");

    // And there again, while the other address is held.
    told(&stage, "there again", stage.migrate("dallas"));
    told(&stage, "there again", connections.alive());
    told(&stage, "there again", others.alive());
    told(&stage, "there again", each_host_has(&stage, 1));

    told(&stage, "the end", connections.end());
    told(&stage, "the end", stage.settled(LIMIT));
    told(&stage, "the end", others.alive());
    told(&stage, "the end", others.end());
    let outcomes: Vec<String> =
        stage.guest_history().unwrap().iter().map(|one| one["outcome"].as_str().unwrap().to_owned()).collect();
    assert_eq!(outcomes, ["returned", "returned", "settled"]);
}

#[test]
fn a_way_back_that_is_called_off_leaves_the_address_held() {
    if lacking() {
        return;
    }
    let (mut stage, mut connections) = held("early");
    let before = Snapshot::take(&stage).unwrap();
    for until in ["prepared", "switched early"] {
        let case = format!("cancelled when {until}");
        let migration = under_way(&stage, until);
        stage.site("dallas").virsh(&["domjobabort", "vm"]).unwrap();
        called_off(&stage, &case, migration, &before, &mut connections);
    }

    // The service of the host where the VM is dies meanwhile, and finds both migrations.
    let case = "the service killed, then cancelled";
    let migration = under_way(&stage, "prepared");
    stage.restart_service("dallas").unwrap();
    told(&stage, case, connections.alive());
    stage.site("dallas").virsh(&["domjobabort", "vm"]).unwrap();
    called_off(&stage, case, migration, &before, &mut connections);

    told(&stage, "after all that", stage.migrate("montreal"));
    told(&stage, "after all that", connections.alive());
    told(&stage, "after all that", stage.settled(LIMIT));
    told(&stage, "after all that", connections.alive());
    told(&stage, "after all that", connections.end());
}

fn under_way(stage: &Stage, until: &str) -> Migration {
    let mut migration = told(stage, until, stage.begin("montreal", &SLOW));
    told(stage, until, stage.agent_is(&[until], LIMIT));
    let copies = || stage.site("dallas").virsh(&["domjobinfo", "vm"]).is_ok_and(|job| job.contains("Memory processed"));
    told(stage, until, wait_for("the copy to begin", LIMIT, || copies().then_some(())));
    assert!(migration.goes_on(), "the copy was over before the agent was {until}");
    migration
}

fn called_off(stage: &Stage, case: &str, mut migration: Migration, before: &Snapshot, connections: &mut Connections) {
    let said = chain(&migration.end(LIMIT).expect_err(case));
    assert!(said.contains("error:"), "{case}: {said}");
    assert_eq!(stage.guest.site().unwrap().name(), "dallas", "{case}");
    told(stage, case, connections.alive());
    told(stage, case, stage.holds_old_address(LIMIT));
    told(stage, case, each_host_has(stage, 1));
    told(stage, case, before.restored(stage, LIMIT, ""));
    told(stage, case, connections.alive());
}
