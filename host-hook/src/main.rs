//! `lsm-hook`: libvirt's hook, the host service, and the operator's command line.

use std::{ffi::OsString, path::Path, process::ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let called = arguments.first().and_then(|name| Path::new(name).file_name());
    // libvirt calls a link in qemu.d, by whatever name. Nothing else is started for it: most VMs are none of ours.
    match called {
        Some(name) if name != "lsm-hook" => lsm_hook::hook::run(&arguments[1..]),
        _ => lsm_hook::command::main(),
    }
}
