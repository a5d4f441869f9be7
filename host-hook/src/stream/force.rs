//! libvirt's and its VMs' sockets made Multipath TCP by the kernel (`lsm_force`), while a VM is copied: nothing to install,
//! and no libvirtd to restart. The service may load no BPF program: `lsm-hook-force@.service` may, and nothing else, and
//! holds it for as long as who asked is there.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Duration,
};

use lsm_force::{Unit, Whose};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::timeout,
};

/// Where the unit listens, in the service's directory.
const SOCKET: &str = "force.sock";
/// For a process to start, and the kernel to take the program.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer, in bytes; a verifier's last words are long.
const LONGEST: u64 = 16 * 1024;
/// The source's end of the memory's stream is libvirt's daemon's, all others the QEMUs'. As libvirt names a VM's scope,
/// with the hyphens as systemd escapes them.
const UNITS: [Unit; 3] =
    [Unit::Named("libvirtd.service"), Unit::Named("virtqemud.service"), Unit::Beginning(r"machine-qemu\x2d")];

/// Dropped, sockets are again what they are asked to be.
#[derive(Debug)]
pub enum Forced {
    Unit(BufReader<UnixStream>),
    /// Where no such unit listens.
    Here(OwnedFd),
}

/// `directory`: the service's.
///
/// # Errors
/// Why it cannot be, in words.
pub async fn force(directory: &Path) -> Result<Forced, String> {
    match UnixStream::connect(directory.join(SOCKET)).await {
        Ok(unit) => ask(unit).await.map(Forced::Unit),
        Err(_) => {
            let attached = tokio::task::spawn_blocking(|| lsm_force::attach(Whose::Only(&UNITS))).await;
            attached.map_err(|error| error.to_string())?.map(Forced::Here).map_err(|error| error.to_string())
        }
    }
}

async fn ask(unit: UnixStream) -> Result<BufReader<UnixStream>, String> {
    let (mut unit, mut answer) = (BufReader::new(unit), String::new());
    let read = timeout(PATIENCE, (&mut unit).take(LONGEST).read_line(&mut answer)).await;
    if !read.is_ok_and(|read| read.is_ok()) || !answer.ends_with('\n') {
        return Err("lsm-hook-force@.service did not answer; see \"journalctl -u lsm-hook-force@*\"".to_owned());
    }
    match answer.trim_end() {
        "" => Ok(unit),
        why => Err(why.to_owned()),
    }
}

/// The unit's process: one line, empty when it is done, or why it cannot be; then it holds until whoever is at the other
/// end of standard input is gone.
///
/// # Errors
/// Standard input is no socket.
pub async fn serve() -> io::Result<()> {
    let stream = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.set_nonblocking(true)?;
    let mut stream = UnixStream::from_std(stream)?;
    match lsm_force::attach(Whose::Only(&UNITS)) {
        Ok(_held) => {
            stream.write_all(b"\n").await?;
            stream.read_to_end(&mut Vec::new()).await.map(drop)
        }
        Err(error) => stream.write_all(format!("{error}\n").as_bytes()).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answered(words: &str) -> Result<(), String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(words.as_bytes()).await.unwrap();
        drop(theirs);
        ask(ours).await.map(drop)
    }

    #[tokio::test]
    async fn the_unit_s_word_is_taken() {
        assert_eq!(answered("\n").await, Ok(()));
        assert_eq!(answered("it is Tuesday\n").await, Err("it is Tuesday".to_owned()));
        for mute in ["", "it is"] {
            assert!(answered(mute).await.unwrap_err().contains("did not answer"));
        }
    }
}
