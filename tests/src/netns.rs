//! Named network namespaces that vanish with their guard.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use nix::sched::{CloneFlags, setns};

use crate::{
    keeper,
    shell::{During as _, LabError, Result, run, run_with_input},
};

/// A network namespace with a name under `/run/netns`. Dropping it deletes the name.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace, with its loopback up, forwarding off, no reverse path filter and no IPv6.
    ///
    /// # Errors
    /// Not root, or the name is taken.
    pub fn new(name: &str) -> Result<Netns> {
        keeper::keep("netns", name);
        run(Command::new("ip").args(["netns", "add", name]))?;
        let ns = Netns { name: name.into() };
        ns.ip("link set lo up")?;
        ns.sysctl(&[
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
            ("net/ipv4/conf/all/send_redirects", "0"),
            ("net/ipv4/conf/default/send_redirects", "0"),
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ])?;
        Ok(ns)
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that runs in it. The process has the id that the started child has.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs iproute2's `ip` in it, one command per line of `commands`.
    ///
    /// # Errors
    /// The first command that failed.
    pub fn ip(&self, commands: &str) -> Result<String> {
        run_with_input(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), commands)
    }

    /// The same for `tc`.
    ///
    /// # Errors
    /// The first command that failed.
    pub fn tc(&self, commands: &str) -> Result<String> {
        run_with_input(Command::new("tc").args(["-n", &self.name, "-batch", "-"]), commands)
    }

    /// Sets files under `/proc/sys`; one that does not exist is passed over.
    ///
    /// # Errors
    /// The kernel refused a value.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys").join(key);
                if path.exists() {
                    std::fs::write(&path, value).during(|| format!("write {value} to {}", path.display()))?;
                }
            }
            Ok(())
        })?
    }

    /// Lets an interface have IPv6, without waiting for whether its addresses are the only ones, nor heeding routers.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn enable_ipv6(&self, interface: &str) -> Result<()> {
        let settings = [("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")];
        let settings = settings.map(|(name, value)| (format!("net/ipv6/conf/{interface}/{name}"), value));
        self.sysctl(&settings.each_ref().map(|(name, value)| (name.as_str(), *value)))
    }

    /// Runs `work` on a thread of its own inside the namespace: sockets that it opens belong to it for good.
    ///
    /// # Errors
    /// The namespace is gone, or `work` panicked.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || -> Result<T> {
                enter_here(&path)?;
                Ok(work())
            });
            inside.join().map_err(|_| LabError::Other(format!("the work inside {} panicked", self.name)))?
        })
    }
}

/// Moves the calling thread into the namespace at `path`, for good.
///
/// # Errors
/// No such namespace, or not root.
pub fn enter_here(path: &Path) -> Result<()> {
    let file = File::open(path).during(|| format!("open the namespace {}", path.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET).during(|| format!("enter the namespace {}", path.display()))
}

impl Drop for Netns {
    fn drop(&mut self) {
        if run(Command::new("ip").args(["netns", "delete", &self.name])).is_ok() {
            keeper::forget("netns", &self.name);
        }
    }
}
