//! Connections that carry traffic while a test does its worst, and that must be alive and whole afterwards.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    shell::{LabError, Result, program, wait_for},
    stage::{Stage, TCP},
    topology::Topology,
    traffic::{
        self, ClientOptions, ClientProcess, Connection, ConnectionLog, Counters, Log, Nanos, Origin, Subflow,
        TrafficError,
    },
};

/// Where the client waits for the connections that the VM opens.
const LISTEN: u16 = 5003;
/// The same of further clients, which take none.
const LISTEN_MORE: u16 = 5004;
/// A move is over within this after `virsh` has ended.
const SETTLED: Duration = Duration::from_secs(60);
/// Bytes of a record that is several full packets.
const LARGE: u16 = 16_000;
/// Data must get through within this on every connection: TCP's back-off after a pause included.
const ALIVE: Duration = Duration::from_secs(20);

/// Moves the VM under connections' traffic, to the move's very end: each is alive after it and when all is settled, and
/// whole at last.
///
/// # Errors
/// One is not, or virsh failed, or the move did not settle.
pub fn move_with_connections(stage: &Stage, to: &str) -> Result<()> {
    let mut connections = Connections::open(stage, 0)?;
    stage.migrate(to)?;
    connections.alive()?;
    stage.agent_is(&["idle"], SETTLED)?;
    stage.settled(SETTLED)?;
    connections.alive()?;
    connections.end()
}

/// Some opened by the client, some by the VM.
#[derive(Debug)]
pub struct Connections {
    client: ClientProcess,
    log: Log,
    /// The MPTCP connections, each with its name in the client's kernel.
    named: Vec<(Connection, u32)>,
}

/// An MPTCP connection, as the client's kernel has it now.
#[derive(Debug, Clone)]
pub struct AtClient {
    pub id: u16,
    pub origin: Origin,
    pub counters: Counters,
    pub subflows: Vec<Subflow>,
}

