//! A VM that goes from the one site to the other and back, at distances and by policies that change in between, and what
//! the client notices.

use std::{net::IpAddr, thread, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    capture::{Capture, Mac, Packet, Scope},
    connections::address,
    cores::Cores,
    demo::{Mode, timeline},
    measure::{
        Window, datagram_gap, datagram_loss, milliseconds, network_rtt_ms, rtt_median_ms, rtt_series, throughput,
    },
    shell::{LabError, Result, program, run},
    stage::{Stage, StageOptions, TCP, UDP},
    topology::{SiteLinks, TopologyOptions},
    traffic::{ClientOptions, ClientProcess, Connection, Log, Nanos, Subflow, TrafficError, chain, subflows, token_of},
};

/// The site where the VM begins, and the one that it goes to.
const HOME: &str = "montreal";
const AWAY: &str = "dallas";
const SETTLE: Duration = Duration::from_secs(60);
const READY: Duration = Duration::from_secs(30);
/// Mbit/s between the sites: a copy is over soon.
const WAN: u32 = 400;
const SECOND: Nanos = 1_000_000_000;
/// Paced traffic alone, for a median of the round trips.
const CALM: Duration = Duration::from_millis(1500);
/// The bulk transfer's whole length: of it goes on before the move ...
const BULK: Duration = Duration::from_secs(14);
/// ... for this long.
const BULK_BEFORE: Duration = Duration::from_secs(2);
/// A new path's slow start, or the recovery of an old one, is over.
const STEADY: Nanos = SECOND;

/// Round trips.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Distances {
    /// Between the client and the site where the VM begins.
    pub home: Duration,
    /// Between the client and the other.
    pub away: Duration,
    /// Between the sites.
    pub between: Duration,
}

/// What the client notices of one move away, with one connection over which the VM sends all that the client's window lets
/// through. Rates in 10^6 bits per second, times in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Before the move, from its beginning to the arrival, and well after that.
    pub mbit: [f64; 3],
    /// Without the bulk, before and after: as a program has it.
    pub rtt: [f64; 2],
    /// The same as the client's TCP measures it (`ss`): without the programs at both ends.
    #[serde(default)]
    pub tcp_rtt: Option<[f64; 2]>,
    /// And what the network alone takes of it: from the client's card to the VM's, and back.
    #[serde(default)]
    pub network_rtt: Option<[f64; 2]>,
    pub pause: f64,
    /// From the beginning of the move.
    pub throughput: Vec<(f64, f64)>,
    pub rtts: Vec<(f64, f64)>,
}

/// What a stream of datagrams to the VM's old address notices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Silence {
    pub gap_ms: f64,
    pub pause_ms: f64,
    /// From the end of the pause to the VM's first answer, seen on the host where it is: the VM's own.
    #[serde(default)]
    pub answer_ms: Option<f64>,
    pub lost: u64,
}

/// When the move began, the VM stopped and it ran again.
struct Moments {
    started: Nanos,
    stopped: Nanos,
    resumed: Nanos,
}

/// It all.
#[derive(Debug)]
pub struct Journeys {
    stage: Stage,
    mode: Mode,
    /// The VM's own.
    cores: Option<Cores>,
}

impl Journeys {
    /// Everything close by; clients join before.
    ///
    /// # Errors
    /// Whatever did not come up.
    pub fn set() -> Result<Journeys> {
        let (close, mode) = (Duration::from_micros(2), Mode::PreJoin);
        let site = |name: &str, wan_rtt| SiteLinks { name: name.into(), client_rtt: close, wan_rtt };
        let sites = vec![site(HOME, close), site(AWAY, Duration::ZERO)];
        let topology = TopologyOptions { sites, wan_rate_mbit: WAN, ..TopologyOptions::default() };
        let cores = Cores::divide(1);
        cores.iter().for_each(Cores::leave_to_vm);
        let options = StageOptions {
            topology,
            policy: policy(mode),
            memory_mib: 192,
            cores: cores.clone(),
            ..StageOptions::default()
        };
        Ok(Journeys { stage: Stage::set(&options, |_| {})?, mode, cores })
    }

    /// From now on.
    ///
    /// # Errors
    /// A wire is dead.
    pub fn set_distances(&self, distances: Distances) -> Result<()> {
        let wires = [
            ("client-montreal", distances.home),
            ("client-dallas", distances.away),
            ("wan-montreal", distances.between),
        ];
        wires.iter().try_for_each(|(name, rtt)| self.stage.topology.wire(name)?.set_delay(*rtt / 2))
    }

