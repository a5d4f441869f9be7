//! The virtio-serial port `org.lsm.guest.0`.
//!
//! The port outlives its host: while none is connected, reads give 0 and poll says POLLHUP at once and for ever. Tokio
//! takes a hang-up for the end, so the port is watched by an edge-triggered epoll instance of its own, and that one by
//! tokio.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use lsm_protocol::{frame::Wire, proof::Key};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        stat::Mode,
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd},
    sync::mpsc,
};

use super::{News, converse, hotplug::Hotplug};
use crate::raw;

/// The port's name in the VM's definition.
pub const NAME: &str = "org.lsm.guest.0";
/// The kernel's class of such ports.
const CLASS: &str = "virtio-ports";
/// A port that cannot be used is tried again after this; so is one that is not there, where the kernel tells of none.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Serves the port for as long as the agent runs.
pub async fn serve(key: Option<Key>, news: mpsc::UnboundedSender<News>) {
    // Before the first look: nothing that comes after it is missed.
    let hotplug =
        Hotplug::open().inspect_err(|error| tracing::info!(%error, "not told of devices; looking every 10 s"));
    loop {
        match find(&Path::new("/sys/class").join(CLASS)).and_then(|device| Port::open(&device)) {
            Ok(port) => {
                tracing::info!(port = NAME, "listening on virtio-serial");
                if let Err(error) = converse_for_ever(port, key.as_ref(), &news).await {
                    tracing::warn!(%error, port = NAME, "the virtio-serial port is gone");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Ok(hotplug) = &hotplug
                    && hotplug.change(CLASS).await.is_ok()
                {
                    continue;
                }
            }
            Err(error) => tracing::warn!(%error, port = NAME, "cannot use the virtio-serial port"),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn converse_for_ever(mut port: Port, key: Option<&Key>, news: &mpsc::UnboundedSender<News>) -> io::Result<()> {
    loop {
        port.host_connected().await?;
        converse(&mut port, std::future::pending(), Wire::Serial, "virtio-serial", key.cloned(), news).await;
        if port.unplugged()? {
            return Err(io::ErrorKind::NotConnected.into());
        }
    }
}

/// The device node of our port: by sysfs, since `/dev/virtio-ports` is udev's work and not every image has udev.
fn find(class: &Path) -> io::Result<PathBuf> {
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == NAME {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

struct Port {
    fd: OwnedFd,
    watch: AsyncFd<Watch>,
}

pub(crate) struct Watch(Epoll);

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl Port {
    fn open(device: &Path) -> io::Result<Port> {
        let fd = nix::fcntl::open(device, OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLET;
        epoll.add(&fd, EpollEvent::new(interest, 0))?;
        Ok(Port { fd, watch: raw::watch(Watch(epoll), Interest::READABLE)? })
    }

    /// Waits until the host's end is open.
    async fn host_connected(&self) -> io::Result<()> {
        while self.state()?.contains(PollFlags::POLLHUP) {
            let mut guard = self.watch.readable().await?;
            self.settle()?;
            guard.clear_ready();
        }
        Ok(())
    }

    fn unplugged(&self) -> io::Result<bool> {
        Ok(self.state()?.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL))
    }

    fn state(&self) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO)?;
        Ok(fds[0].revents().unwrap_or(PollFlags::empty()))
    }

    /// Takes the edge off the inner epoll, so that the next one is seen.
    fn settle(&self) -> io::Result<()> {
        let mut events = [EpollEvent::empty()];
        self.watch.get_ref().0.wait(&mut events, EpollTimeout::ZERO)?;
        Ok(())
    }

    /// Waits for the port's next change of state.
    fn poll_change(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut guard = ready!(self.watch.poll_read_ready(context))?;
        self.settle()?;
        guard.clear_ready();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Port {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match nix::unistd::read(&self.fd, buffer.initialize_unfilled()) {
                Ok(n) => {
                    buffer.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::EAGAIN) => ready!(self.poll_change(context))?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match nix::unistd::write(&self.fd, bytes) {
                Ok(n) => return Poll::Ready(Ok(n)),
                Err(Errno::EAGAIN) if self.state()?.contains(PollFlags::POLLHUP) => {
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())); // nobody is there to read it
                }
                Err(Errno::EAGAIN) => ready!(self.poll_change(context))?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let class = std::env::temp_dir().join(format!("lsm-ports-{}", std::process::id()));
        for (port, name) in [("vport1p1", "org.qemu.guest_agent.0\n"), ("vport1p2", "org.lsm.guest.0\n")] {
            fs::create_dir_all(class.join(port)).unwrap();
            fs::write(class.join(port).join("name"), name).unwrap();
        }
        assert_eq!(find(&class).unwrap(), Path::new("/dev/vport1p2"));
        fs::remove_dir_all(class.join("vport1p2")).unwrap();
        assert_eq!(find(&class).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::remove_dir_all(class).unwrap();
    }
}
