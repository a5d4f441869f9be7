//! The demo: a VM with live connections moves between two sites, and what happened is measured from outside.

mod live;
mod one_move;
pub mod timeline;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    report::{Curves, Demo},
    shell::{LabError, Result, program, run as run_command},
    stage::{Stage, StageOptions, TCP, UDP},
    traffic::{ClientOptions, ClientProcess, Connection, Log, Origin, subflows, token_of},
};

pub use live::Live;

/// Where the client waits for the VM's connections, and for those of the legacy traffic's own process.
const LISTEN: u16 = 5003;
const LISTEN_LEGACY: u16 = 5004;
/// The last of a move's traffic has settled within this, unless policy holds it.
const SETTLE: Duration = Duration::from_secs(30);

/// When the clients join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    PreJoin,
    PostJoin,
    TunnelOnly,
}

impl Mode {
    /// As the command line and the report write it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Mode::PreJoin => "pre-join",
            Mode::PostJoin => "post-join",
            Mode::TunnelOnly => "tunnel-only",
        }
    }

    pub(crate) fn policy(self) -> &'static str {
        match self {
            Mode::PreJoin => "before",
            Mode::PostJoin => "after",
            Mode::TunnelOnly => "never",
        }
    }

    /// Whether the direct path is to be reached at all.
    #[must_use]
    pub fn direct(self) -> bool {
        self != Mode::TunnelOnly
    }
}

/// What to show.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    pub mode: Mode,
    /// `auto`, `early` or `arrival`.
    pub switch: String,
    pub moves: usize,
    /// MPTCP connections; two of them are opened by the VM.
    pub connections: u16,
    /// Time between records, per connection and direction.
    pub period: Duration,
    /// The receive buffer that a subflow of the client begins with, in bytes, if not the kernel's: the middle number of
    /// `net.ipv4.tcp_rmem`. A subflow that joins later keeps it, however far the connection's own has grown.
    pub client_buffer: Option<u32>,
    pub stage: StageOptions,
}

/// What came of it.
pub struct Outcome {
    pub demo: Demo,
    pub curves: Vec<Curves>,
    /// What went wrong, in words.
    pub faults: Vec<String>,
}

/// Runs the demo.
///
/// # Errors
/// The lab itself failed. A connection that died is an outcome, not an error.
pub fn run(options: &DemoOptions, live: &Live) -> Result<Outcome> {
    let mut stage_options = options.stage.clone();
    stage_options.policy =
        format!("join = \"{}\"\nswitch = \"{}\"\n{}", options.mode.policy(), options.switch, stage_options.policy);
    let stage = Stage::set(&stage_options, |what| live.say(what))?;
    live.follow(&stage);
    let mut play = Play::begin(&stage, options, live)?;
    let mut outcome = Outcome {
        demo: Demo { mode: options.mode.name().into(), moves: Vec::new() },
        curves: Vec::new(),
        faults: Vec::new(),
    };
    let mut moments = Vec::new();
    for number in 1..=options.moves {
        let seen = one_move::one_move(&mut play, number)?;
        moments.push(seen.resumed);
        outcome.demo.moves.push(seen.report);
        outcome.curves.push(seen.curves);
        if !options.mode.direct() {
            // Each measured move leads away from home, so the VM is brought back in between.
            live.say("bringing the VM back home, unmeasured");
            stage.migrate(stage.sites[0].name())?;
            stage.settled(SETTLE)?;
        }
    }
    play.end(&mut outcome, &moments)?;
    for (number, report) in (1..).zip(&outcome.demo.moves) {
        outcome
            .faults
            .extend(report.faults(options.mode.direct()).into_iter().map(|fault| format!("move {number}: {fault}")));
    }
    if stage.guest.kernel_died() {
        outcome.faults.push("the VM's kernel died (its console is in the site's directory; set LSM_KEEP=1)".into());
    }
    Ok(outcome)
}

/// The stage with its traffic.
struct Play<'a> {
    stage: &'a Stage,
    options: &'a DemoOptions,
    live: &'a Live,
    client: ClientProcess,
    /// Each with its name in the client's kernel.
    connections: Vec<(Connection, u32)>,
    /// All that the client has seen so far.
    log: Log,
    /// The VM's addresses that the world uses now, IPv4 first.
    addresses: Vec<IpAddr>,
}