    /// When clients join, from now on.
    ///
    /// # Errors
    /// A service does not start again.
    pub fn set_mode(&mut self, mode: Mode) -> Result<()> {
        if mode != self.mode {
            for site in [HOME, AWAY] {
                self.stage.reconfigure(site, &policy(self.mode), &policy(mode))?;
                self.stage.restart_service(site)?;
            }
            self.mode = mode;
        }
        Ok(())
    }

    /// The most that the client's sockets take in unread, in bytes: its half is the window.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_client_buffer(&self, bytes: u32) -> Result<()> {
        let value = format!("net.ipv4.tcp_rmem=4096 {bytes} {bytes}");
        run(self.stage.topology.ns("client").command("sysctl").args(["-qw", &value])).map(drop)
    }

    /// Moves the VM away under traffic, and brings it back when that has ended.
    ///
    /// # Errors
    /// Whatever failed, in its own words; that a connection did not live or a byte was wrong.
    pub fn away(&self) -> Result<Seen> {
        let address = address(&self.stage)?;
        let slow = ClientOptions { connections: 1, period: Duration::from_secs(1), ..none(address) };
        let (mut bulk, _) = self.client(&ClientOptions { probe: Duration::from_secs(3600), ..slow.clone() })?;
        let (probe, opened) = self.client(&ClientOptions { listen: 5004, ..slow })?;
        let calm = timeline::now();
        let network_rtt = self.network_rtt()?;
        let known = subflows(self.stage.topology.ns("client").command("ss")).map_err(lab)?;
        let token = opened.first().and_then(|connection| token_of(connection, &known));
        let tcp_rtt = tcp_rtt(&known, token);
        let begun = timeline::now();
        bulk.begin_bulk(BULK).map_err(lab)?;
        thread::sleep(BULK_BEFORE);
        let moments = self.go(AWAY)?;
        let ended = bulk.end_bulk(BULK).map_err(lab)?.until;
        let quiet = timeline::now();
        let network_rtt = network_rtt.zip(self.network_rtt()?).map(<[f64; 2]>::from);
        let known = subflows(self.stage.topology.ns("client").command("ss")).map_err(lab)?;
        let tcp_rtt = tcp_rtt.zip(self::tcp_rtt(&known, token)).map(<[f64; 2]>::from);
        let (bulk, probe) = (bulk.stop().map_err(lab)?, probe.stop().map_err(lab)?);
        self.home()?;
        for log in [&bulk, &probe] {
            whole(log)?;
        }
        let Moments { started, stopped, resumed } = moments;
        let shown = Window { from: started - 2 * SECOND, until: ended };
        let rate = |from: Nanos, until: Nanos| {
            let window = Window { from, until };
            let bytes: u64 = bulk
                .connections
                .iter()
                .flat_map(|connection| &connection.arrivals)
                .filter(|arrival| window.holds(arrival.at))
                .map(|arrival| u64::from(arrival.bytes))
                .sum();
            bytes as f64 * 8_000.0 / until.saturating_sub(from).max(1) as f64
        };
        if ended < resumed + STEADY + SECOND {
            return Err(LabError::Other(format!(
                "the bulk transfer ended {:.1} s after the arrival",
                milliseconds(ended.saturating_sub(resumed)) / 1e3
            )));
        }
        let rtt = |from: Nanos| {
            let window = Window { from, until: from + CALM.as_nanos() as Nanos };
            rtt_median_ms(&probe, window).ok_or_else(|| LabError::Other("no probe came back".into()))
        };
        let since = |series: Vec<(Nanos, f64)>| {
            series.into_iter().map(|(at, value)| ((at as f64 - started as f64) / 1e6, value)).collect()
        };
        Ok(Seen {
            mbit: [rate(begun + SECOND, started), rate(started, resumed), rate(resumed + STEADY, ended)],
            rtt: [rtt(calm)?, rtt(quiet)?],
            tcp_rtt,
            network_rtt,
            pause: milliseconds(resumed.saturating_sub(stopped)),
            throughput: since(throughput(&bulk, shown, SECOND / 10)),
            rtts: since(rtt_series(&probe, shown)),
        })
    }

    /// Of the traffic that there is now, for as long as it is looked at.
    fn network_rtt(&self) -> Result<Option<f64>> {
        let client = self.capture("client", vec![])?;
        let host = self.capture(self.stage.guest.site()?.name(), vec![])?;
        thread::sleep(CALM);
        Ok(network_rtt_ms(&client.stop().frames, &host.stop().frames))
    }

    fn capture(&self, place: &str, macs: Vec<Mac>) -> Result<Capture> {
        let scope = Scope { namespace: Some(self.stage.topology.ns(place).path()), macs, ..Scope::default() };
        Capture::start(scope).map_err(|error| LabError::Other(error.to_string()))
    }

    /// Moves the VM to the other site, wherever it is, under a stream of datagrams to the address that it has.
    ///
    /// # Errors
    /// Whatever failed, in its own words.
    pub fn datagrams(&self) -> Result<Silence> {
        let address = address(&self.stage)?;
        // A plain connection keeps the old address alive beyond the end of the move; it has next to nothing to say, or the
        // emulated VM would have its backlog to read before the datagrams.
        let plain = ClientOptions { plain: 1, period: Duration::from_secs(1), ..none(address) };
        let (mut client, _) = self.client(&ClientOptions { udp: Some(UDP), ..plain })?;
        thread::sleep(Duration::from_secs(1));
        let to = if self.stage.guest.site()?.name() == HOME { AWAY } else { HOME };
        let domain = self.stage.guest.domain();
        let macs = [&domain.mac_a, &domain.mac_b].into_iter().filter_map(|mac| mac.parse::<lsm_protocol::Mac>().ok());
        let arrival = self.capture(to, macs.map(|mac| mac.0).collect())?;
        let moments = self.go(to)?;
        thread::sleep(Duration::from_secs(2));
        let arrival = arrival.stop();
        let seen = timeline::now() - SECOND;
        let log = client.take_log().map_err(lab)?;
        client.stop().map_err(lab)?;
        self.stage.settled(SETTLE)?;
        let Moments { started, stopped, resumed } = moments;
        let answers = arrival.frames.iter().filter(|frame| {
            let is_one = matches!(&frame.packet, Packet::Udp(datagram) if datagram.source.port() == UDP);
            is_one && !frame.outgoing && frame.at > resumed
        });
        let answer = answers.map(|frame| frame.at).min().map(|at| milliseconds(at - resumed));
        let gap = datagram_gap(&log, Window { from: started, until: seen });
        let gap = gap.ok_or_else(|| LabError::Other("no datagram was answered".into()))?;
        Ok(Silence {
            gap_ms: milliseconds(gap.length),
            pause_ms: milliseconds(resumed.saturating_sub(stopped)),
            answer_ms: answer,
            lost: datagram_loss(&log.datagrams, Window { from: 0, until: seen }).lost,
        })
    }

    fn go(&self, to: &str) -> Result<Moments> {
        let from = self.stage.guest.site()?.clone();
        let started = timeline::now();
        self.stage.migrate(to)?;
        let at = |site, event| {
            timeline::qemu_event(site, event, started)
                .ok_or_else(|| LabError::Other(format!("QEMU did not say {event}")))
        };
        Ok(Moments { started, stopped: at(&from, "STOP")?, resumed: at(self.stage.site(to), "RESUME")? })
    }

    /// Where nobody joined, the tunnel is all that there is, and the VM goes back to where its address is.
    fn home(&self) -> Result<()> {
        if self.mode.direct() {
            self.stage.settled(SETTLE)?;
        }
        self.stage.migrate(HOME)?;
        self.stage.settled(SETTLE)
    }

    fn client(&self, options: &ClientOptions) -> Result<(ClientProcess, Vec<Connection>)> {
        let mut command = self.stage.topology.ns("client").command("chrt");
        command.args(["-f", "10"]).arg(program("lsm-traffic")?);
        let mut client = ClientProcess::spawn(command, options).map_err(lab)?;
        let opened = client.ready(READY).map_err(lab)?;
        client.start().map_err(lab)?;
        Ok((client, opened))
    }
}

impl Drop for Journeys {
    fn drop(&mut self) {
        self.cores.iter().for_each(Cores::share);
    }
}

fn policy(mode: Mode) -> String {
    format!("join = \"{}\"\nswitch = \"auto\"\n", mode.policy())
}

/// Neither connections nor datagrams.
fn none(address: IpAddr) -> ClientOptions {
    ClientOptions { tcp: TCP, udp: None, connections: 0, accept: 0, plain: 0, ..ClientOptions::new(address) }
}

/// Of the subflow that the connection of this name uses now.
fn tcp_rtt(known: &[Subflow], token: Option<u32>) -> Option<f64> {
    known.iter().find(|subflow| subflow.token == token && !subflow.backup)?.rtt_ms
}

fn whole(log: &Log) -> Result<()> {
    match log.connections.iter().find(|connection| !connection.is_whole()) {
        Some(broken) => Err(LabError::Other(format!("connection {} is not whole: {:?}", broken.id, broken.failed))),
        None if log.bytes_wrong() > 0 => Err(LabError::Other(format!("{} bytes were wrong", log.bytes_wrong()))),
        None => Ok(()),
    }
}

fn lab(error: TrafficError) -> LabError {
    LabError::Other(chain(&error))
}
