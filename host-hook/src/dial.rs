//! Connections to other hosts, made by a unit of its own. The service has power over this host's network and no socket of
//! the Internet's families; `lsm-hook dial` has such sockets and no power at all: it connects to configured peers and to
//! nobody else, and gives what it has connected to the service. TLS is the service's.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, RawFd},
    path::Path,
    rc::Rc,
    time::Duration,
};

use nix::{
    cmsg_space,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{TcpStream, UnixListener, UnixStream},
    time::timeout,
};

use crate::{config::Config, raw, story};

/// Where the unit listens, in the service's directory.
const SOCKET: &str = "dial.sock";
/// The unit's process ends when nobody has asked for so long.
const IDLE: Duration = Duration::from_secs(60);
/// No answer of a peer takes longer; nor does the service wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a peer's name, in bytes, and of an answer.
const LONGEST: usize = 1024;

/// What goes with a connection, or in its place.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Connected,
    /// The kernel's number for it.
    Os(i32),
    Other(String),
}

/// A connection to a configured peer. Where no such unit listens, it is made here.
///
/// # Errors
/// The kernel's; or there is no answer.
pub async fn connect(directory: &Path, peer: &str, address: &str) -> io::Result<TcpStream> {
    match UnixStream::connect(directory.join(SOCKET)).await {
        Ok(unit) => ask(unit, peer).await,
        Err(_) => TcpStream::connect(address).await,
    }
}

async fn ask(mut unit: UnixStream, peer: &str) -> io::Result<TcpStream> {
    unit.write_all(format!("{peer}\n").as_bytes()).await?;
    let receive = || {
        let mut bytes = [0; LONGEST];
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let mut space = cmsg_space!(RawFd);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<UnixAddr>(unit.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let passed = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let length = received.bytes;
        Ok((passed.map(raw::passed), bytes[..length].to_vec()))
    };
    let (passed, answer) = unit.async_io(Interest::READABLE, receive).await?;
    if answer.is_empty() {
        return Err(io::Error::other(
            "the unit that connects to peers has failed; see \"systemctl status lsm-hook-dial\"",
        ));
    }
    match (serde_json::from_slice(&answer)?, passed) {
        (Answer::Connected, Some(socket)) => {
            let socket = std::net::TcpStream::from(socket);
            socket.set_nonblocking(true)?;
            TcpStream::from_std(socket)
        }
        (Answer::Connected, None) => Err(io::Error::other("there was no connection in the answer")),
        (Answer::Os(number), _) => Err(io::Error::from_raw_os_error(number)),
        (Answer::Other(words), _) => Err(io::Error::other(words)),
    }
}

/// The unit's process: answers on the socket that systemd passed, until idle.
///
/// # Errors
/// There is no such socket.
pub async fn serve(config: &Path) -> Result<(), String> {
    let passed = sd_notify::listen_fds().map_err(|error| error.to_string())?.next();
    let passed = passed.ok_or("there is no socket: lsm-hook-dial.socket starts this")?;
    let listener = std::os::unix::net::UnixListener::from(raw::passed(passed));
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let listener = UnixListener::from_std(listener).map_err(|error| error.to_string())?;
    let config: Rc<Path> = config.into();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (service, _) = accepted.map_err(|error| error.to_string())?;
                let config = config.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = answer(service, &config).await {
                        tracing::warn!(%error, "a connection came to nothing");
                    }
                });
            }
            () = tokio::time::sleep(IDLE) => return Ok(()),
        }
    }
}

async fn answer(mut service: UnixStream, config: &Path) -> io::Result<()> {
    let mut peer = String::new();
    BufReader::new((&mut service).take(LONGEST as u64)).read_line(&mut peer).await?;
    let connected = timeout(PATIENCE, connect_to(peer.trim_end(), config)).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let answer = match &connected {
        Ok(_) => Answer::Connected,
        Err(error) => error.raw_os_error().map_or_else(|| Answer::Other(error.to_string()), Answer::Os),
    };
    let answer = serde_json::to_vec(&answer)?;
    let passed: Vec<RawFd> = connected.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&passed)];
    let rights = if passed.is_empty() { &[][..] } else { &rights[..] };
    let send = || {
        let parts = [IoSlice::new(&answer)];
        Ok(sendmsg::<()>(service.as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None)?)
    };
    service.async_io(Interest::WRITABLE, send).await.map(drop)
}

/// The configuration is read anew each time: the service may have been started again with another one.
async fn connect_to(peer: &str, config: &Path) -> io::Result<TcpStream> {
    let config = Config::load(config).map_err(|error| io::Error::other(story(&error)))?;
    match config.peers.get(peer) {
        Some(configured) => TcpStream::connect(&configured.address).await,
        None => Err(io::Error::other(format!("host.toml has no [peer.{peer}]"))),
    }
}
