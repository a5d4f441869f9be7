//! Places: threads in network namespaces of their own, and the links between them.

use std::{
    fs,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, gettid},
};

/// Runs a test in a namespace of its own; skips it where that is not allowed, unless all tests are expected to run.
pub(crate) fn alone(test: impl FnOnce() + Send + 'static) {
    if !Uid::effective().is_root() {
        let reason = "needs root: namespaces of single threads";
        assert!(std::env::var_os("LSM_EXPECT_ALL").is_none_or(|value| value != "1"), "{reason}");
        eprintln!("skipped: {reason}");
        return;
    }
    let test = thread::spawn(move || {
        leave();
        test();
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Another place, which does what it is told until it is dropped.
pub(crate) struct Place {
    orders: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    tid: i32,
}

impl Place {
    pub(crate) fn new() -> Self {
        let (orders, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (ready, tid) = mpsc::channel();
        thread::spawn(move || {
            leave();
            ready.send(gettid().as_raw()).unwrap();
            inbox.into_iter().for_each(|order| order());
        });
        Place { orders, tid: tid.recv().unwrap() }
    }

    /// Does something there and waits for its result.
    pub(crate) fn call<T: Send + 'static>(&self, what: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.orders.send(Box::new(move || drop(done.send(what())))).unwrap();
        result.recv().expect("the other place panicked")
    }

    /// A veth from here, named `ours`, to there, named `theirs`; both up.
    pub(crate) fn plug(&self, ours: &str, theirs: &str) {
        let there = format!("/proc/{}/task/{}/ns/net", std::process::id(), self.tid);
        run(&format!("ip link add name {ours} type veth peer name {theirs} netns {there}"));
        run(&format!("ip link set dev {ours} up"));
        self.run(&format!("ip link set dev {theirs} up"));
    }

    pub(crate) fn run(&self, command: &str) {
        let command = command.to_owned();
        self.call(move || run(&command));
    }
}

fn leave() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    run("ip link set lo up");
}

/// Runs a command here; its words are separated by spaces.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Asks until there is an answer; after ten seconds it tells what it waited for.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A counter of /proc/net/netstat of this place; 0 where the kernel does not have it.
pub(crate) fn counter(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    lines
        .chunks(2)
        .filter(|pair| pair[0][0] == "MPTcpExt:")
        .find_map(|pair| pair[0].iter().position(|column| *column == name).map(|at| pair[1][at].parse().unwrap()))
        .unwrap_or(0)
}

/// A runtime on this very thread: others would not be in this place.
pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}
