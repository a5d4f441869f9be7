//! What comes in from outside: hook calls, peers' calls, libvirt's events; each as an [`Input`] for the one that decides
//! whom it is about.

use std::{rc::Rc, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use super::Input;
use crate::{
    hook,
    host::Host,
    libvirt::{self, Notice},
    peer, peer_line, story,
};

/// A hook that does not say what it wants within this is not libvirt's.
const HOOK: Duration = Duration::from_secs(5);

/// Lines that peers have to this host. Each migration has one; who has no certificate holds one for some seconds.
const MOST_PEERS: usize = 256;

pub(super) async fn take_hooks(listener: UnixListener, inputs: mpsc::UnboundedSender<Input>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let inputs = inputs.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = take_hook(stream, &inputs).await {
                        tracing::warn!(error, "a hook call came to nothing");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a hook call");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn take_hook(mut stream: UnixStream, inputs: &mpsc::UnboundedSender<Input>) -> Result<(), String> {
    let caller = stream.peer_cred().map_err(|e| e.to_string())?;
    let uid = caller.uid();
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        return Err(format!("user {uid} is not root"));
    }
    let request = tokio::time::timeout(HOOK, hook::read_request(&mut stream)).await;
    let request = request.map_err(|_| "it said nothing".to_owned())?.map_err(|e| story(&e))?;
    if request.operation == "release" && request.sub.is_empty() {
        let process = caller.pid().unwrap_or_default();
        tracing::info!(vm = request.vm, user = uid, process, "the operator ends an old path");
    }
    let (answer, answered) = oneshot::channel();
    inputs.send(Input::Hook(request, answer)).map_err(|_| "the service is going".to_owned())?;
    let answer = answered.await.map_err(|_| "the service gave no answer".to_owned())?;
    hook::write_answer(&mut stream, &answer).await.map_err(|e| story(&e))
}

pub(super) async fn take_peers(host: Rc<Host>, listener: TcpListener, inputs: mpsc::UnboundedSender<Input>) {
    let (heard_in, mut heard) = mpsc::unbounded_channel();
    tokio::task::spawn_local(async move {
        while let Some((name, handle, message)) = heard.recv().await {
            let _ = inputs.send(Input::Peer { name, handle, message });
        }
    });
    let room = Arc::new(tokio::sync::Semaphore::new(MOST_PEERS));
    loop {
        match listener.accept().await {
            Ok((tcp, from)) => {
                let Ok(seat) = room.clone().try_acquire_owned() else {
                    tracing::warn!(from = %peer::named(from), MOST_PEERS, "a caller was turned away: too many lines at once");
                    continue;
                };
                let answer = peer_line::answer(host.clone(), tcp, heard_in.clone());
                tokio::task::spawn_local(async move {
                    answer.await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a peer");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

pub(super) async fn take_events(inputs: mpsc::UnboundedSender<Input>) {
    let mut events = libvirt::Events::start(libvirt::Place::default(), false);
    loop {
        let input = match events.next().await {
            Notice::Event { whose, what, .. } => Input::Libvirt(whose, what),
            Notice::Connected => Input::Connected,
        };
        if inputs.send(input).is_err() {
            return;
        }
    }
}
