//! A wire with delay, rate and loss between two network namespaces, for kernels that have no netem.
//!
//! A program of its own (`lab-wire`, real-time priority) owns a TAP device in each namespace and carries the frames
//! across, see [`crate::carry`]. The rate is a token bucket of the kernel at each end.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    middlebox::Subtype,
    netns::Netns,
    shell::{During as _, LabError, Process, Result, program, run},
};

/// One end: a TAP device of this name appears in the namespace.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// Where it plugs in.
    pub ns: &'a Netns,
    /// The device's name.
    pub interface: &'a str,
}

/// What the wire does to frames. The same in both directions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WireOptions {
    /// One way.
    pub delay: Duration,
    /// Mbit/s in each direction; `None` is unlimited.
    pub rate_mbit: Option<u32>,
    /// How much time's worth of frames may wait at each end for the rate; more are dropped.
    pub queue: Duration,
    /// Probability that a frame is lost, 0 to 1.
    pub loss: f64,
    /// Of the random numbers behind `loss`.
    pub seed: u64,
    /// Of both devices; up to 9000.
    pub mtu: u32,
}

impl Default for WireOptions {
    fn default() -> WireOptions {
        let queue = Duration::from_millis(50);
        WireOptions { delay: Duration::ZERO, rate_mbit: None, queue, loss: 0.0, seed: 1, mtu: 1500 }
    }
}

/// A running wire. Dropping it removes both devices.
#[derive(Debug)]
pub struct Wire {
    process: Mutex<Process>,
    ends: [(String, String); 2],
    queue: Duration,
    /// The largest bucket that there was, in bytes.
    burst: AtomicU64,
}

impl Wire {
    /// Makes both devices, up and with the rate set; they have no addresses.
    ///
    /// # Errors
    /// `lab-wire` is not built, not root, or the names are taken.
    pub fn new(a: End<'_>, b: End<'_>, options: &WireOptions) -> Result<Wire> {
        let mut command = Command::new("chrt");
        // Without real-time priority, two busy VMs on two cores delayed frames by up to 390 ms.
        if run(Command::new("chrt").args(["-f", "20", "true"])).is_ok() {
            command.args(["-f", "20"]);
        } else {
            command.args(["-o", "0"]);
        }
        command.arg(program("lab-wire")?);
        for end in [a, b] {
            command.arg(end.ns.path()).arg(end.interface);
        }
        command.args([options.delay.as_micros().to_string(), options.loss.to_string(), options.seed.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let name = format!("wire {}:{} to {}:{}", a.ns.name(), a.interface, b.ns.name(), b.interface);
        let mut process = Process::start_piped(&name, &mut command)?;
        let mut line = String::new();
        if let Some(stdout) = process.child().stdout.take() {
            BufReader::new(stdout).read_line(&mut line).during(|| format!("read from {name}"))?;
        }
        if line.trim() != "ready" {
            return Err(LabError::Other(format!("{name} did not start; its reason is above")));
        }
        for end in [a, b] {
            end.ns.ip(&format!("link set dev {} mtu {} txqueuelen 10000 up", end.interface, options.mtu))?;
        }
        let ends = [a, b].map(|end| (end.ns.name().to_owned(), end.interface.to_owned()));
        let wire = Wire { process: Mutex::new(process), ends, queue: options.queue, burst: AtomicU64::new(0) };
        if let Some(rate) = options.rate_mbit {
            wire.set_rate(rate)?;
        }
        Ok(wire)
    }

    /// Changes the rate, in Mbit/s, both ways.
    ///
    /// # Errors
    /// The kernel has no token bucket filter.
    pub fn set_rate(&self, mbit: u32) -> Result<()> {
        let bytes_per_ms = u64::from(mbit) * 125;
        let queue = u64::try_from(self.queue.as_millis()).unwrap_or(u64::MAX).saturating_mul(bytes_per_ms);
        // One millisecond's worth, but not less than a jumbo frame; nor less than before: a frame that waits already, and is
        // larger than the bucket has become, would wait for ever, and all others behind it.
        let burst = bytes_per_ms.max(16_000);
        let burst = self.burst.fetch_max(burst, Ordering::Relaxed).max(burst);
        for (ns, interface) in &self.ends {
            let limit = queue.max(2 * burst);
            let rule = format!("qdisc replace dev {interface} root tbf rate {mbit}mbit burst {burst} limit {limit}");
            run(Command::new("tc").args(["-n", ns]).args(rule.split(' ')))?;
        }
        Ok(())
    }

    /// Changes the one-way delay. Frames already on the wire keep theirs.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn set_delay(&self, delay: Duration) -> Result<()> {
        self.order(&format!("delay {}", delay.as_micros()))
    }

    /// Changes the probability that a frame is lost.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn set_loss(&self, probability: f64) -> Result<()> {
        self.order(&format!("loss {probability}"))
    }

    /// Changes the probability that a segment with this MPTCP option is lost.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn set_loss_of(&self, option: Subtype, probability: f64) -> Result<()> {
        self.order(&format!("loss-of {} {probability}", option.word()))
    }

    /// Whether MPTCP's options are overwritten with ones that mean nothing.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn set_blanking(&self, blank: bool) -> Result<()> {
        self.order(if blank { "blank yes" } else { "blank no" })
    }

    /// Changes the probability that a frame is overtaken by those of the next 4 ms.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn set_reordering(&self, probability: f64) -> Result<()> {
        self.order(&format!("reorder {probability}"))
    }

    /// Changes the probability that a frame comes twice.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn set_repetition(&self, probability: f64) -> Result<()> {
        self.order(&format!("twice {probability}"))
    }

    /// Cuts the wire: what is on it and what follows is lost, until [`Wire::mend`]. The devices stay up.
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn cut(&self) -> Result<()> {
        self.order("cut")
    }

    /// Undoes [`Wire::cut`].
    ///
    /// # Errors
    /// The wire's process has died.
    pub fn mend(&self) -> Result<()> {
        self.order("mend")
    }

    /// The process that carries the frames.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner).pid()
    }

    fn order(&self, order: &str) -> Result<()> {
        let mut process = self.process.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let stdin = process.child().stdin.as_mut();
        let stdin = stdin.ok_or_else(|| LabError::Other("the wire has no input".into()))?;
        writeln!(stdin, "{order}").during(|| format!("tell the wire to {order}"))
    }
}
