//! Every connection: foreseen on the host, a condition for the move, seen while it holds the old path, and cut only on
//! purpose.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::time::{Duration, Instant};

use lsm_tests::{
    connections::Connections,
    shell::{chain, wait_for},
    snapshot::Snapshot,
    stage::{Stage, StageOptions, TCP, lacking},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn forecast(stage: &Stage, site: &str) -> Value {
    let text = stage.lsm_hook(site, &["forecast", "vm", "--json"]).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The connections of the traffic program, by class: those whose clients opened them.
fn classes(forecast: &Value) -> Vec<(String, String)> {
    let ours = |c: &&Value| c["local"].as_str().unwrap().ends_with(&format!(":{TCP}"));
    let words = |c: &Value| (c["class"].as_str().unwrap().to_owned(), c["why"].as_str().unwrap().to_owned());
    forecast["connections"].as_array().unwrap().iter().filter(ours).map(words).collect()
}

fn count(classes: &[(String, String)], class: &str) -> usize {
    classes.iter().filter(|(of, _)| of == class).count()
}

/// The last report of the guest, which has made so many.
fn reported(stage: &Stage, number: usize) -> Value {
    let mut reports = stage.guest_history().unwrap();
    assert_eq!(reports.len(), number, "{reports:#?}");
    reports.pop().unwrap()
}

/// Every sum of the report but these is 0.
fn sums(report: &Value, expected: &[(&str, u64)]) {
    for (class, number) in report["sums"].as_object().unwrap() {
        let wanted = expected.iter().find(|(of, _)| of == class).map_or(0, |(_, number)| *number);
        assert_eq!(number.as_u64(), Some(wanted), "{class} of {report:#}");
    }
}

#[test]
fn a_move_is_foreseen_refused_and_held_by_stragglers() {
    if lacking() {
        return;
    }
    let mut stage = Stage::set(&StageOptions::default(), |what| eprintln!("{what}")).unwrap();
    // As every distribution has it: the client echoes announcements and does nothing.
    stage.topology.ns("client").ip("mptcp limits set add_addr_accepted 0\n").unwrap();
    let mut connections = Connections::open(&stage, 1).unwrap();
    let before = Snapshot::take(&stage).unwrap();

    eprintln!("-- nothing is known of the clients yet");
    let first = forecast(&stage, "montreal");
    assert_eq!(count(&classes(&first), "may move"), 3, "{first:#}");
    assert!(classes(&first).iter().any(|(class, why)| class == "waits on the tunnel" && why.contains("plain TCP")));
    assert_eq!(first["sums"]["opened_here"], 1, "{first:#}");
    let in_guest: Value = serde_json::from_str(&stage.guest.must("lsm-guest forecast --json").unwrap()).unwrap();
    assert_eq!(in_guest["sums"], first["sums"]);
    let text = stage.lsm_hook("montreal", &["forecast", "vm"]).unwrap();
    assert!(text.contains("3 may move") && text.contains("waits on the tunnel"), "{text}");
    let said = chain(&stage.lsm_hook("dallas", &["forecast", "vm"]).unwrap_err());
    assert!(said.contains("no managed VM vm runs here"), "{said}");
    let waits = first["sums"]["waits"].as_u64().unwrap();

    eprintln!("-- more is demanded than can be, whoever joins");
    stage.reconfigure("dallas", "[policy]\n", "[policy]\nmin_survival = \"100%\"\n").unwrap();
    stage.restart_service("dallas").unwrap();
    let all = waits + 4;
    let refused = |stage: &Stage, words: &[&str]| {
        let said = chain(&stage.migrate("dallas").unwrap_err());
        eprintln!("{said}");
        for word in words {
            assert!(said.contains(word), "no {word:?} in: {said}");
        }
        before.restored(stage, LIMIT, "").unwrap();
    };
    refused(&stage, &[&format!("only 4 of {all} connections can move, and min_survival demands 100%"), "(plain TCP"]);
    connections.alive().unwrap();

    eprintln!("-- the preparation shows that the clients do not join");
    stage.reconfigure("dallas", "\"100%\"", "2").unwrap();
    stage.restart_service("dallas").unwrap();
    refused(
        &stage,
        &["only 1 of ", "connections can move, and min_survival demands 2", "was announced to and has not joined"],
    );
    connections.alive().unwrap();
    let last = reported(&stage, 1);
    assert_eq!(last["outcome"], "aborted", "{last:#}");
    sums(&last, &[("kept", all)]);
    let there = stage.history("dallas").unwrap().pop().unwrap();
    assert_eq!((&there["role"], &there["outcome"]), (&"destination".into(), &"refused".into()), "{there:#}");
    assert!(there["why"].as_str().unwrap().contains("min_survival demands 2"), "{there:#}");
    assert_eq!(there["guest"], Value::Null, "the guest was at the source");
    let here = wait_for("the source's report", LIMIT, || stage.history("montreal").ok()?.pop()).unwrap();
    assert_eq!((&here["outcome"], &here["guest"]["sums"]), (&"aborted".into(), &last["sums"]), "{here:#}");

    eprintln!("-- which is known from now on");
    let second = forecast(&stage, "montreal");
    let missed = |c: &(String, String)| c.0 == "waits on the tunnel" && c.1.contains("was announced to");
    assert_eq!(classes(&second).iter().filter(|c| missed(c)).count(), 3, "{second:#}");
    assert_eq!(second["sums"]["opened_here"], 1, "{second:#}");
    stage.reconfigure("dallas", "min_survival = 2", "min_survival = 0").unwrap();
    stage.restart_service("dallas").unwrap();

    eprintln!("-- they hold the old path, and that can be seen");
    stage.migrate("dallas").unwrap();
    let status = wait_for("the agent to name the stragglers", LIMIT, || {
        let status = stage.agent_is(&["switched"], LIMIT).ok()?;
        (status["stragglers"].as_array()?.len() == 3 && status["invited"].as_u64()? > 0).then_some(status)
    })
    .unwrap();
    assert_eq!((&status["drain"], &status["waiting"]), (&"until-idle".into(), &3.into()), "{status:#}");
    connections.alive().unwrap();
    let migration = wait_for("the host to know of them", LIMIT, || {
        let migration = stage.status("dallas").ok()?["migrations"][0].clone();
        (migration["connections"]["waiting"] == 3).then_some(migration)
    })
    .unwrap();
    assert_eq!(migration["drain"], "until-idle");
    let there = forecast(&stage, "dallas");
    assert_eq!(classes(&there).iter().filter(|c| missed(c)).count(), 3, "by the line that the arrival has: {there:#}");

    eprintln!("-- nobody cuts them by accident");
    let outcome = stage.guest.exec("lsm-guest settle").unwrap();
    assert!(outcome.status != 0 && outcome.stderr.contains("3 MPTCP connections that have not joined"), "{outcome:?}");
    connections.alive().unwrap();

    eprintln!("-- they close, and the old path is left");
    connections.end().unwrap();
    let ended = Instant::now();
    stage.agent_is(&["idle"], LIMIT).unwrap();
    eprintln!("settled {} ms after the last one's end", ended.elapsed().as_millis());
    stage.settled(LIMIT).unwrap();

    let last = reported(&stage, 2);
    // The kernel's word for a connection that ended in order is that it is gone.
    sums(&last, &[("moved", 1), ("stayed", 3), ("legacy", waits)]);
    let stragglers = last["connections"].as_array().unwrap().iter().filter(|c| c["became"]["stayed"].is_object());
    assert_eq!(stragglers.count(), 3, "{last:#}");
    assert!(last["rtt_before"].as_u64().unwrap() > last["rtt_after"].as_u64().unwrap(), "{last:#}");
    let gap = &last["gap"];
    assert!(gap["at_least"].as_u64().unwrap() <= gap["at_most"].as_u64().unwrap(), "{last:#}");
    assert_eq!(last["addresses"][0]["from"], stage.guest.domain().address.to_string(), "{last:#}");
    let there = wait_for("the destination's report", LIMIT, || {
        let last = stage.history("dallas").ok()?.pop()?;
        (last["outcome"] == "settled" && last["copy"].is_object()).then_some(last)
    })
    .unwrap();
    assert_eq!(there["guest"]["sums"], last["sums"], "{there:#}");
    assert!(there["copy"]["pause_ms"].as_u64().unwrap() > 0, "{there:#}");
    assert_eq!(stage.status("dallas").unwrap()["last"]["migration"], there["migration"]);
    let here = stage.history("montreal").unwrap().pop().unwrap();
    assert_eq!((&here["role"], &here["outcome"]), (&"source".into(), &"settled".into()), "{here:#}");
    let text = stage.lsm_hook("dallas", &["history", "vm"]).unwrap();
    assert!(text.contains("3 stayed") && text.contains("libvirt: the VM stood for"), "{text}");
    assert!(stage.lsm_hook("dallas", &["history", "another"]).unwrap().is_empty());
    let text = stage.guest.must("lsm-guest history").unwrap();
    assert!(text.contains("3 stayed") && text.contains("was announced to and has not joined"), "{text}");
    let numbers = std::fs::read_to_string(stage.site("dallas").dir().join("run/lsm-metrics/lsm_host.prom")).unwrap();
    assert!(numbers.contains("lsm_host_moves_total{role=\"destination\",outcome=\"settled\"} 1\n"), "{numbers}");
    assert!(numbers.contains("lsm_host_connections_total{became=\"stayed\"} 3\n"), "{numbers}");

    eprintln!("-- with a cut they need not close");
    let connections = Connections::open(&stage, 1).unwrap();
    stage.migrate("montreal").unwrap();
    stage.agent_is(&["switched"], LIMIT).unwrap();
    // Refused as long as the agent has only guessed that it has arrived.
    wait_for("the cut to be taken", LIMIT, || stage.guest.must("lsm-guest settle --cut").ok()).unwrap();
    stage.agent_is(&["idle"], LIMIT).unwrap();
    stage.settled(LIMIT).unwrap();
    sums(&reported(&stage, 3), &[("moved", 1), ("cut", 3 + waits)]);
    drop(connections);
}