impl<'a> Play<'a> {
    fn begin(stage: &'a Stage, options: &'a DemoOptions, live: &'a Live) -> Result<Play<'a>> {
        if let Some(bytes) = options.client_buffer {
            let value = format!("net.ipv4.tcp_rmem=4096 {bytes} {}", bytes.max(6 << 20));
            run_command(stage.topology.ns("client").command("sysctl").args(["-qw", &value]))?;
        }
        let addresses = stage.guest.domain().addresses();
        let by_vm = options.connections.min(2);
        let client_options = ClientOptions {
            tcp: TCP,
            udp: None,
            connections: options.connections - by_vm,
            listen: LISTEN,
            accept: by_vm,
            plain: 0,
            period: options.period,
            ..ClientOptions::to_all(&addresses)
        };
        let mut client = spawn(stage, &client_options)?;
        let to = stage.topology.client().into_iter().map(|client| format!(" --to {}", SocketAddr::new(client, LISTEN)));
        let to: String = to.collect();
        stage.guest.spawn("open", &format!("chrt -f 10 lsm-traffic open{to} --count {by_vm}"))?;
        let opened = client.ready(Duration::from_secs(30)).map_err(lab)?;
        let known = subflows(stage.topology.ns("client").command("ss")).map_err(lab)?;
        let mut connections = Vec::new();
        for connection in opened {
            let token = token_of(&connection, &known);
            let token =
                token.ok_or_else(|| LabError::Other(format!("connection {} fell back to plain TCP", connection.id)))?;
            connections.push((connection, token));
        }
        client.start().map_err(lab)?;
        live.say(&format!(
            "{} MPTCP connections carry traffic both ways, {by_vm} of them opened by the VM",
            connections.len()
        ));
        Ok(Play { stage, options, live, client, connections, log: Log::default(), addresses })
    }

    /// The traffic that MPTCP cannot move: one plain TCP connection and a stream of datagrams.
    fn legacy(&self) -> Result<ClientProcess> {
        let options = ClientOptions {
            tcp: TCP,
            udp: Some(UDP),
            connections: 0,
            listen: LISTEN_LEGACY,
            accept: 0,
            plain: 1,
            period: self.options.period,
            ..ClientOptions::to_all(&self.addresses)
        };
        let mut client = spawn(self.stage, &options)?;
        client.ready(Duration::from_secs(30)).map_err(lab)?;
        client.start().map_err(lab)?;
        Ok(client)
    }

    /// Ends all connections and judges them: what a move did to a connection is known when it has ended whole.
    fn end(mut self, outcome: &mut Outcome, moments: &[u64]) -> Result<()> {
        let failures = self.client.failures().to_vec();
        outcome.faults.extend(failures.iter().map(|(id, why)| format!("connection {id}: {why}")));
        self.log.extend(self.client.stop().map_err(lab)?);
        for (report, moment) in outcome.demo.moves.iter_mut().zip(moments) {
            let survived = self.log.multipath().filter(|connection| connection.survived(*moment)).count();
            report.connections.survived = survived as u64;
        }
        if let Some(last) = outcome.demo.moves.last_mut() {
            let heard: u64 = self.log.connections.iter().filter_map(|c| Some(c.end.as_ref()?.peer_wrong)).sum();
            last.bytes_wrong += heard;
        }
        for connection in self.log.multipath().filter(|connection| !connection.is_whole()) {
            let by = if connection.origin == Origin::Vm { "the VM" } else { "the client" };
            let why = connection.failed.as_deref().unwrap_or("its ends count differently");
            outcome.faults.push(format!("connection {} opened by {by} is not whole: {why}", connection.id));
        }
        Ok(())
    }
}

fn spawn(stage: &Stage, options: &ClientOptions) -> Result<ClientProcess> {
    let mut command = stage.topology.ns("client").command("chrt");
    command.args(["-f", "10"]).arg(program("lsm-traffic")?);
    ClientProcess::spawn(command, options).map_err(lab)
}

fn lab(error: crate::traffic::TrafficError) -> LabError {
    LabError::Other(crate::traffic::chain(&error))
}
