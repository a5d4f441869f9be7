//! In a VM whose kernel has WireGuard: two hosts in namespaces, and VMs that move between them. See `tests/wireguard.rs`.

use std::process::ExitCode;

use lsm_tests::{crowd::run_watched, shell::chain};

fn main() -> ExitCode {
    for (encrypt, wireguard) in [("none", false), ("wireguard", true)] {
        match run_watched("/bin/lsm-hook".as_ref(), wireguard) {
            Ok(seen) => println!("lab-wireguard: {encrypt}: {seen:?}"),
            Err(error) => {
                println!("lab-wireguard: {encrypt}: {}", chain(&error));
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