impl Connections {
    /// Opens three MPTCP connections to the VM, one from it, and `plain` ones, and starts traffic both ways.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open(stage: &Stage, plain: u16) -> Result<Connections> {
        let options = ClientOptions { connections: 3, listen: LISTEN, accept: 1, plain, ..quiet(&addresses(stage)?) };
        Connections::open_as(stage, &options)
    }

    /// So many by the client and by the VM, each with a record every 20 ms both ways: what the demo has.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open_busy(stage: &Stage, by_client: u16, by_vm: u16) -> Result<Connections> {
        let period = Duration::from_millis(20);
        let base = quiet(&addresses(stage)?);
        let options = ClientOptions { connections: by_client, accept: by_vm, plain: 0, period, ..base };
        Connections::open_as(stage, &options)
    }

    /// Two MPTCP and two plain ones by the client, one of each on either family where both are spoken: each record is
    /// several full packets, both ways.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open_large(stage: &Stage) -> Result<Connections> {
        let period = Duration::from_millis(100);
        let base = quiet(&addresses(stage)?);
        let options = ClientOptions { connections: 2, accept: 0, plain: 2, chunk: LARGE, period, ..base };
        Connections::begin(&stage.topology, spawn(&stage.topology, &options)?)
    }

    fn open_as(stage: &Stage, options: &ClientOptions) -> Result<Connections> {
        let client = spawn(&stage.topology, options)?;
        let to = stage.topology.client().into_iter().map(|client| SocketAddr::new(client, options.listen));
        let to: String = to.map(|to| format!(" --to {to}")).collect();
        let open = format!("chrt -f 10 lsm-traffic open{to} --count {}", options.accept);
        stage.guest.spawn("open", &open)?;
        Connections::begin(&stage.topology, client)
    }

    /// So many by a client of its own to another port of the VM, none from it.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open_to(stage: &Stage, port: u16, multipath: u16) -> Result<Connections> {
        let base = quiet(&addresses(stage)?);
        let options = ClientOptions { tcp: port, connections: multipath, accept: 0, plain: 0, ..base };
        Connections::begin(&stage.topology, spawn(&stage.topology, &options)?)
    }

    /// Of a client of its own, beside the first: so many MPTCP and plain connections to the VM, and none from it.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open_more(stage: &Stage, multipath: u16, plain: u16) -> Result<Connections> {
        Connections::open_at(&stage.topology, address(stage)?, multipath, plain)
    }

    /// The same to any VM, by its address.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open_at(topology: &Topology, address: IpAddr, multipath: u16, plain: u16) -> Result<Connections> {
        let options =
            ClientOptions { connections: multipath, listen: LISTEN_MORE, accept: 0, plain, ..quiet(&[address]) };
        Connections::begin(topology, spawn(topology, &options)?)
    }

    fn begin(topology: &Topology, mut client: ClientProcess) -> Result<Connections> {
        let opened = client.ready(Duration::from_secs(30)).map_err(lab)?;
        let known = traffic::subflows(topology.ns("client").command("ss")).map_err(lab)?;
        let token = |connection: &Connection| traffic::token_of(connection, &known);
        let named = opened.into_iter().filter_map(|connection| token(&connection).map(|token| (connection, token)));
        let named = named.collect();
        client.start().map_err(lab)?;
        let mut connections = Connections { client, log: Log::default(), named };
        connections.alive()?;
        Ok(connections)
    }

    /// The MPTCP connections, as the client's kernel has them now.
    ///
    /// # Errors
    /// `ss` failed there, or the kernel does not know one of them.
    pub fn at_client(&self, topology: &Topology) -> Result<Vec<AtClient>> {
        let client = topology.ns("client");
        let subflows = traffic::subflows(client.command("ss")).map_err(lab)?;
        let counters = traffic::counters(client.command("ss")).map_err(lab)?;
        let of = |(connection, token): &(Connection, u32)| {
            let counters = *counters.get(token)?;
            let subflows = subflows.iter().filter(|subflow| subflow.token == Some(*token)).cloned().collect();
            Some(AtClient { id: connection.id, origin: connection.origin, counters, subflows })
        };
        let gone = |id| LabError::Other(format!("the client's kernel does not know connection {id} any more"));
        self.named.iter().map(|named| of(named).ok_or_else(|| gone(named.0.id))).collect()
    }

    /// How many were opened, and how many of them have ended or stayed silent for as long as [`Connections::alive`] waits.
    pub fn lost(&mut self) -> (usize, usize) {
        let now = now();
        let _ = self.alive();
        let failed: Vec<u16> = self.client.failures().iter().map(|(id, _)| *id).collect();
        let dead = |one: &&ConnectionLog| failed.contains(&one.id) || !one.moved_data_after(now);
        (self.log.connections.len(), self.log.connections.iter().filter(dead).count())
    }

    /// Bytes that were not what the other end sent, so far as the client saw them.
    #[must_use]
    pub fn bytes_wrong(&self) -> u64 {
        self.log.bytes_wrong()
    }

    /// The client's end of each.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        self.log.connections.iter().map(|one| one.local.port()).collect()
    }

    /// Waits until each has carried new data both ways from now on.
    ///
    /// # Errors
    /// One has not, or has ended.
    pub fn alive(&mut self) -> Result<()> {
        let now = now();
        let moved = wait_for("new data both ways on every connection", ALIVE, || {
            self.log.extend(self.client.take_log().ok()?);
            self.log.connections.iter().all(|connection| connection.moved_data_after(now)).then_some(())
        });
        let ended = self.client.failures();
        match moved {
            Ok(()) if ended.is_empty() => Ok(()),
            _ => {
                let silent = self.log.connections.iter().filter(|connection| !connection.moved_data_after(now));
                let silent = silent.map(|connection| (connection.id, connection.origin)).collect::<Vec<_>>();
                Err(LabError::Other(format!("connections without new data: {silent:?}; ended: {ended:?}")))
            }
        }
    }

    /// Ends them in order: every byte that either end sent must have been received, and right.
    ///
    /// # Errors
    /// One is not whole.
    pub fn end(mut self) -> Result<()> {
        self.log.extend(self.client.stop().map_err(lab)?);
        let broken = self.log.connections.iter().filter(|connection| !connection.is_whole());
        let broken =
            broken.map(|one| format!("connection {}: {:?}, {:?}", one.id, one.failed, one.end)).collect::<Vec<_>>();
        if broken.is_empty() { Ok(()) } else { Err(LabError::Other(format!("not whole: {}", broken.join("; ")))) }
    }
}

fn quiet(to: &[IpAddr]) -> ClientOptions {
    ClientOptions { tcp: TCP, udp: None, period: Duration::from_millis(40), ..ClientOptions::to_all(to) }
}

fn spawn(topology: &Topology, options: &ClientOptions) -> Result<ClientProcess> {
    let mut command = topology.ns("client").command("chrt");
    command.args(["-f", "10"]).arg(program("lsm-traffic")?);
    ClientProcess::spawn(command, options).map_err(lab)
}

/// The first of [`addresses`].
///
/// # Errors
/// As there.
pub fn address(stage: &Stage) -> Result<IpAddr> {
    addresses(stage).map(|all| all[0])
}

/// Where the client can reach the VM now, IPv4 first: it has another address after each move.
///
/// # Errors
/// It has none of a family that the client speaks, or does not answer.
pub fn addresses(stage: &Stage) -> Result<Vec<IpAddr>> {
    let listing = stage.guest.must("ip -o addr show scope global")?;
    let spoken = stage.topology.client().into_iter().map(|client| {
        let word = if client.is_ipv4() { "inet" } else { "inet6" };
        let address = listing.split_whitespace().skip_while(|found| *found != word).nth(1)?;
        address.split('/').next()?.parse().ok()
    });
    spoken.collect::<Option<_>>().ok_or_else(|| LabError::Other(format!("the VM lacks an address: {listing}")))
}

fn now() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as Nanos
}

fn lab(error: TrafficError) -> LabError {
    LabError::Other(traffic::chain(&error))
}
