//! Who gives out addresses on a LAN: a DHCP server and a router that advertises, at the LAN's gateway.

use std::{fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use crate::{
    netns::Netns,
    shell::{During as _, Process, Result, wait_for},
    topology::{SitePlan, Topology},
};

/// What they say.
#[derive(Debug, Clone)]
pub struct LanOptions {
    /// Seconds that an address is given for.
    pub lease: u32,
    /// MAC addresses that always get the same host number.
    pub reserved: Vec<(String, u8)>,
    /// Router lifetime in the advertisements, seconds.
    pub router_lifetime: u32,
}

impl Default for LanOptions {
    fn default() -> Self {
        LanOptions { lease: 3600, reserved: Vec::new(), router_lifetime: 1800 }
    }
}

/// The servers of one LAN. Dropping it ends them.
#[derive(Debug)]
pub struct Lan {
    _dhcp: Process,
    _router: Process,
    log: PathBuf,
}

impl Lan {
    /// Starts both in the gateway of a site. Hosts from 200 to 250 are given out.
    ///
    /// # Errors
    /// `tests/install --tests` has not run, or one of them does not like its configuration.
    pub fn serve(topology: &Topology, site: &str, options: &LanOptions) -> Result<Lan> {
        let plan = topology.site(site);
        let gateway = topology.ns(&format!("gw-{site}"));
        let directory = std::env::temp_dir().join(format!("{}-{site}", topology.prefix()));
        fs::create_dir_all(&directory).during(|| format!("make {}", directory.display()))?;
        gateway.sysctl(&[("net/ipv6/conf/lan/disable_ipv6", "0"), ("net/ipv6/conf/all/forwarding", "1")])?;
        gateway.ip(&format!("addr replace {}1/64 dev lan nodad\n", prefix(plan)))?;
        let log = directory.join("dhcp.log");
        Ok(Lan {
            _dhcp: dhcp(gateway, plan, options, &directory, &log)?,
            _router: router(gateway, plan, options, &directory)?,
            log,
        })
    }

    /// What the DHCP server has done.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = self.log.parent().map(fs::remove_dir_all);
    }
}

/// The LAN's IPv6 prefix, 64 bits of it, as far as the host's number.
#[must_use]
pub fn prefix(plan: &SitePlan) -> String {
    format!("2001:db8:{:x}::", plan.number)
}

fn dhcp(
    ns: &Netns,
    plan: &SitePlan,
    options: &LanOptions,
    directory: &std::path::Path,
    log: &PathBuf,
) -> Result<Process> {
    let at = |host: u8| -> Ipv4Addr { plan.address(host) };
    let mut command = ns.command("dnsmasq");
    // Without asking first whether somebody has the address: it does so for three seconds.
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--no-ping", "--dhcp-authoritative"]);
    command.args(["--interface=lan", "--bind-interfaces", "--user=root", "--pid-file", "--log-dhcp"]);
    command.arg(format!("--log-facility={}", log.display()));
    command.arg(format!("--dhcp-leasefile={}", directory.join("leases").display()));
    command.arg(format!("--dhcp-range={},{},255.255.255.0,{}", at(200), at(250), options.lease));
    command.arg(format!("--dhcp-option=option:router,{}", plan.gateway));
    for (mac, host) in &options.reserved {
        command.arg(format!("--dhcp-host={mac},{}", at(*host)));
    }
    let process = Process::start("dnsmasq", &mut command)?;
    wait_for("dnsmasq to serve", Duration::from_secs(10), || {
        fs::read_to_string(log).ok().filter(|text| text.contains("started")).map(drop)
    })?;
    Ok(process)
}

fn router(ns: &Netns, plan: &SitePlan, options: &LanOptions, directory: &std::path::Path) -> Result<Process> {
    let file = directory.join("radvd.conf");
    let text = format!(
        "interface lan {{ AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 10; AdvDefaultLifetime {}; \
         prefix {}/64 {{ }}; }};\n",
        options.router_lifetime,
        prefix(plan)
    );
    fs::write(&file, text).during(|| format!("write {}", file.display()))?;
    let mut command = ns.command("radvd");
    command.args(["--nodaemon", "--logmethod=none", "--config"]).arg(&file);
    command.arg("--pidfile").arg(directory.join("radvd.pid"));
    Process::start("radvd", &mut command)
}
