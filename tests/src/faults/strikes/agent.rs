//! The agent, its channel to the host, and the VM's memory.

use super::pause;
use crate::{
    channel_proxy::{ChannelProxy, Mode},
    faults::Scene,
    shell::Result,
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

/// Faster than it is copied.
pub(crate) fn dirty_memory(scene: &mut Scene) -> Result<()> {
    let dirty = "while :; do dd if=/dev/urandom of=/tmp/dirt bs=1M count=24 conv=notrunc 2>/dev/null; done";
    scene.stage.guest.spawn("dirty", dirty).map(drop)
}

pub(crate) fn clean_memory(scene: &mut Scene) -> Result<()> {
    let end = "pkill -f conv=notrunc; while pidof dd; do pkill -f conv=notrunc; sleep 0.1; done; rm -f /tmp/dirt";
    scene.stage.guest.exec(end).map(drop)
}
