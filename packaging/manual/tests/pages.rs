//! What is written beside the programs: whole, and readable by what reads it.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{fs, process::Command};

use clap::CommandFactory;

#[test]
fn every_command_has_its_page_and_every_shell_its_completions() {
    let place = std::env::temp_dir().join(format!("lsm-manual-{}", std::process::id()));
    assert!(Command::new(env!("CARGO_BIN_EXE_lsm-manual")).arg(&place).status().unwrap().success());
    let programs = [lsm_guest::command::Arguments::command(), lsm_hook::command::Arguments::command()];
    for (program, file) in programs.iter().zip(["lsm-guest.toml.5", "lsm-host.toml.5"]) {
        let name = program.get_name();
        let read = |path: &str| fs::read_to_string(place.join(name).join(path)).unwrap();
        let commands = program.get_subcommands().map(|command| format!("{name}-{}.8", command.get_name()));
        for page in commands.chain([format!("{name}.8"), file.to_owned()]) {
            assert!(read(&format!("man/{page}")).contains("\n.SH NAME\n"), "{page}");
        }
        for completions in [format!("zsh/_{name}"), format!("fish/{name}.fish")] {
            assert!(read(&format!("completions/{completions}")).contains("check"), "{completions}");
        }
        let bash = place.join(name).join("completions/bash").join(name);
        assert!(Command::new("bash").arg("-n").arg(&bash).status().unwrap().success());
    }
    fs::remove_dir_all(&place).unwrap();
}
