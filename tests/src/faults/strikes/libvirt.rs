//! The migration itself fails.

use std::{fs, time::Duration};

use super::pause;
use crate::{
    faults::Scene,
    shell::{LabError, Result, run},
};

pub(crate) fn abort(scene: &mut Scene) -> Result<()> {
    scene.stage.site(&scene.from).virsh(&["domjobabort", "vm"]).map(drop)
}

pub(crate) fn kill_destination_qemu(scene: &mut Scene) -> Result<()> {
    let kill = "kill -KILL $(cat /run/libvirt/qemu/vm.pid)";
    run(scene.stage.site(&scene.to).command("sh").args(["-c", kill])).map(drop)
}

pub(crate) fn never_converges(scene: &mut Scene) -> Result<()> {
    pause(8_000);
    if scene.qemu_said(&scene.from, "event STOP") {
        return Err(LabError::Other("the copy converged all the same".into()));
    }
    abort(scene)
}

pub(crate) fn abort_stopped(scene: &mut Scene) -> Result<()> {
    abort(scene)?;
    scene.time_silence()
}

pub(crate) fn kill_stopped(scene: &mut Scene) -> Result<()> {
    kill_destination_qemu(scene)?;
    scene.time_silence()
}

/// Longer than a lease: the source's service ends the connection that QEMU waits for, and the VM runs on before the network
/// is back.
pub(crate) fn cut_stopped(scene: &mut Scene) -> Result<()> {
    scene.stage.topology.wire("wan-montreal")?.cut()?;
    std::thread::sleep(Duration::from_secs(45));
    scene.stage.topology.wire("wan-montreal")?.mend()?;
    // What waits in the shaper would keep TCP from sending it again.
    scene.stage.topology.wire("wan-montreal")?.set_rate(200)?;
    scene.time_silence()
}

pub(crate) fn refuse_prepare(scene: &mut Scene) -> Result<()> {
    scene.write(&scene.to, "etc/lsm/refuse", "prepare begin")
}

pub(crate) fn refuse_started(scene: &mut Scene) -> Result<()> {
    scene.write(&scene.to, "etc/lsm/refuse", "started begin")
}

pub(crate) fn refuse_nothing(scene: &mut Scene) -> Result<()> {
    let file = scene.file(&scene.to, "etc/lsm/refuse");
    fs::remove_file(&file).map_err(|error| LabError::Other(format!("cannot remove {}: {error}", file.display())))
}
