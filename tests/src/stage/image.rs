//! What the stage's VM boots.

use std::path::Path;

use super::{AGENT, StageOptions, TCP, UDP};
use crate::{
    domain::Channel,
    image::{ImageBuilder, static_program},
    shell::{During as _, Result},
};

/// What the VM boots: the agent, the traffic program, and what the operator wants.
///
/// # Errors
/// `tests/install` has not run, or one of them does not compile.
pub fn image(options: &StageOptions) -> Result<ImageBuilder> {
    // The agent runs as its unit has it. The traffic has a real-time priority too: it is there to show what the
    // network does, not how an emulated CPU divides its time over a queue of waiting frames.
    let mut image = ImageBuilder::new(&options.kernel)
        .program(&static_program("lsm-tests", "lsm-traffic")?)?
        .service("traffic", &format!("chrt -f 10 /bin/lsm-traffic serve --tcp {TCP} --udp {UDP}"));
    if options.agent && options.disk.is_none() {
        let agent = static_program("lsm-guest", "lsm-guest")?;
        image = match options.distribution {
            None => image.program(&agent)?.service("lsm-guest", AGENT),
            Some(_) => installed(image, &agent)?,
        };
    }
    if let Some(owner) = options.distribution {
        image = image.distribution(owner);
    }
    if let Some(disk) = &options.disk {
        image = image.disk(disk);
    }
    for module in &options.modules {
        image = image.module(module);
    }
    for program in &options.installed {
        image = image.installed(program);
    }
    for name in &options.programs {
        image = image.program(&static_program("lsm-tests", name)?)?;
    }
    if options.channel == Channel::VsockDevice {
        image = image.module("vsock_loopback").program(&static_program("lsm-tests", "lab-vsock")?)?;
    }
    Ok(image)
}

/// The agent as it is installed: its files where packaging/README.md says.
fn installed(image: ImageBuilder, agent: &Path) -> Result<ImageBuilder> {
    let agent = std::fs::read(agent).during(|| format!("read {}", agent.display()))?;
    let bus = include_bytes!("../../../packaging/org.lsm.Guest1.conf");
    Ok(image
        .file("/usr/sbin/lsm-guest", 0o755, agent)
        .file("/etc/dbus-1/system.d/org.lsm.Guest1.conf", 0o644, *bus)
        .file("/etc/tmpfiles.d/lsm.conf", 0o644, *include_bytes!("../../../packaging/tmpfiles.conf"))
        .file(
            "/etc/systemd/system/lsm-guest-scripts@.service",
            0o644,
            *include_bytes!("../../../systemd/lsm-guest-scripts@.service"),
        )
        .file(
            "/etc/systemd/system/lsm-guest-scripts.socket",
            0o644,
            *include_bytes!("../../../systemd/lsm-guest-scripts.socket"),
        )
        .unit("lsm-guest", include_str!("../../../systemd/lsm-guest.service")))
}
