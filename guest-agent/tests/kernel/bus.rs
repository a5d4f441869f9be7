//! The agent on a system bus: everybody hears what becomes of a move, and root's programs hold it back.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use futures_util::StreamExt as _;
use zbus::{Connection, MatchRule, Message, MessageStream, message::Type};

use crate::{
    agent::{Agent, OLD},
    obtained::vm,
    obtaining::MAC,
    place::{alone, runtime, until},
};

const NAME: &str = "org.lsm.Guest1";
const OBJECT: &str = "/org/lsm/Guest1";
const LIMIT: Duration = Duration::from_secs(10);

/// As the system's own bus is set up (/usr/share/dbus-1/system.conf), with the agent's policy as it is shipped.
const CONFIGURATION: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=DIRECTORY/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
  </policy>
  <include>POLICY</include>
</busconfig>
"#;

/// A bus of its own, and who listens to it as nobody.
struct Bus {
    directory: PathBuf,
    programs: Vec<Child>,
}

impl Bus {
    /// `None` where what it takes is not installed.
    fn start() -> Option<Bus> {
        let lacking = ["dbus-daemon", "dbus-monitor", "dbus-send", "setpriv"]
            .into_iter()
            .find(|program| !Path::new("/usr/bin").join(program).exists());
        if let Some(program) = lacking {
            let reason = format!("needs {program}; run tests/install --tests");
            assert!(std::env::var_os("LSM_EXPECT_ALL").is_none_or(|value| value != "1"), "{reason}");
            eprintln!("skipped: {reason}");
            return None;
        }
        let directory = std::env::temp_dir().join(format!("lsm-bus-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/org.lsm.Guest1.conf");
        let text = CONFIGURATION
            .replace("DIRECTORY", directory.to_str().unwrap())
            .replace("POLICY", policy.canonicalize().unwrap().to_str().unwrap());
        let configuration = directory.join("bus.conf");
        fs::write(&configuration, text).unwrap();
        let mut daemon = Command::new("dbus-daemon");
        daemon.arg("--nofork").arg("--nopidfile").arg(format!("--config-file={}", configuration.display()));
        let programs = vec![daemon.stdin(Stdio::null()).spawn().unwrap()];
        let bus = Bus { directory, programs };
        until("the bus", || bus.directory.join("bus").exists().then_some(()));
        Some(bus)
    }

    fn address(&self) -> String {
        format!("unix:path={}/bus", self.directory.display())
    }

    async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address().as_str()).build().await.unwrap()
    }

    /// A program of somebody who may do nothing.
    fn as_nobody(program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", program]);
        command
    }

    fn listen_as_nobody(&mut self) {
        let heard = fs::File::create(self.directory.join("heard")).unwrap();
        let mut monitor = Bus::as_nobody("dbus-monitor");
        monitor.args(["--address", &self.address(), &format!("type='signal',interface='{NAME}'")]);
        self.programs.push(monitor.stdin(Stdio::null()).stdout(heard).stderr(Stdio::null()).spawn().unwrap());
        // Its name on the bus is the first that it prints.
        until("nobody's program to listen", || self.heard_by_nobody().contains("NameAcquired").then_some(()));
    }

    fn heard_by_nobody(&self) -> String {
        fs::read_to_string(self.directory.join("heard")).unwrap_or_default()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        for program in self.programs.iter_mut().rev() {
            let _ = program.kill();
            let _ = program.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

async fn listen(to: &Connection) -> MessageStream {
    let rule = MatchRule::builder().msg_type(Type::Signal).interface(NAME).build().unwrap();
    MessageStream::for_match_rule(rule, to, NonZero::new(16)).await.unwrap()
}

/// The next signal, which must be this one.
async fn next(heard: &mut MessageStream, name: &str) -> Message {
    let message = tokio::time::timeout(LIMIT, heard.next()).await.unwrap_or_else(|_| panic!("no {name} was heard"));
    let message = message.unwrap().unwrap();
    assert_eq!(message.header().member().unwrap().as_str(), name, "{message:?}");
    message
}

async fn hold(by: &Connection, reason: &str, milliseconds: u32) -> u32 {
    let answer = by.call_method(Some(NAME), OBJECT, Some(NAME), "Hold", &(reason, milliseconds)).await.unwrap();
    answer.body().deserialize().unwrap()
}

/// `lsm-guest prepare`, which ends when the path is prepared.
fn preparing(agent: &Agent) -> Child {
    let new = MAC.to_string();
    let arguments = [
        "prepare",
        "--old",
        OLD,
        "--new",
        &new,
        "--address",
        "10.2.0.7/24",
        "--gateway",
        "10.2.0.1",
        "--lan",
        "dallas",
    ];
    agent.command(&arguments).stdout(Stdio::null()).spawn().unwrap()
}

fn prepared(mut preparing: Child) {
    assert!(preparing.wait().unwrap().success());
}

#[test]
fn signals_are_heard_by_everybody_and_holds_are_roots() {
    alone(|| {
        let (_home, _lan) = vm();
        let Some(mut bus) = Bus::start() else { return };
        let agent = Agent::start_on(&bus.address());
        until("the agent on the bus", || agent.log().contains("on the system bus").then_some(()));
        bus.listen_as_nobody();
        let mut call = Bus::as_nobody("dbus-send");
        call.args([&format!("--bus={}", bus.address()), "--print-reply", &format!("--dest={NAME}"), OBJECT]);
        let refused = call.arg(format!("{NAME}.Status")).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("AccessDenied"), "{said}");

        runtime().block_on(async {
            let program = bus.connect().await;
            let mut heard = listen(&program).await;

            eprintln!("-- held by one that leaves the bus");
            let holder = bus.connect().await;
            hold(&holder, "writes its cache", 4_000).await;
            let first = preparing(&agent);
            let message = next(&mut heard, "Preparing").await;
            let (migration, lan, addresses, most): (String, String, Vec<String>, u32) =
                message.body().deserialize().unwrap();
            assert_eq!((lan.as_str(), addresses, most), ("dallas", vec!["10.2.0.7".to_owned()], 4_000));
            let by = format!("writes its cache ({}", holder.unique_name().unwrap());
            until("the preparation to be held", || {
                let status = agent.does(&["status"]);
                (status.contains("programs in the VM to let the move go on") && status.contains(&by)).then_some(())
            });
            holder.close().await.unwrap();
            prepared(first);
            assert!(agent.log().contains("gone, and holds moves back no more"), "{}", agent.log());
            agent.does(&["abort"]);
            let aborted: String = next(&mut heard, "Aborted").await.body().deserialize().unwrap();
            assert_eq!(aborted, migration);

            eprintln!("-- held by one that lets go, and by one that never does");
            let holder = bus.connect().await;
            let cookie = hold(&holder, "lets go", 4_000).await;
            hold(&program, "never lets go", 1_000).await;
            let second = preparing(&agent);
            let message = next(&mut heard, "Preparing").await;
            let (migration, ..): (String, String, Vec<String>, u32) = message.body().deserialize().unwrap();
            // Cookies are their owner's.
            assert!(program.call_method(Some(NAME), OBJECT, Some(NAME), "Release", &(cookie,)).await.is_err());
            holder.call_method(Some(NAME), OBJECT, Some(NAME), "Release", &(cookie,)).await.unwrap();
            prepared(second);
            let log = agent.log();
            assert!(log.contains("going on without them") && log.contains("never lets go"), "{log}");

            eprintln!("-- and switched");
            agent.does(&["switch", "--settle"]);
            for sure in [false, true] {
                let message = next(&mut heard, "Switched").await;
                let said: (String, Vec<String>, Vec<String>, bool) = message.body().deserialize().unwrap();
                let (from, to) = (vec!["192.0.2.7".into(), "2001:db8:1::7".into()], vec!["10.2.0.7".into()]);
                assert_eq!(said, (migration.clone(), from, to, sure));
            }
            let settled: String = next(&mut heard, "Settled").await.body().deserialize().unwrap();
            assert_eq!(settled, migration);
        });
        for name in ["Preparing", "Aborted", "Switched", "Settled"] {
            until(name, || bus.heard_by_nobody().contains(&format!("member={name}")).then_some(()));
        }
    });
}
