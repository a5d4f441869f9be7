//! A running VM, on whichever site it is.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    domain::Domain,
    exec::{self, Line, Outcome},
    shell::{During as _, LabError, Result},
    site::Site,
};

/// A VM that was booted on one of the sites. Dropping it destroys it wherever it is.
#[derive(Debug)]
pub struct Guest {
    domain: Domain,
    sites: Vec<Arc<Site>>,
    link: Mutex<Link>,
}

/// The lab's connection to the VM's command port.
#[derive(Debug)]
struct Link {
    /// Index of the site where the VM was last.
    site: usize,
    line: Option<Line>,
}

impl Guest {
    /// Boots the VM on the first of the sites, transient, and waits until it obeys commands.
    ///
    /// # Errors
    /// libvirt refused it (its words are in the error), or it did not come up (its console is in the error).
    pub fn boot(domain: &Domain, sites: &[Arc<Site>]) -> Result<Guest> {
        let first = sites.first().ok_or_else(|| LabError::Other("no site to boot on".into()))?;
        let definition = first.dir().join(format!("{}.xml", domain.name));
        fs::write(&definition, domain.xml()).during(|| format!("write {}", definition.display()))?;
        first.virsh(&["create".as_ref(), definition.as_os_str()])?;
        let guest = Guest::known(domain, sites);
        guest.boots()?;
        Ok(guest)
    }

    /// One that libvirt knows, or will know, on one of the sites.
    #[must_use]
    pub fn known(domain: &Domain, sites: &[Arc<Site>]) -> Guest {
        let link = Link { site: 0, line: None };
        Guest { domain: domain.clone(), sites: sites.to_vec(), link: Mutex::new(link) }
    }

    /// Waits until it obeys commands.
    ///
    /// # Errors
    /// It does not (its console is in the error).
    pub fn boots(&self) -> Result<()> {
        let booted = self.exec_within("true", Duration::from_secs(120)).map(drop);
        booted.map_err(|error| LabError::Other(format!("{error}\nIts console:\n{}", self.console())))
    }

    /// What it was made from.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// Where it runs now.
    ///
    /// # Errors
    /// On no site.
    pub fn site(&self) -> Result<&Arc<Site>> {
        let mut link = self.link();
        self.locate(&mut link)?;
        Ok(&self.sites[link.site])
    }

    /// Runs a shell command in it, within 30 seconds. One at a time; for a long one use [`Guest::spawn`].
    ///
    /// # Errors
    /// It does not answer. A failing command is not an error.
    pub fn exec(&self, command: &str) -> Result<Outcome> {
        self.exec_within(command, Duration::from_secs(30))
    }

    /// [`Guest::exec`], where anything but status 0 is an error; returns the standard output.
    ///
    /// # Errors
    /// It does not answer, or the command failed.
    pub fn must(&self, command: &str) -> Result<String> {
        let outcome = self.exec(command)?;
        if outcome.status == 0 {
            return Ok(outcome.stdout);
        }
        let Outcome { status, stdout, stderr } = outcome;
        Err(LabError::Other(format!("in the VM, {command}: status {status}\n{stdout}{stderr}")))
    }

    /// Starts a command that goes on running; its output is in `/var/log/NAME.log` there. Returns its process id.
    ///
    /// # Errors
    /// It does not answer.
    pub fn spawn(&self, name: &str, command: &str) -> Result<u32> {
        let line = format!("({command}) </dev/null >/var/log/{name}.log 2>&1 & echo $!");
        let answer = self.must(&line)?;
        answer.trim().parse().map_err(|_| LabError::Other(format!("no process id from {line}: {answer}")))
    }

    /// [`Guest::exec`] with another limit. A command cut off by a migration is sent again, so it may run twice.
    ///
    /// # Errors
    /// As [`Guest::exec`].
    pub fn exec_within(&self, command: &str, limit: Duration) -> Result<Outcome> {
        let mut link = self.link();
        let deadline = Instant::now() + limit;
        loop {
            match self.try_once(&mut link, command, deadline) {
                Ok(outcome) => return Ok(outcome),
                Err(_) if Instant::now() < deadline => {
                    link.line = None;
                    std::thread::sleep(Duration::from_millis(10));
                }
                Err(source) => {
                    link.line = None;
                    return Err(LabError::Other(format!(
                        "the VM {} did not answer {command:?} within {limit:?}: {source}",
                        self.domain.name
                    )));
                }
            }
        }
    }

    fn try_once(&self, link: &mut Link, command: &str, deadline: Instant) -> Result<Outcome> {
        if link.line.is_none() {
            link.line = Some(Line::connect(&self.locate(link)?)?);
        }
        let line = link.line.as_mut().ok_or_else(|| LabError::Other("not connected".into()))?;
        line.ask(command, deadline)
    }

