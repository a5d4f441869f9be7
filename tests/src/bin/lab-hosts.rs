//! In a VM whose kernel has what the machine's own may not: two hosts in namespaces, and VMs that move between them. See
//! `tests/hosts.rs`.

use std::process::ExitCode;

use lsm_tests::{
    crowd::{forced, run_distant, run_forced, run_watched},
    shell::chain,
};

/// How often two distant hosts begin with WireGuard.
const DISTANT: usize = 5;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(forced::PROBE) {
        return forced::probe();
    }
    let hook = "/bin/lsm-hook".as_ref();
    for (encrypt, wireguard) in [("none", false), ("wireguard", true)] {
        match run_watched(hook, wireguard) {
            Ok(seen) => println!("lab-hosts: {encrypt}: {seen:?}"),
            Err(error) => {
                println!("lab-hosts: {encrypt}: {}", chain(&error));
                return ExitCode::FAILURE;
            }
        }
    }
    for _ in 0..DISTANT {
        match run_distant(hook) {
            Ok(()) => println!("lab-hosts: distant"),
            Err(error) => println!("lab-hosts: distant: {}", chain(&error)),
        }
    }
    match run_forced(hook) {
        Ok(()) => println!("lab-hosts: forced"),
        Err(error) => {
            println!("lab-hosts: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
