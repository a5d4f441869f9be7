//! The whole agent as a process of a place, with a VM's two cards, asked by its command line.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use crate::{obtaining::MAC, place::until};

/// The card that carries the traffic; [`MAC`] is the spare's.
pub(crate) const OLD: &str = "52:54:00:aa:00:01";
/// The agent must not find the owners of the machine's own cards.
const NO_BUS: &str = "unix:path=/nonexistent";

/// `lsm-guest run`, of this place.
pub(crate) struct Agent {
    child: Child,
    directory: PathBuf,
    /// The address of its system bus.
    bus: String,
}

impl Agent {
    pub(crate) fn start() -> Agent {
        Agent::start_on(NO_BUS)
    }

    pub(crate) fn start_on(bus: &str) -> Agent {
        let directory = std::env::temp_dir().join(format!("lsm-agent-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let agent = Agent { child: run_in(&directory, bus), directory, bus: bus.to_owned() };
        agent.answers();
        agent
    }

    /// It dies, and is started again.
    pub(crate) fn dies(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = run_in(&self.directory, &self.bus);
        self.answers();
    }

    fn answers(&self) {
        until("the agent to answer", || self.ask(&["status"]).status.success().then_some(()));
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program(&self.directory, &self.bus);
        command.args(arguments);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What it said, and that it did it.
    pub(crate) fn does(&self, arguments: &[&str]) -> String {
        let output = self.ask(arguments);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}\n{}", self.log());
        said
    }

    /// The spare, with addresses as the command line has them; its words are separated by spaces.
    fn prepare(&self, addresses: &str) -> Output {
        let words = format!("prepare --old {OLD} --new {MAC} {addresses}");
        self.ask(&words.split(' ').collect::<Vec<_>>())
    }

    pub(crate) fn prepares(&self, addresses: &str) {
        let output = self.prepare(addresses);
        assert!(output.status.success(), "{addresses}: {}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
    }

    /// What it said as it would not.
    pub(crate) fn refuses(&self, addresses: &str) -> String {
        let output = self.prepare(addresses);
        assert!(!output.status.success(), "{addresses}: {}", self.log());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    pub(crate) fn is(&self, state: &str) {
        let line = format!("{:<12}{state}\n", "state");
        until(state, || self.does(&["status"]).contains(&line).then_some(()));
    }
}

fn run_in(directory: &Path, bus: &str) -> Child {
    let log = fs::File::options().create(true).append(true).open(directory.join("log")).unwrap();
    let mut run = program(directory, bus);
    run.args(["run", "--config", "/nonexistent"]).stdin(Stdio::null());
    run.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

fn program(directory: &Path, bus: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lsm-guest"));
    command.arg("--directory").arg(directory).env("DBUS_SYSTEM_BUS_ADDRESS", bus);
    command
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}
