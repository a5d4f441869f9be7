//! The sockets of the service: systemd's, or its own where it was started by hand.

use std::{
    io,
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener};

use super::Failure;
use crate::{config::Config, listening, raw};

/// Where hooks and peers call.
pub(super) struct Sockets {
    pub(super) hook: UnixListener,
    pub(super) peers: TcpListener,
    /// systemd holds them and can start us again.
    pub(super) activated: bool,
}

impl Sockets {
    pub(super) fn open(config: &Config, directory: &Path) -> Result<Sockets, Failure> {
        let mut hook = None;
        let mut peers = None;
        for fd in sd_notify::listen_fds()? {
            let fd = raw::passed(fd);
            match socket2::SockRef::from(&fd).local_addr()?.is_unix() {
                true => hook = Some(std::os::unix::net::UnixListener::from(fd)),
                false => peers = Some(std::net::TcpListener::from(fd)),
            }
        }
        let activated = hook.is_some();
        let path: PathBuf = directory.join("hook.sock");
        let hook = match hook {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                UnixListener::from_std(listener)?
            }
            None => bind_hook(&path).map_err(|error| format!("cannot listen on {}: {error}", path.display()))?,
        };
        let peers = match peers {
            Some(listener) => {
                listener.set_nonblocking(true)?;
                listener
            }
            None => listening::listen(config.listen)
                .map_err(|error| format!("cannot listen on {}: {error}; see [peer_channel] listen", config.listen))?,
        };
        Ok(Sockets { hook, peers: TcpListener::from_std(peers)?, activated })
    }
}

fn bind_hook(path: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another lsm-hook serves it"));
    }
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
