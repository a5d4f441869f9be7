//! A host that is drained: all its VMs move at once.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use lsm_tests::{
    crowd::{run_crowd, run_restarted, run_there_and_back},
    measure::median,
    needs,
};

fn lacking() -> bool {
    let files = ["/dev/net/tun", "/usr/sbin/nft", "/usr/bin/stdbuf"];
    needs::lacking(needs::missing(&files, "tests/install installs it"))
}

/// As many as `LSM_CROWD` says, or 20: all settle, each with an address of its own, and nothing is left on either host.
#[test]
fn all_vms_of_a_host_move_at_once() {
    if lacking() {
        return;
    }
    let count = std::env::var("LSM_CROWD").map_or(20, |count| count.parse().unwrap());
    let moved = run_crowd(count).unwrap_or_else(|error| panic!("{}", lsm_tests::shell::chain(&error)));
    for (step, ms) in &moved.steps {
        let worst = ms.iter().copied().fold(0.0, f64::max);
        println!("{count} VMs, {step}: {:.0} ms, at worst {worst:.0}", median(ms).unwrap_or(0.0));
    }
    println!("most memory, source and destination: {} and {} KiB", moved.memory[0], moved.memory[1]);
}

/// Asked for while the tunnels of the way there may still be there, none is refused.
#[test]
fn each_goes_back_as_soon_as_it_has_settled() {
    if !lacking() {
        run_there_and_back(20).unwrap_or_else(|error| panic!("{}", lsm_tests::shell::chain(&error)));
    }
}

/// A VM is given its ears back when it has arrived; who does that may have been killed in between.
#[test]
fn a_vm_hears_its_lan_although_its_host_s_service_was_restarted() {
    if !lacking() {
        run_restarted().unwrap_or_else(|error| panic!("{}", lsm_tests::shell::chain(&error)));
    }
}
