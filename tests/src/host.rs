//! A host as an operator has it who has not heard of LSM yet: Debian with its systemd and libvirt, and one network card, in
//! the bridge `br0` of its LAN. A container with this machine's files behind an overlay.

use std::{fs, path::Path, sync::Arc, time::Duration};

use crate::{
    container::Container,
    keeper,
    shell::{LabError, Result, run, wait_for},
    site::Site,
    topology::{SPARE_BRIDGE, SitePlan, Topology},
};

/// The bridge of its LAN.
pub const BRIDGE: &str = "br0";

/// It runs. Dropping it ends all that is in it.
#[derive(Debug)]
pub struct Host {
    /// For commands in it.
    pub site: Arc<Site>,
    first: u32,
    _container: Container,
}

/// Its address in its LAN, by which the other hosts reach it.
fn address(plan: &SitePlan) -> std::net::Ipv4Addr {
    plan.address(2)
}

impl Host {
    /// Boots one with the network of the site of that name. `files`: of this machine's that it can read, and where.
    ///
    /// # Errors
    /// It does not boot, or its libvirt does not answer.
    pub fn boot(topology: &Topology, name: &str, files: &[(&Path, &str)]) -> Result<Host> {
        let plan = topology.site(name);
        let network = topology.ns(name);
        let (own, SitePlan { bridge, gateway, .. }) = (address(plan), plan);
        network.ip(&format!(
            "link set wan down\naddr flush dev wan\nlink del {SPARE_BRIDGE}\nlink set {bridge} down\n\
             link set {bridge} name {BRIDGE}\nlink set {BRIDGE} up\naddr add {own}/24 dev {BRIDGE}\n\
             route add default via {gateway} dev {BRIDGE}\n"
        ))?;
        let mut container = Container::new(&format!("lsm-host-{name}"))?;
        for (from, to) in files {
            container.bind(from, to);
        }
        let process = container.boot(network)?;
        let console = container.console();
        // nspawn has another child before that.
        let is_there = || {
            let status = fs::read_to_string(format!("/proc/{}/status", process.inner_pid())).ok()?;
            status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1")).then_some(())
        };
        wait_for("its first process", Duration::from_secs(5), is_there)
            .map_err(|error| LabError::Other(format!("{error}: {}", console())))?;
        let first = process.inner_pid();
        // It would outlive nspawn.
        keeper::keep("pid", &first.to_string());
        let site = Arc::new(Site::of(name, &container.lab(), process, first));
        wait_for(&format!("the host {name} to boot"), Duration::from_secs(30), || {
            run(site.command("systemctl").args(["is-active", "lab.target"])).ok()
        })
        .map_err(|error| LabError::Other(format!("{error}: {}", console())))?;
        let others: String =
            topology.sites().iter().map(|other| format!("{} {}\\n", address(other), other.name)).collect();
        // Control groups are not a container's matter. Two libvirts with the same host_uuid refuse to migrate to each other, and both would take this machine's.
        let prepare = format!(
            "rm -rf /etc/lsm /etc/pki /var/lib/lsm; echo {name} >/etc/hostname; hostname {name}; \
             printf '127.0.0.1 localhost\\n{others}' >/etc/hosts; \
             echo 'host_uuid = \"4c534d00-0000-4000-8000-0000000000{:02x}\"' >>/etc/libvirt/libvirtd.conf; \
             echo 'cgroup_controllers = [ ]' >>/etc/libvirt/qemu.conf; systemctl start libvirtd && virsh --quiet list",
            plan.number
        );
        run(site.command("sh").args(["-ec", &prepare]))?;
        Ok(Host { site, first, _container: container })
    }

    /// What somebody types there as root, in root's directory, who does not wait for longer than two minutes.
    ///
    /// # Errors
    /// What it complained of.
    pub fn type_in(&self, line: &str) -> Result<String> {
        run(self.site.command("timeout").args(["120", "bash", "-c", &format!("cd /root && {line}")]))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.site.die();
        keeper::forget("pid", &self.first.to_string());
    }
}
