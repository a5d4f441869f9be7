//! What operators do.

use std::fs;

use crate::{
    faults::Scene,
    shell::{During as _, Result},
};

/// A plain connection keeps the old path, and goes back with the VM, and there again; then it ends.
pub(crate) fn back_at_once(scene: &mut Scene) -> Result<()> {
    for site in [&scene.from, &scene.to] {
        scene.stage.migrate(site)?;
        if let Some(others) = &mut scene.others {
            others.alive()?;
        }
        scene.connections.alive()?;
    }
    match scene.others.take() {
        Some(others) => others.end(),
        None => Ok(()),
    }
}

fn second_hook(scene: &Scene) -> std::path::PathBuf {
    scene.file(&scene.to, "etc/libvirt/hooks/qemu.d/lsm-again")
}

/// libvirt calls both, one after the other.
pub(crate) fn hook_twice(scene: &mut Scene) -> Result<()> {
    let first = scene.file(&scene.to, "etc/libvirt/hooks/qemu.d/lsm");
    fs::copy(first, second_hook(scene)).during(|| "install the hook once more".into()).map(drop)
}

pub(crate) fn hook_once(scene: &mut Scene) -> Result<()> {
    fs::remove_file(second_hook(scene)).during(|| "take the second hook away".into())
}

/// Other addresses to give, another policy, and the service started with them.
pub(crate) fn change_config(scene: &mut Scene) -> Result<()> {
    for site in [scene.to.clone(), scene.from.clone()] {
        scene.stage.reconfigure(&site, "0.199\"", "0.150\"")?;
        scene.stage.reconfigure(&site, "switch = \"early\"", "switch = \"arrival\"\nprepare_wait_ms = 3000")?;
        scene.stage.restart_service(&site)?;
    }
    Ok(())
}

pub(crate) fn restore_config(scene: &mut Scene) -> Result<()> {
    for site in [scene.to.clone(), scene.from.clone()] {
        scene.stage.reconfigure(&site, "0.150\"", "0.199\"")?;
        scene.stage.reconfigure(&site, "switch = \"arrival\"\nprepare_wait_ms = 3000", "switch = \"early\"")?;
        scene.stage.restart_service(&site)?;
    }
    Ok(())
}
