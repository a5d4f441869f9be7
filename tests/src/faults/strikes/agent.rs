//! The agent, its channel to the host, and the VM's memory.

use super::pause;
use crate::{
    channel_proxy::{ChannelProxy, Mode, Versions},
    faults::Scene,
    shell::{LabError, Result},
};

pub(crate) fn killed(scene: &mut Scene) -> Result<()> {
    scene.stage.kill_agent()?;
    pause(300);
    scene.stage.start_agent()
}

/// For 10 s, wherever the VM is then.
pub(crate) fn frozen(scene: &mut Scene) -> Result<()> {
    scene.stage.guest.spawn("thaw", "p=$(pidof lsm-guest); kill -STOP $p; sleep 10; kill -CONT $p").map(drop)
}

pub(crate) fn channel_proxy(scene: &mut Scene) -> Result<()> {
    scene.proxy = Some(ChannelProxy::before(&scene.stage.agent_port()?)?);
    Ok(())
}

fn of_versions(scene: &mut Scene, versions: Versions) -> Result<()> {
    scene.proxy = Some(ChannelProxy::between(&scene.stage.agent_port()?, versions)?);
    Ok(())
}

/// As a release after the next would be: it speaks the next version, and ours.
pub(crate) fn newer(scene: &mut Scene) -> Result<()> {
    of_versions(scene, Versions { of_guest: Some(&[2, 1]), ..Versions::default() })
}

pub(crate) fn older_than_its_host(scene: &mut Scene) -> Result<()> {
    of_versions(scene, Versions { of_host: Some(&[2, 1]), ..Versions::default() })
}

pub(crate) fn of_no_common_version(scene: &mut Scene) -> Result<()> {
    of_versions(scene, Versions { of_guest: Some(&[9]), ..Versions::default() })
}

/// It could not be prepared; joined after the arrival, where the host's program fits.
pub(crate) fn was_not_understood(scene: &mut Scene) -> Result<()> {
    let log = scene.stage.log(&scene.from);
    if log.contains("no common protocol version: this side speaks 1, lsm-guest") {
        return Ok(());
    }
    Err(LabError::Other("the source's log does not say that the versions do not fit".into()))
}

fn channel(scene: &mut Scene, mode: Mode) -> Result<()> {
    if let Some(proxy) = &scene.proxy {
        proxy.set(mode);
    }
    Ok(())
}

pub(crate) fn channel_reset(scene: &mut Scene) -> Result<()> {
    channel(scene, Mode::Reset)
}

/// Until the move is over.
pub(crate) fn channel_silent(scene: &mut Scene) -> Result<()> {
    channel(scene, Mode::Silent)
}

pub(crate) fn channel_slow(scene: &mut Scene) -> Result<()> {
    channel(scene, Mode::Slow)
}

/// Faster than it is copied, for as long as the file says so.
pub(crate) fn dirty_memory(scene: &mut Scene) -> Result<()> {
    let dirty = "touch /tmp/dirty; while [ -e /tmp/dirty ]; do dd if=/dev/urandom of=/tmp/dirt bs=1M count=24 conv=notrunc 2>/dev/null; done; rm -f /tmp/dirt; touch /tmp/clean";
    scene.stage.guest.spawn("dirty", dirty).map(drop)
}

/// Nothing of it may be left: it would take the next move's CPU.
pub(crate) fn clean_memory(scene: &mut Scene) -> Result<()> {
    let end = "rm -f /tmp/dirty; while ! [ -e /tmp/clean ]; do kill $(pidof dd) 2>/dev/null; sleep 0.1; done; rm -f /tmp/clean";
    scene.stage.guest.must(end).map(drop)
}
