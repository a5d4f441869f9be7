//! Clients that cannot follow, or are gone.

use std::time::Duration;

use crate::{
    connections::Connections,
    faults::Scene,
    shell::{LabError, Result, run, wait_for},
};

const LIMIT: Duration = Duration::from_secs(30);

/// With a plain connection, which keeps the old path.
pub(crate) fn plain(scene: &mut Scene) -> Result<()> {
    scene.others = Some(Connections::open_more(&scene.stage, 0, 1)?);
    Ok(())
}

pub(crate) fn another(scene: &mut Scene) -> Result<()> {
    scene.others = Some(Connections::open_more(&scene.stage, 1, 0)?);
    Ok(())
}

/// With Linux' own limits: it accepts no address.
pub(crate) fn unable(scene: &mut Scene) -> Result<()> {
    let limits = |accepted: u8| format!("mptcp limits set subflows 8 add_addr_accepted {accepted}\n");
    let client = scene.stage.topology.ns("client");
    client.ip(&limits(0))?;
    let opened = another(scene);
    scene.stage.topology.ns("client").ip(&limits(8))?;
    opened
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where others may fail")]
pub(crate) fn nothing_more(_: &mut Scene) -> Result<()> {
    Ok(())
}

/// Nothing of it is heard any more, and nobody tells the VM so.
pub(crate) fn vanish(scene: &mut Scene) -> Result<()> {
    let Some(others) = scene.others.take() else { return Ok(()) };
    let ports = others.ports().iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let rules = format!(
        "table ip lab {{ set gone {{ type inet_service; elements = {{ {ports} }} }}
         chain out {{ type filter hook output priority 0; tcp sport @gone drop; tcp dport 5001 tcp flags rst drop; }}
         }}"
    );
    scene.write("montreal", "gone.nft", &rules)?;
    let rules = scene.file("montreal", "gone.nft");
    run(scene.stage.topology.ns("client").command("nft").arg("-f").arg(rules))?;
    scene.undo.push(|scene| {
        run(scene.stage.topology.ns("client").command("nft").args(["delete", "table", "ip", "lab"])).map(drop)
    });
    drop(others);
    Ok(())
}

/// Its connection has not moved, and policy says until-idle. Heard again, its kernel ends the connection.
pub(crate) fn vanished_holds_the_old_path(scene: &mut Scene) -> Result<()> {
    holds(scene)
}

fn holds(scene: &mut Scene) -> Result<()> {
    let state = scene.stage.agent_is(&["switched", "settling"], LIMIT)?;
    std::thread::sleep(Duration::from_secs(3));
    let later = scene.stage.agent_is(&["switched", "settling"], Duration::from_secs(1));
    later.map_err(|_| LabError::Other(format!("the old path was given up under a client that needs it: {state}")))?;
    scene.connections.alive()
}

/// Alive through the tunnel, named by the agent, and settled once it has closed.
pub(crate) fn unable_keeps_the_tunnel(scene: &mut Scene) -> Result<()> {
    let waits = || {
        let status = scene.stage.agent_is(&["switched", "settling"], LIMIT).ok()?;
        (status["waiting"] == 1).then_some(())
    };
    wait_for("the agent to name the one that has not joined", LIMIT, waits)?;
    holds(scene)?;
    if let Some(mut others) = scene.others.take() {
        others.alive()?;
        others.end()?;
    }
    Ok(())
}
