//! `lsm-manual DIRECTORY`: man pages and completions of both programs, from the same words that their `--help` says, and
//! man pages of the configuration files, from the files that are shipped. Run by `packaging/build`; not shipped.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use lsm_manual::configuration::page;

/// Administration (man(7)): all of it wants root.
const SECTION: &str = "8";

fn main() -> ExitCode {
    let Some(directory) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: lsm-manual DIRECTORY");
        return ExitCode::FAILURE;
    };
    match write(&directory) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lsm-manual: cannot write into {}: {error}", directory.display());
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> io::Result<()> {
    for command in [lsm_guest::command::Arguments::command(), lsm_hook::command::Arguments::command()] {
        let name = command.get_name().to_owned();
        let man = directory.join(&name).join("man");
        fs::create_dir_all(&man)?;
        let mut built = command.clone();
        built.build();
        pages(&built, &man)?;
        for (shell, file) in
            [(Shell::Bash, name.clone()), (Shell::Zsh, format!("_{name}")), (Shell::Fish, format!("{name}.fish"))]
        {
            let completions = directory.join(&name).join("completions").join(shell.to_string());
            fs::create_dir_all(&completions)?;
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command.clone(), &name, &mut text);
            fs::write(completions.join(file), text)?;
        }
    }
    let guest = page("lsm-guest.toml", "what lsm-guest is told in a VM", include_str!("../../guest.toml"));
    fs::write(directory.join("lsm-guest/man/lsm-guest.toml.5"), guest)?;
    let host = page("lsm-host.toml", "what lsm-hook knows about its host", include_str!("../../host.toml"));
    fs::write(directory.join("lsm-hook/man/lsm-host.toml.5"), host)
}

fn pages(command: &Command, directory: &Path) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut text = Vec::new();
    Man::new(command.clone()).title(name.to_uppercase()).section(SECTION).manual("LSM").render(&mut text)?;
    fs::write(directory.join(format!("{name}.{SECTION}")), text)?;
    let shown = |sub: &&Command| sub.get_name() != "help" && !sub.is_hide_set();
    command.get_subcommands().filter(shown).try_for_each(|sub| pages(sub, directory))
}
