//! The hosts, their services, and the channel between these.

use std::time::Duration;

use super::pause;
use crate::{
    faults::Scene,
    shell::{LabError, Result, run, wait_for},
};

/// Two leases of this stage's, and the guest's part.
const LIMIT: Duration = Duration::from_secs(90);

pub(crate) fn source_service_killed(scene: &mut Scene) -> Result<()> {
    let site = scene.from.clone();
    scene.stage.restart_service(&site)
}

pub(crate) fn destination_service_killed(scene: &mut Scene) -> Result<()> {
    let site = scene.to.clone();
    scene.stage.restart_service(&site)
}

pub(crate) fn both_services_killed(scene: &mut Scene) -> Result<()> {
    let (from, to) = (scene.from.clone(), scene.to.clone());
    scene.stage.stop_service(&from);
    scene.stage.stop_service(&to);
    scene.stage.restart_service(&from)?;
    scene.stage.restart_service(&to)
}

/// Until the destination has given up waiting for its word.
pub(crate) fn source_service_away(scene: &mut Scene) -> Result<()> {
    let site = scene.from.clone();
    scene.stage.stop_service(&site);
    pause(25_000);
    scene.stage.restart_service(&site)
}

/// Every connection between the two services ends, again and again for a while.
pub(crate) fn peers_cut(scene: &mut Scene) -> Result<()> {
    for _ in 0..8 {
        for site in &scene.stage.sites {
            let mut cut = scene.stage.topology.ns(site.name()).command("ss");
            run(cut.args(["-K", "state", "established", "( dport = 16519 or sport = 16519 )"]))?;
        }
        pause(250);
    }
    Ok(())
}

const SILENCE: &str = "table ip lab {
    chain out { type filter hook output priority 0; tcp dport 16519 drop; tcp sport 16519 drop; }
}";

fn silence(scene: &mut Scene, milliseconds: u64) -> Result<()> {
    scene.write("montreal", "silence.nft", SILENCE)?;
    let rules = scene.file("montreal", "silence.nft");
    for site in ["montreal", "dallas"] {
        run(scene.stage.topology.ns(site).command("nft").arg("-f").arg(&rules))?;
    }
    scene.undo.push(|scene| {
        for site in ["montreal", "dallas"] {
            run(scene.stage.topology.ns(site).command("nft").args(["delete", "table", "ip", "lab"]))?;
        }
        Ok(())
    });
    pause(milliseconds);
    scene.heal()
}

pub(crate) fn peers_silent(scene: &mut Scene) -> Result<()> {
    silence(scene, 8_000)
}

/// The lease is 20 s.
pub(crate) fn peers_silent_long(scene: &mut Scene) -> Result<()> {
    silence(scene, 24_000)
}

/// The whole WAN has half a second's delay for a while.
pub(crate) fn peers_slow(scene: &mut Scene) -> Result<()> {
    let wire = scene.stage.topology.wire("wan-montreal")?;
    wire.set_delay(std::time::Duration::from_millis(500))?;
    pause(6_000);
    wire.set_delay(std::time::Duration::from_millis(35))
}

pub(crate) fn destination_dies(scene: &mut Scene) -> Result<()> {
    scene.stage.site(&scene.to).die()
}

/// And with it what the lab's kernel would go on doing: its tunnel.
pub(crate) fn source_dies(scene: &mut Scene) -> Result<()> {
    scene.stage.topology.wire("wan-montreal")?.cut()?;
    scene.undo.push(|scene| scene.stage.topology.wire("wan-montreal")?.mend());
    scene.stage.site(&scene.from).die()
}

/// What a plain connection holds does not outlive its other end: two leases later it is cut, and nothing is left.
pub(crate) fn its_tunnel_goes(scene: &mut Scene) -> Result<()> {
    scene.stage.agent_is(&["idle"], LIMIT)?;
    scene.others = None; // the plain one: nothing could keep it
    wait_for("the home tunnel to go with the source's host", LIMIT, || {
        (scene.stage.tunnels(&scene.to).ok()? == 0).then_some(())
    })?;
    let log = scene.stage.log(&scene.to);
    if log.contains("nothing has come from the source host") {
        return Ok(());
    }
    Err(LabError::Other("the destination's log does not say why the old path was left".into()))
}

/// Where the destination's service keeps its state.
pub(crate) fn disk_full(scene: &mut Scene) -> Result<()> {
    let full = "mount -t tmpfs -o size=16k tmpfs /run/lsm/migrations; dd if=/dev/zero of=/run/lsm/migrations/full bs=1k 2>/dev/null; true";
    run(scene.stage.site(&scene.to).command("sh").args(["-c", full])).map(drop)
}

pub(crate) fn disk_free(scene: &mut Scene) -> Result<()> {
    // Whoever has a file open there may keep it a moment longer.
    run(scene.stage.site(&scene.to).command("umount").args(["--lazy", "/run/lsm/migrations"])).map(drop)
}
