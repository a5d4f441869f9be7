//! A VM of the crowd, and its move, as libvirt and QEMU would make it.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    net::IpAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    guest::Guest,
    host::{Host, More},
    tap, watch,
};
use crate::{
    shell::{During as _, LabError, Result, run, wait_for},
    topology::SPARE_BRIDGE,
};

/// So long its memory is copied, and so long it stands.
const COPY: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(300);

pub(super) struct Vm {
    number: usize,
    name: String,
    uuid: String,
    macs: [[u8; 6]; 2],
    guest: Guest,
    from: Arc<Host>,
    to: Arc<Host>,
    /// The card with the traffic; the other is the spare.
    active: usize,
    taps: Vec<File>,
    /// When it was, in milliseconds since 1970.
    stopped: u64,
}

/// Milliseconds, and what they were waited for.
type Took = Vec<(&'static str, f64)>;

impl Vm {
    /// It runs on the first host.
    pub(super) fn start(number: usize, from: Arc<Host>, to: Arc<Host>) -> Result<Vm> {
        let name = format!("vm{number}");
        let [high, low] = (number as u16).to_be_bytes();
        let guest = Guest::start([&from, &to].map(|host| host.channel(&name)).each_ref().map(|path| path.as_path()))?;
        let uuid = format!("4c534d00-0000-4000-8000-00000000{number:04x}");
        let macs = [1, 2].map(|card| [0x52, 0x54, 0, high, low, card]);
        let mut vm = Vm { number, name, uuid, macs, guest, from, to, active: 0, taps: Vec::new(), stopped: 0 };
        vm.plug_in(&vm.from.clone(), &vm.bridges())?;
        let xml = vm.settled_xml();
        vm.from.has(&vm.uuid, Some(true))?;
        vm.from.hook(&vm.name, "started", "begin", &xml)?;
        Ok(vm)
    }

    /// The new address, as the guest was given it.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.guest.known.lock().ok()?.address
    }

    fn mac(&self, card: usize) -> String {
        self.macs[card].map(|byte| format!("{byte:02x}")).join(":")
    }

    fn tap(&self, card: usize) -> String {
        format!("{}c{card}", self.name)
    }

    /// By card, where it runs and has settled.
    fn bridges(&self) -> [String; 2] {
        self.by_card(self.from.lan_bridge(), SPARE_BRIDGE.to_owned())
    }

    fn settled_xml(&self) -> String {
        self.xml(&self.from, &self.bridges(), self.by_card(Some(self.from.name), None))
    }

    fn by_card<T>(&self, active: T, other: T) -> [T; 2] {
        if self.active == 0 { [active, other] } else { [other, active] }
    }

    fn plug_in(&mut self, host: &Host, bridges: &[String; 2]) -> Result<()> {
        for (card, bridge) in bridges.iter().enumerate() {
            let name = self.tap(card);
            self.taps.push(tap(host, &name)?);
            host.plug(&name, bridge)?;
        }
        Ok(())
    }

    fn xml(&self, host: &Host, bridges: &[String; 2], lans: [Option<&str>; 2]) -> String {
        let vnic = |card: usize| {
            let lan = lans[card].map(|lan| format!(r#" lan="{lan}""#)).unwrap_or_default();
            format!(r#"<lsm:vnic mac="{}"{lan}/>"#, self.mac(card))
        };
        let card = |card: usize| {
            format!(
                r#"<interface type="bridge"><mac address="{}"/><source bridge="{}"/><target dev="{}"/></interface>"#,
                self.mac(card),
                bridges[card],
                self.tap(card)
            )
        };
        format!(
            r#"<domain type="kvm"><name>{}</name><uuid>{}</uuid><metadata><lsm:vm xmlns:lsm="urn:lsm:1">{}{}</lsm:vm></metadata><devices>{}{}<channel type="unix"><source mode="bind" path="{}"/><target type="virtio" name="org.lsm.guest.0"/></channel></devices></domain>"#,
            self.name,
            self.uuid,
            vnic(0),
            vnic(1),
            card(0),
            card(1),
            host.channel(&self.name).display()
        )
    }

    /// The whole move to the other host. Gives the VM back, at its new place, and what it took.
    pub(super) fn go(self, limit: Duration) -> Result<(Vm, Took)> {
        self.go_and(limit, |_| Ok(()), |_| Ok(()))
    }

    /// The same, with something that happens while it is copied, and when it has just arrived.
    pub(super) fn go_and(
        mut self,
        limit: Duration,
        copied: impl FnOnce(&Vm) -> Result<()>,
        arrived: impl FnOnce(&Vm) -> Result<()>,
    ) -> Result<(Vm, Took)> {
        let mut took = Took::new();
        let (from, to) = (self.from.clone(), self.to.clone());
        let failed = |what: &str, error: &LabError| LabError::Other(format!("{what}: {}", crate::shell::chain(error)));
        let begun = Instant::now();
        let ours = self.settled_xml();
        let answer = to.hook(&self.name, "migrate", "begin", &ours).map_err(|error| failed(&self.name, &error))?;
        took.push(("migrate begin, to its answer", ms(begun)));
        let bridges = [0, 1].map(|card| bridge_of(&answer, &self.mac(card)));
        let [Some(first), Some(second)] = bridges else {
            return Err(LabError::Other(format!("{}: no bridges in {answer}", self.name)));
        };
        let bridges = [first, second];
        if bridges[1 - self.active] != to.lan_bridge() {
            return Err(LabError::Other(format!("{} is plugged into {bridges:?}", self.name)));
        }
        let xml = self.xml(&to, &bridges, self.by_card(Some(from.name), Some(to.name)));
        let left = std::mem::take(&mut self.taps);
        let begun = Instant::now();
        to.hook(&self.name, "prepare", "begin", &xml)?;
        self.plug_in(&to, &bridges)?;
        to.has(&self.uuid, Some(false))?;
        to.hook(&self.name, "started", "begin", &xml)?;
        took.push(("prepare and started", ms(begun)));

        thread::sleep(COPY);
        self.cross(&left)?;
        copied(&self)?;
        self.stopped = unix_ms();
        from.has(&self.uuid, Some(false))?;
        from.event(&self.name, "Suspended Migrated")?;
        thread::sleep(PAUSE);
        let runs = Instant::now();
        self.guest.arrive();
        to.has(&self.uuid, Some(true))?;
        to.event(&self.name, "Resumed Migrated")?;
        for (card, mut tap) in self.taps.iter().enumerate() {
            // What QEMU says for a VM that has arrived.
            tap.write_all(&announcement(self.macs[card])).during(|| format!("announce {}", self.name))?;
        }
        from.has(&self.uuid, None)?;
        from.event(&self.name, "Stopped Migrated")?;
        drop(left);
        from.hook(&self.name, "stopped", "end", &ours)?;
        from.hook(&self.name, "release", "end", &ours)?;
        arrived(&self)?;
        let settled = wait_for(&format!("{} to settle", self.name), limit, || self.guest.known.lock().ok()?.settled)?;
        took.push(("arrival, to the guest's word that it has settled", (settled - runs).as_secs_f64() * 1_000.0));
        self.active = 1 - self.active;
        (self.from, self.to) = (to, from);
        Ok((self, took))
    }

    /// Where somebody watches, the first VM's frames pass. Both services die and come back; with WireGuard, nothing comes from
    /// a host for as long as it has not the key which it is known by.
    fn cross(&self, taps: &[File]) -> Result<()> {
        let (Some(client), 0) = (self.to.client.get(), self.number) else { return Ok(()) };
        let cross = || watch::cross(client, &taps[1], self.macs[1], self.address());
        cross()?;
        if self.to.more == More::Wireguard {
            self.to.with_another_key(|| watch::lost(client, &taps[1], self.macs[1], self.address()))?;
            cross()?;
        }
        for host in [&self.from, &self.to] {
            host.serve()?;
            cross()?;
        }
        Ok(())
    }

    /// Whether its connection moves no data by a new path.
    pub(super) fn hold(&self, held: bool) -> Result<()> {
        let mut known = self.guest.known.lock().map_err(|_| LabError::Other("a guest's thread panicked".into()))?;
        known.held = held;
        Ok(())
    }

    /// It hears what is said to everybody in its LAN, and to those whom the bridge does not know.
    pub(super) fn hears(&self) -> Result<()> {
        let tap = self.tap(self.active);
        let port = run(self.from.ns.command("bridge").args(["-d", "link", "show", "dev", &tap]))?;
        if ["flood on", "mcast_flood on", "bcast_flood on"].iter().all(|flag| port.contains(&format!(" {flag}"))) {
            return Ok(());
        }
        Err(LabError::Other(format!("{} is deaf: {port}", self.name)))
    }

    /// What both hosts' reports add to it, once they are there.
    pub(super) fn reported(&self, reports: &[BTreeMap<String, Vec<(String, u64)>>; 2]) -> Result<Took> {
        let at = |host: usize, name: &str| {
            let steps = reports[host].get(&self.name).into_iter().flatten();
            steps.rev().find(|(step, _)| step == name).map(|(_, at)| *at)
        };
        // Of a stop among two hundred, the source may hear first from the other host, where the VM runs by then.
        let stopped = at(0, "stopped").or(at(0, "departed"));
        let [leaving, over] = [at(1, "taking down"), at(1, "gone")];
        let (Some(stopped), Some(leaving), Some(over)) = (stopped, leaving, over) else {
            return Err(LabError::Other(format!("{} has not been through all steps: {reports:?}", self.name)));
        };
        Ok(vec![
            ("stop, to the source's knowledge of it", stopped.saturating_sub(self.stopped) as f64),
            ("the guest's word, to the end of its tunnels", over.saturating_sub(leaving) as f64),
        ])
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

/// Where a description plugs the card in.
fn bridge_of(xml: &str, mac: &str) -> Option<String> {
    let card = xml.split("<interface").find(|card| card.contains(&format!("<mac address=\"{mac}\"")))?;
    let (_, rest) = card.split_once("bridge=\"")?;
    Some(rest.split_once('"')?.0.to_owned())
}

/// A RARP request, as QEMU's self-announcement has it.
fn announcement(mac: [u8; 6]) -> Vec<u8> {
    let head = [&[0xff; 6][..], &mac, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]].concat();
    let mut frame = [&head[..], &mac, &[0; 4], &mac, &[0; 4]].concat();
    frame.resize(60, 0);
    frame
}
