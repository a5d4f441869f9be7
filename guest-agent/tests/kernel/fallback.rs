//! The new path dies as the VM arrives, when both paths have lost segments: the agent goes back to the old one, and to the
//! new one again when it lives.

use std::{
    thread,
    time::{Duration, Instant},
};

use socket2::Protocol;

use crate::{
    agent::Agent,
    everyone::end,
    place::{alone, run, until},
    switch::Scene,
    traffic::Talker,
};

/// The VM stands still for so long: long enough for TCP to back off on both paths, and for MPTCP to count both as lossy.
const PAUSE: Duration = Duration::from_secs(3);
/// TCP's back-off when the new path lives again decides when that is noticed.
const NOTICED: Duration = Duration::from_secs(60);

/// From now on, nothing gets through at the client's ends of these links.
fn cut(scene: &Scene, cards: &str) {
    mend(scene);
    scene.client.run("nft add table inet cut");
    for (chain, card) in [("input", "iifname"), ("output", "oifname")] {
        scene.client.run(&format!("nft add chain inet cut {chain} {{ type filter hook {chain} priority 0 ; }}"));
        scene.client.run(&format!("nft add rule inet cut {chain} {card} {{ {cards} }} drop"));
    }
}

fn mend(scene: &Scene) {
    scene.client.run("nft flush ruleset");
}

/// Both ends of each go on receiving. Little is enough: with next to no round-trip time, a client whose own kernel does not
/// give up the dead subflow sends what is lost on it piece by piece.
fn live(what: &str, talkers: &[&(Talker, Talker)]) {
    let least = || talkers.iter().map(|(ours, theirs)| ours.received().min(theirs.received())).min().unwrap();
    let start = least();
    until(what, || (least() > start + 1_000).then_some(()));
}

#[test]
fn a_path_that_is_dead_at_the_arrival_is_left_until_it_lives() {
    alone(|| {
        let scene = Scene::for_an_agent();
        let (by_client, by_vm) = (scene.opened_by_client(7001, Protocol::MPTCP), scene.opened_by_vm(7002));
        let all = [&by_client, &by_vm];
        live("data before", &all);

        let agent = Agent::start();
        agent.prepares(&format!("--address {}/24 --gateway 198.51.100.2", scene.new));
        agent.does(&["switch"]);
        agent.is("switched early");
        live("data on the new path", &all);

        cut(&scene, "ga, gb");
        thread::sleep(PAUSE);
        cut(&scene, "gb");
        agent.does(&["switch", "--settle"]);
        agent.is("fallen back");
        live("data while the new path is dead", &all);
        assert!(agent.log().contains("nothing gets through by the new LAN"), "{}", agent.log());

        mend(&scene);
        let begun = Instant::now();
        while agent.does(&["status"]).contains("fallen back") {
            assert!(begun.elapsed() < NOTICED, "the new path lives, and nobody notices: {}", agent.log());
            thread::sleep(Duration::from_millis(100));
        }
        agent.is("idle");
        live("data on the new path again", &all);
        assert!(!run("ip -4 address").contains(&scene.old.to_string()), "the old path is left");
        until("the old vNIC to be set down", || (!run("ip -o link show dev a").contains(",UP")).then_some(()));
        end(vec![by_client, by_vm]);
    });
}
