//! Connections that carry traffic while a test does its worst, and that must be alive and whole afterwards.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    shell::{LabError, Result, program, wait_for},
    stage::{Stage, TCP},
    topology::CLIENT,
    traffic::{self, ClientOptions, ClientProcess, ConnectionLog, Log, Nanos, TrafficError},
};

/// Where the client waits for the connections that the VM opens.
const LISTEN: u16 = 5003;
/// The same of further clients, which take none.
const LISTEN_MORE: u16 = 5004;
/// Data must get through within this on every connection: TCP's back-off after a pause included.
const ALIVE: Duration = Duration::from_secs(20);

/// Some opened by the client, one by the VM.
#[derive(Debug)]
pub struct Connections {
    client: ClientProcess,
    log: Log,
}

impl Connections {
    /// Opens three MPTCP connections to the VM, one from it, and `plain` ones, and starts traffic both ways.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open(stage: &Stage, plain: u16) -> Result<Connections> {
        let options = ClientOptions { connections: 3, listen: LISTEN, accept: 1, plain, ..quiet(address(stage)?) };
        let (mut client, to) = (spawn(stage, &options)?, format!("{CLIENT}:{LISTEN}"));
        stage.guest.spawn("open", &format!("chrt -f 10 lsm-traffic open --to {to} --count 1"))?;
        client.ready(Duration::from_secs(30)).map_err(lab)?;
        Connections::begin(client)
    }

    /// Of a client of its own, beside the first: so many MPTCP and plain connections to the VM, and none from it.
    ///
    /// # Errors
    /// One did not come about.
    pub fn open_more(stage: &Stage, multipath: u16, plain: u16) -> Result<Connections> {
        let options =
            ClientOptions { connections: multipath, listen: LISTEN_MORE, accept: 0, plain, ..quiet(address(stage)?) };
        let mut client = spawn(stage, &options)?;
        client.ready(Duration::from_secs(30)).map_err(lab)?;
        Connections::begin(client)
    }

    fn begin(mut client: ClientProcess) -> Result<Connections> {
        client.start().map_err(lab)?;
        let mut connections = Connections { client, log: Log::default() };
        connections.alive()?;
        Ok(connections)
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

fn quiet(to: IpAddr) -> ClientOptions {
    ClientOptions { tcp: TCP, udp: None, period: Duration::from_millis(40), ..ClientOptions::new(to) }
}

fn spawn(stage: &Stage, options: &ClientOptions) -> Result<ClientProcess> {
    let mut command = stage.topology.ns("client").command("chrt");
    command.args(["-f", "10"]).arg(program("lsm-traffic")?);
    ClientProcess::spawn(command, options).map_err(lab)
}

/// Where the VM can be reached now: it has another address after each move.
///
/// # Errors
/// It has none, or does not answer.
pub fn address(stage: &Stage) -> Result<IpAddr> {
    let listing = stage.guest.must("ip -4 -o addr show scope global")?;
    let address = listing.split_whitespace().skip_while(|word| *word != "inet").nth(1).unwrap_or_default();
    let address = address.split('/').next().and_then(|address| address.parse().ok());
    address.ok_or_else(|| LabError::Other(format!("the VM has no address: {listing}")))
}

fn now() -> Nanos {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as Nanos
}

fn lab(error: TrafficError) -> LabError {
    LabError::Other(traffic::chain(&error))
}
