//! A virtio-vsock device without the kernel's vhost-vsock: `vhost-device-vsock`, which `tests/install --tests` builds.
//!
//! The VM sees an ordinary virtio-vsock device and CID 2 as its host. On the host the other end is a Unix socket: a
//! connection says `CONNECT port`, hears `OK port`, and is then what the VM sees as a connection from CID 2. Its source
//! ports count up from 0, one for each connection. QEMU does not migrate a VM with such a device.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    needs,
    shell::{During as _, LabError, Process, Result, wait_for},
    site::Site,
};

/// Where QEMU finds the device, inside the site.
pub const SOCKET: &str = "/run/lab-vsock-device";
/// Where the host's programs speak to the VM, inside the site.
const HYBRID: &str = "/run/lab-vsock";

/// The program.
fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cache/tools/bin/vhost-device-vsock")
}

/// Whether it is missing here. Where everything is expected (`LSM_EXPECT_ALL`), that is a failure.
///
/// # Panics
/// It is missing and `LSM_EXPECT_ALL` is set.
#[must_use]
pub fn lacking() -> bool {
    let missing = !program().exists();
    needs::lacking(missing.then(|| "no vhost-device-vsock; run tests/install --tests".to_owned()))
}

/// The running device of one VM.
#[derive(Debug)]
pub struct VsockDevice {
    hybrid: PathBuf,
    _process: Process,
}

impl VsockDevice {
    /// Starts it in a site, for a VM of this CID that is about to start there.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(site: &Site, cid: u32) -> Result<VsockDevice> {
        // A predecessor's would look as if this one listened already.
        for socket in [SOCKET, HYBRID] {
            let _ = std::fs::remove_file(site.inside(socket));
        }
        let mut command = site.command(program());
        command.args(["--guest-cid", &cid.to_string(), "--socket", SOCKET, "--uds-path", HYBRID]);
        let process = site.service("vhost-device-vsock", &mut command)?;
        let sockets = [SOCKET, HYBRID].map(|socket| site.inside(socket));
        wait_for("vhost-device-vsock to listen", Duration::from_secs(5), || {
            sockets.iter().all(|socket| socket.exists()).then_some(())
        })?;
        Ok(VsockDevice { hybrid: site.inside(HYBRID), _process: process })
    }

    /// Connects to a port of the VM, from CID 2.
    ///
    /// # Errors
    /// Nobody in the VM listens there.
    pub fn connect(&self, port: u32) -> Result<UnixStream> {
        let mut stream =
            UnixStream::connect(&self.hybrid).during(|| format!("connect to {}", self.hybrid.display()))?;
        let limit = Duration::from_secs(5);
        stream.set_read_timeout(Some(limit)).during(|| "set a time limit".into())?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).during(|| "say CONNECT".into())?;
        // Byte by byte: what follows the line is the VM's.
        let (mut answer, deadline) = (Vec::new(), Instant::now() + limit);
        while answer.last() != Some(&b'\n') && Instant::now() < deadline {
            let mut byte = [0];
            match stream.read(&mut byte).during(|| format!("connect to the VM's vsock port {port}"))? {
                0 => break,
                _ => answer.push(byte[0]),
            }
        }
        match answer.starts_with(b"OK ") {
            true => Ok(stream),
            false => Err(LabError::Other(format!("nobody listens on the VM's vsock port {port}"))),
        }
    }
}
