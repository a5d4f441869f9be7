//! What stays connected to the agent: a command that holds moves back, and whoever prints signals.

use std::{ffi::OsString, process::Command};

use futures_util::StreamExt as _;
use zbus::{Connection, MessageStream, message};

use super::{Failure, Guest1Proxy, in_words};

const INTERFACE: &str = "org.lsm.Guest1";

/// Runs a command under a hold, which goes with this process.
pub(super) async fn hold(guest: &Guest1Proxy<'_>, reason: &str, ms: u32, command: &[OsString]) -> Result<(), Failure> {
    guest.hold(reason, ms).await.map_err(in_words)?;
    let Some((program, arguments)) = command.split_first() else { return Err("no command to run".into()) };
    // This thread waits: nothing else is to be done meanwhile.
    let status = Command::new(program).args(arguments).status();
    let status = status.map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => Err(format!("{}: {status}", program.display()).into()),
    }
}

/// Prints each signal on a line of its own, until the agent is gone.
pub(super) async fn signals(connection: &Connection, json: bool) -> Result<(), Failure> {
    let mut messages = MessageStream::from(connection);
    while let Some(message) = messages.next().await {
        let message = message?;
        let header = message.header();
        if header.message_type() != message::Type::Signal || header.interface().is_none_or(|name| name != INTERFACE) {
            continue;
        }
        let Some(member) = header.member() else { continue };
        let fields = fields(member, &message.body())?;
        if json {
            let mut object = serde_json::Map::from_iter([("signal".to_owned(), member.to_string().into())]);
            object.extend(fields.into_iter().map(|(name, value)| (name.to_owned(), value)));
            println!("{}", serde_json::Value::Object(object));
        } else {
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("{name} {value}")).collect();
            println!("{member}: {}", fields.join(", "));
        }
    }
    Err("the agent is gone".into())
}

type Fields = Vec<(&'static str, serde_json::Value)>;

fn fields(member: &str, body: &message::Body) -> zbus::Result<Fields> {
    Ok(match member {
        "Preparing" => {
            let (migration, lan, addresses, most_ms): (String, String, Vec<String>, u32) = body.deserialize()?;
            let (lan, addresses) = (lan.into(), addresses.into());
            vec![("migration", migration.into()), ("lan", lan), ("addresses", addresses), ("most_ms", most_ms.into())]
        }
        "Switched" => {
            let (migration, from, to, sure): (String, Vec<String>, Vec<String>, bool) = body.deserialize()?;
            vec![("migration", migration.into()), ("from", from.into()), ("to", to.into()), ("sure", sure.into())]
        }
        _ => vec![("migration", body.deserialize::<String>()?.into())],
    })
}
