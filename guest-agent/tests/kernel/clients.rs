//! `lsm-guest check --client` tells of each client what is in the way, and the lines that it gives repair it: judged by
//! whether the client then follows to another address.

use std::process::Command;

use lsm_guest::{
    connections::Diag,
    mptcp::{Endpoint, Flags, Limits, PathManager},
};
use serde_json::Value;
use socket2::Protocol;

use crate::{
    place::{Place, alone, run, until},
    traffic::{connect, listen},
};

/// Exit status, whether it is good, and the lines that repair what is not.
fn check(client: &Place) -> (i32, bool, Vec<String>) {
    client.call(|| {
        let mut check = Command::new(env!("CARGO_BIN_EXE_lsm-guest"));
        let output = check.args(["check", "--client", "--json"]).output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let of_kernel = |finding: &&Value| {
            // What the machine has configured for its boot is not this test's.
            ["mptcp.enabled", "path manager", "limits"].contains(&finding["what"].as_str().unwrap())
        };
        let findings = told["findings"].as_array().unwrap().iter().filter(of_kernel);
        let fixes = findings.filter_map(|finding| finding["fix"].as_str().map(str::to_owned)).collect();
        (output.status.code().unwrap(), told["good"].as_bool().unwrap(), fixes)
    })
}

fn repair(client: &Place, fixes: Vec<String>) {
    client.call(move || {
        for fix in fixes {
            let done = Command::new("sh").args(["-c", &fix]).output().unwrap();
            assert!(done.status.success(), "{fix}: {done:?}");
        }
    });
}

/// The client connects to a server that announces another of its addresses: has it joined that one?
fn follows(client: &Place, port: u16) -> bool {
    let listener = listen(([0, 0, 0, 0], port).into(), Protocol::MPTCP);
    let to = ([192, 0, 2, 1], port).into();
    let theirs = client.call(move || connect(([192, 0, 2, 9], 0).into(), to, Protocol::MPTCP));
    let (ours, _) = listener.accept().unwrap();
    // Both ways once: before that, the connection is not fully established and nothing is announced.
    let mut byte = [0];
    theirs.send(b"a").unwrap();
    std::io::Read::read_exact(&mut &ours, &mut byte).unwrap();
    ours.send(b"b").unwrap();
    let theirs = client.call(move || {
        std::io::Read::read_exact(&mut &theirs, &mut byte).unwrap();
        theirs
    });
    let mut diag = Diag::open().unwrap();
    // The client answers an announcement at once, whether it joins or not: then it is decided.
    until("the announcement to be answered", || {
        (crate::place::counter("EchoAdd") >= u64::from(port - 8000)).then_some(())
    });
    let deadline = std::time::Instant::now() + std::time::Duration::from_millis(300);
    let mut joined = false;
    while !joined && std::time::Instant::now() < deadline {
        let connections = diag.snapshot().unwrap().connections;
        joined = connections
            .iter()
            .any(|c| c.subflows.iter().filter(|s| s.established && s.local.port() == port).count() == 2);
    }
    drop((ours, theirs));
    joined
}

#[test]
fn a_client_follows_after_what_the_check_said() {
    alone(|| {
        let client = Place::new();
        client.plug("a", "c");
        run("ip address add 192.0.2.1/24 dev a");
        run("ip address add 192.0.2.2/24 dev a");
        client.run("ip address add 192.0.2.9/24 dev c");
        let mut manager = PathManager::open().unwrap();
        manager.set_limits(Limits { subflows: 8, add_addr_accepted: 8 }).unwrap();
        let flags = Flags { signal: true, ..Flags::default() };
        let endpoint = Endpoint { id: 0, address: "192.0.2.2".parse().unwrap(), port: 0, flags, ifindex: 0 };
        manager.add(&endpoint).unwrap();

        // As the kernel has it.
        let (status, good, fixes) = check(&client);
        assert_eq!((status, good), (1, false));
        assert_eq!(fixes, ["ip mptcp limits set subflows 8 add_addr_accepted 8"]);
        assert!(!follows(&client, 8001));
        repair(&client, fixes);
        assert_eq!(check(&client), (0, true, vec![]));
        assert!(follows(&client, 8002));

        client.run("sysctl -qw net.mptcp.enabled=0");
        client.run("sysctl -qw net.mptcp.pm_type=1");
        client.run("ip mptcp limits set subflows 0 add_addr_accepted 1");
        let (status, good, fixes) = check(&client);
        assert_eq!((status, good, fixes.len()), (1, false, 3), "{fixes:?}");
        repair(&client, fixes);
        assert_eq!(check(&client), (0, true, vec![]));
        assert!(follows(&client, 8003));

        // One move, but not the next.
        client.run("ip mptcp limits set subflows 8 add_addr_accepted 1");
        let (status, good, fixes) = check(&client);
        assert_eq!((status, good, fixes.len()), (0, true, 1), "{fixes:?}");
    });
}
