//! AF_VSOCK: the listener, and who may speak to it.

use std::{io, os::fd::AsFd as _, time::Duration};

use lsm_protocol::{frame::Wire, proof::Key};
use socket2::SockRef;
use tokio::{io::Interest, sync::mpsc};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use super::{News, converse};
use crate::raw;

/// Where the agent listens.
pub const PORT: u32 = 19_539;
/// Ports below are for root on the host (net/vmw_vsock/af_vsock.c, LAST_RESERVED_PORT).
const UNPRIVILEGED: u32 = 1_024;
/// More conversations than a host, its successor and somebody who debugs could want.
const MOST: usize = 8;

/// Listens for as long as the agent runs. A VM without a vsock device has none: that is said once.
pub async fn listen(key: Option<Key>, news: mpsc::UnboundedSender<News>) {
    let listener = match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, PORT)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::info!(%error, port = PORT, "no vsock here; the virtio-serial port is the only way in");
            return;
        }
    };
    tracing::info!(port = PORT, "listening on vsock");
    let room = std::sync::Arc::new(tokio::sync::Semaphore::new(MOST));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) if !trusted(peer) => {
                tracing::warn!(
                    cid = peer.cid(),
                    port = peer.port(),
                    "refused: only root on the host may speak to this agent (CID 2, source port below 1024)"
                );
                drop(stream);
            }
            Ok((stream, _)) => {
                let Ok(permit) = room.clone().try_acquire_owned() else {
                    tracing::warn!(MOST, "refused: too many conversations at once");
                    continue;
                };
                let (key, news) = (key.clone(), news.clone());
                tokio::spawn(async move {
                    let reset = transport_reset(&stream);
                    converse(stream, reset, Wire::Stream, "vsock", key, &news).await;
                    drop(permit);
                });
            }
            Err(error) => {
                let wait = Duration::from_millis(if error.kind() == io::ErrorKind::Interrupted { 0 } else { 500 });
                tracing::warn!(%error, "cannot accept a vsock connection");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Comes when the transport is reset: the VM runs on another host, or the device was unplugged. The kernel tells an idle
/// connection so by an error alone (virtio_vsock_reset_sock in net/vmw_vsock/virtio_transport.c, seen with 6.12), and
/// tokio wakes no reader for an error alone.
fn transport_reset(stream: &VsockStream) -> impl Future<Output = io::Error> + use<> {
    let second = stream.as_fd().try_clone_to_owned();
    async move {
        let watch = async {
            let socket = raw::watch(second?, Interest::ERROR)?;
            loop {
                let mut guard = socket.ready(Interest::ERROR).await?;
                if let Some(error) = SockRef::from(socket.get_ref()).take_error()? {
                    return Ok(error);
                }
                guard.clear_ready();
            }
        };
        watch.await.unwrap_or_else(|error: io::Error| error)
    }
}

fn trusted(peer: VsockAddr) -> bool {
    peer.cid() == VMADDR_CID_HOST && peer.port() < UNPRIVILEGED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_host_s_root_is_trusted() {
        assert!(trusted(VsockAddr::new(VMADDR_CID_HOST, 1023)));
        assert!(!trusted(VsockAddr::new(VMADDR_CID_HOST, 1024)));
        assert!(!trusted(VsockAddr::new(3, 1023)));
        assert!(!trusted(VsockAddr::new(1, 1023)));
    }
}
