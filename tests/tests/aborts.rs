//! A migration that ends before the VM has arrived leaves everything as it was, and the next one succeeds.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::Duration;

use lsm_tests::{
    connections::Connections,
    shell::{chain, run, wait_for},
    snapshot::Snapshot,
    stage::{Migration, Stage, StageOptions, lacking},
};

const LIMIT: Duration = Duration::from_secs(60);
/// MiB/s for the copy alone: the tunnels keep the WAN's rate. The VM has some 80 MiB to copy.
const SLOW: [&str; 2] = ["--bandwidth", "12"];

struct Scene {
    stage: Stage,
    connections: Connections,
    before: Snapshot,
}

impl Scene {
    fn set(switch: &str) -> Scene {
        let options = StageOptions { policy: format!("switch = \"{switch}\""), ..StageOptions::default() };
        let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
        let connections = Connections::open(&stage, 0).unwrap();
        let before = Snapshot::take(&stage).unwrap();
        Scene { stage, connections, before }
    }

    /// Lets a migration come to where the agent is in this state.
    fn migrating(&self, until: &str) -> Migration {
        let mut migration = self.stage.begin("dallas", &SLOW).unwrap();
        self.stage.agent_is(&[until], LIMIT).unwrap();
        let site = self.stage.site("montreal");
        let copies = || site.virsh(&["domjobinfo", "vm"]).is_ok_and(|job| job.contains("Memory processed"));
        wait_for("the copy to begin", LIMIT, || copies().then_some(())).unwrap();
        assert!(migration.goes_on(), "the copy was over before the agent was {until}");
        migration
    }

    /// The migration has failed with these words; nothing is left of it.
    fn undone(&mut self, case: &str, mut migration: Migration, words: &str) {
        let said = chain(&migration.end(LIMIT).expect_err(case));
        assert!(said.contains(words), "{case}: {said}");
        assert_eq!(self.stage.guest.site().unwrap().name(), "montreal", "{case}");
        let stage = &self.stage;
        // After a flip an endpoint without flags goes on covering the address in use: deleting it would close the initial
        // subflow of every connection.
        let covering = format!("endpoints and limits of the VM: + {} id", stage.guest.domain().address);
        let whole = self.connections.alive().and_then(|()| stage.settled(LIMIT));
        let whole = whole.and_then(|()| self.before.restored(stage, LIMIT, &covering));
        if let Err(error) = whole.and_then(|()| stage.agent_is(&["idle"], LIMIT).map(drop)) {
            let logs = ["montreal", "dallas"].map(|site| stage.log(site)).join("\n----\n");
            let agent = stage.guest.must("cat /var/log/lsm-guest.log").unwrap_or_default();
            panic!("{case}: {}\n{logs}\n----\n{agent}", chain(&error));
        }
    }

    /// An ordinary migration, after all that.
    fn moves(mut self) {
        let mut migration = self.stage.begin("dallas", &[]).unwrap();
        migration.end(LIMIT).unwrap();
        self.connections.alive().unwrap();
        self.stage.settled(LIMIT).unwrap();
        self.connections.alive().unwrap();
        self.connections.end().unwrap();
    }

    fn domjobabort(&self) {
        self.stage.site("montreal").virsh(&["domjobabort", "vm"]).unwrap();
    }
}

#[test]
fn cancelled_by_the_operator() {
    if lacking() {
        return;
    }
    let mut scene = Scene::set("early");
    let migration = scene.migrating("prepared");
    scene.domjobabort();
    scene.undone("cancelled before the flip", migration, "error:");

    let migration = scene.migrating("switched early");
    scene.domjobabort();
    scene.undone("cancelled after the early flip", migration, "error:");
    scene.moves();
}

#[test]
fn the_destination_s_qemu_is_killed() {
    if lacking() {
        return;
    }
    let mut scene = Scene::set("arrival");
    let migration = scene.migrating("prepared");
    run(scene.stage.site("dallas").command("sh").args(["-c", "kill -KILL $(cat /run/libvirt/qemu/vm.pid)"])).unwrap();
    scene.undone("QEMU killed at the destination", migration, "error:");
    scene.moves();
}

#[test]
fn the_services_are_away_when_the_vm_runs_on() {
    if lacking() {
        return;
    }
    let mut scene = Scene::set("arrival");
    let migration = scene.migrating("prepared");
    // Paused by the operator: for the hosts the stop of the migration, so that both lead its frames away.
    let site = scene.stage.site("montreal").clone();
    site.virsh(&["suspend", "vm"]).unwrap();
    let stopped = || scene.stage.status("montreal").is_ok_and(|s| s["migrations"][0]["state"] == "stopped");
    wait_for("the source to see the stop", LIMIT, || stopped().then_some(())).unwrap();
    scene.stage.stop_service("montreal");
    scene.stage.stop_service("dallas");
    scene.domjobabort();
    wait_for("the job to end", LIMIT, || site.virsh(&["domjobinfo", "vm"]).ok()?.contains("None").then_some(()))
        .unwrap();
    if site.virsh(&["domstate", "vm"]).unwrap().contains("paused") {
        site.virsh(&["resume", "vm"]).unwrap();
    }
    // The destination says nothing: that the VM runs here, the source must find out by itself.
    scene.stage.restart_service("montreal").unwrap();
    let runs = || scene.stage.status("montreal").is_ok_and(|s| s["migrations"][0]["state"] == "copying");
    if let Err(error) = wait_for("the source to see that the VM runs", LIMIT, || runs().then_some(())) {
        panic!("{}\n{}", chain(&error), scene.stage.log("montreal"));
    }
    scene.connections.alive().unwrap();
    scene.stage.restart_service("dallas").unwrap();
    scene.undone("both services away when it ran on", migration, "error:");
    scene.moves();
}