    /// Finds the site where the VM is, and its port's socket there.
    fn locate(&self, link: &mut Link) -> Result<PathBuf> {
        let order = (0..self.sites.len()).map(|offset| (link.site + offset) % self.sites.len());
        for index in order.collect::<Vec<_>>() {
            let site = &self.sites[index];
            let Ok(xml) = site.virsh(&["dumpxml", &self.domain.name]) else { continue };
            if !xml.starts_with("<domain") || !xml[..xml.len().min(60)].contains(" id=") {
                continue;
            }
            if let Some(path) = port_path(&xml, exec::PORT) {
                link.site = index;
                return Ok(site.inside(path));
            }
        }
        Err(LabError::Other(format!("the VM {} runs on no site", self.domain.name)))
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it has written to its console, on each site.
    #[must_use]
    pub fn console(&self) -> String {
        let read = |site: &Arc<Site>| {
            let text = fs::read(site.inside(&self.domain.console())).unwrap_or_default();
            format!("[{}]\n{}", site.name(), String::from_utf8_lossy(&text))
        };
        self.sites.iter().map(read).collect()
    }

    /// Where the VM's processors are, a few times: it tells a kernel that hangs (always the same few places) from a program
    /// that will not stop (ring 3) and from a VM that sleeps (HLT=1). Works when the VM answers nobody.
    #[must_use]
    pub fn processors(&self) -> String {
        let ask = || {
            let monitor = ["qemu-monitor-command", &self.domain().name, "--hmp", "info registers -a"];
            self.site().and_then(|site| site.virsh(&monitor)).unwrap_or_else(|error| crate::shell::chain(&error))
        };
        let places = (0..10).map(|_| {
            std::thread::sleep(Duration::from_millis(50));
            ask().lines().filter(|line| line.contains("RIP=") || line.starts_with("CS =")).collect::<Vec<_>>().join(" ")
        });
        places.collect::<Vec<_>>().join("\n")
    }

    /// What the agent in it says and where it is in the kernel, the connections as the kernel has them, and the kernel's own
    /// last words: for a VM that lives and an agent that does not go on.
    #[must_use]
    pub fn agent(&self) -> String {
        // Each beside the others: one that hangs in the kernel holds up none.
        const LOOK: [&str; 8] = [
            "tail -40 /var/log/lsm-guest.log",
            "for p in $(pidof lsm-guest); do cd /proc/$p; grep -E 'State|Pid|ctxt' status; cat wchan syscall stack; ls -l fd; done",
            "ps -o pid,stat,time,args",
            "echo w > /proc/sysrq-trigger; echo t > /proc/sysrq-trigger; dmesg | tail -400",
            "lsm-guest status",
            "ip mptcp endpoint",
            "ip rule; ip route show table all",
            "ss -Mtnai",
        ];
        let begin = |(number, look): (usize, &str)| format!("({look}) >/tmp/look.{number} 2>&1 &");
        let look: String = LOOK.into_iter().enumerate().map(begin).collect();
        let look = format!("{look} sleep 5; for look in /tmp/look.?; do echo \"$look\"; cat $look; done");
        self.exec(&look).map_or_else(|error| crate::shell::chain(&error), |outcome| outcome.stdout + &outcome.stderr)
    }

    /// How its virtio-serial device stands, which the lab and the hosts reach it by, and which interrupts its processor has
    /// taken and not ended: for a VM that answers nobody while its network does.
    #[must_use]
    pub fn ports(&self) -> String {
        let ask = |question: &str| {
            let monitor = ["qemu-monitor-command", &self.domain().name, "--hmp", question];
            let said = self.site().and_then(|site| site.virsh(&monitor));
            format!("{question}\n{}\n", said.unwrap_or_else(|error| crate::shell::chain(&error)))
        };
        let queue =
            |number| format!("info virtio-queue-status /machine/peripheral/virtio-serial0/virtio-backend {number}");
        // Two queues of a port that is not used, two for control, two for each of the two ports.
        let queues = (0..8).map(|number| ask(&queue(number)));
        ["info lapic", "info virtio"].into_iter().map(ask).chain(queues).collect()
    }

    /// Whether the guest kernel itself has failed. Emulation can do that; it is not a connection that LSM lost.
    #[must_use]
    pub fn kernel_died(&self) -> bool {
        let console = self.console();
        ["Oops", "Kernel panic", "BUG:", "general protection fault", "list_add corruption"]
            .iter()
            .any(|sign| console.contains(sign))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for site in &self.sites {
            let _ = site.virsh(&["destroy", &self.domain.name]);
        }
    }
}

/// The socket of the channel `name` in a live domain's XML.
fn port_path<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let channel = xml.split("<channel").find(|channel| channel.contains(&format!("name='{name}'")))?;
    channel.split("path='").nth(1)?.split('\'').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let xml = "<channel type='unix'><source mode='bind' path='/a'/><target type='virtio' name='one'/></channel>\
                   <channel type='unix'><source mode='bind' path='/b'/><target type='virtio' name='two'/></channel>";
        assert_eq!(port_path(xml, "two"), Some("/b"));
        assert_eq!(port_path(xml, "three"), None);
    }
}
