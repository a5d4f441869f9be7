//! What libvirt tells about domains while they move: life-cycle events, and how far a migration's copy is.
//!
//! Nothing here may be awaited while a hook of the same domain waits for the answer: libvirt holds the domain's lock
//! then, and both would wait for each other. (`migrate begin` is the exception.)

mod bus;
pub mod command;
mod domains;
pub(crate) mod job;
mod stats;
pub(crate) mod virsh;

use std::{
    io,
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task::AbortHandle};

pub use self::{
    domains::{Domains, State, description, domains},
    job::{Completed, Jobs, Progress},
    stats::{Dirtied, Power, Stats, compresses_in_parallel, described, dirtied, stats},
};

/// Where libvirt is found.
#[derive(Clone, Debug)]
pub struct Place {
    /// Address of the bus where libvirt-dbus is; `None` is the system bus.
    pub bus: Option<String>,
    /// libvirt-dbus's object for the driver.
    pub object: String,
    /// The same for `virsh`, the way without libvirt-dbus.
    pub uri: String,
    /// The program itself.
    pub virsh: String,
}

impl Default for Place {
    fn default() -> Self {
        Self { bus: None, object: "/org/libvirt/QEMU".into(), uri: "qemu:///system".into(), virsh: "virsh".into() }
    }
}

/// Whom an event is about: libvirt-dbus tells the UUID, `virsh` the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// As libvirt writes it: lower case with hyphens.
    Uuid(String),
    Name(String),
}

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// Its QEMU exists. After a migration its CPUs do not run yet.
    Started {
        migrated: bool,
    },
    /// Its CPUs stopped; `migrated`: to go on elsewhere (also by post-copy).
    Suspended {
        migrated: bool,
    },
    /// Its CPUs run; `migrated`: here for the first time (also by post-copy).
    Resumed {
        migrated: bool,
    },
    /// Its QEMU is gone: to another host, because a migration to here failed, or for another reason.
    Stopped(Ending),
    /// QEMU itself says that the CPUs stopped, for whatever reason, milliseconds before libvirt does.
    CpusStopped,
    /// QEMU itself says that the CPUs run.
    CpusRun,
    Other,
}

/// Why a domain ended on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    Migrated,
    Failed,
    /// With its memory, to go on later.
    Saved,
    Other,
}

/// One thing that libvirt told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    Event {
        whose: Whose,
        what: What,
        /// When this host's service heard of it.
        received: SystemTime,
    },
    /// The connection was made, or made again: what happened before may have been missed, and [`domains`] tells how
    /// things are.
    Connected,
}

/// What went wrong with libvirt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibvirtError {
    #[error("cannot reach libvirt-dbus on the bus")]
    Bus(#[from] zbus::Error),
    #[error("cannot run {program}: is the package libvirt-clients installed?")]
    Run {
        program: String,
        #[source]
        source: io::Error,
    },
    #[error("virsh says about {domain}: {said}")]
    Virsh { domain: String, said: String },
    #[error("libvirt does not answer within {} s", .0.as_secs())]
    Silent(Duration),
}

const RETRY_AFTER: Duration = Duration::from_secs(1);
// More than a host's domains can cause while the service is busy; libvirt is never made to wait.
const QUEUE: usize = 4096;

/// The events of all domains of this host. Ends when dropped.
pub struct Events {
    notices: mpsc::Receiver<Notice>,
    tasks: Vec<AbortHandle>,
}

impl Events {
    /// Starts to listen, by libvirt-dbus where it answers, else by a child `virsh event`; and to QEMU's own events by a
    /// child `virsh qemu-monitor-event`, where `monitor` asks for it. Comes back by itself when libvirt or the bus
    /// restarts. Needs a tokio runtime.
    pub fn start(place: Place, monitor: bool) -> Self {
        let (sender, notices) = mpsc::channel(QUEUE);
        let mut tasks = vec![tokio::spawn(listen(place.clone(), sender.clone())).abort_handle()];
        if monitor {
            tasks.push(tokio::spawn(listen_to_qemu(place, sender)).abort_handle());
        }
        Self { notices, tasks }
    }

    /// The next notice. May be dropped and called again.
    pub async fn next(&mut self) -> Notice {
        match self.notices.recv().await {
            Some(notice) => notice,
            // The tasks end only with `self`.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn listen(place: Place, notices: mpsc::Sender<Notice>) {
    let mut told = None;
    loop {
        let why = match bus::listen(&place, &notices).await {
            Err(no_bus) => match virsh::lifecycle(&place, &notices).await {
                Ok(()) => "virsh ended".to_owned(),
                Err(no_virsh) => format!("{}; {no_virsh}", crate::story(&no_bus)),
            },
            Ok(()) => "libvirt-dbus went away".to_owned(),
        };
        tell_once(&mut told, why);
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

async fn listen_to_qemu(place: Place, notices: mpsc::Sender<Notice>) {
    let mut told = None;
    loop {
        let ended = virsh::monitor(&place, &notices).await;
        tell_once(&mut told, ended.err().map_or_else(|| "virsh ended".to_owned(), |error| crate::story(&error)));
        tokio::time::sleep(RETRY_AFTER).await;
    }
}

/// A libvirt that is away for an hour is one line in the log.
fn tell_once(told: &mut Option<String>, why: String) {
    if told.as_ref() != Some(&why) {
        tracing::warn!(why, "no events from libvirt; trying again every second");
        *told = Some(why);
    }
}

fn now(whose: Whose, what: What) -> Notice {
    Notice::Event { whose, what, received: SystemTime::now() }
}
