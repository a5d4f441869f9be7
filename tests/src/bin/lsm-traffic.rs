//! Both ends of the lab's traffic.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use lsm_tests::traffic::{self, ClientOptions, Fault};

#[derive(Parser)]
#[command(about = "Traffic that knows every byte and every gap")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// The VM's end: answer MPTCP, TCP and datagrams, for ever
    Serve {
        /// Listen for TCP at this address alone
        #[arg(long)]
        at: Option<IpAddr>,
        #[arg(long)]
        tcp: u16,
        #[arg(long)]
        udp: Option<u16>,
        /// For tests of the tests: flip:POSITION, reset:POSITION or drop:NUMBER
        #[arg(long)]
        fault: Option<Fault>,
    },
    /// The VM's end of connections that it opens itself
    Open {
        /// Of several, each gets its turn
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        #[arg(long, default_value_t = 1)]
        count: u16,
    },
    /// The client's end, led over standard input: "start", {"bulk_ms":2000}, "log", "stop"
    Client {
        #[arg(long)]
        to: IpAddr,
        /// The VM's address of the other family, for every second connection
        #[arg(long)]
        also: Option<IpAddr>,
        #[arg(long)]
        tcp: u16,
        #[arg(long)]
        udp: Option<u16>,
        /// MPTCP connections to open
        #[arg(long, default_value_t = 6)]
        connections: u16,
        /// Port for the connections that the VM opens
        #[arg(long, default_value_t = 5003)]
        listen: u16,
        /// How many of those to wait for
        #[arg(long, default_value_t = 0)]
        accept: u16,
        /// Plain TCP connections to open
        #[arg(long, default_value_t = 0)]
        plain: u16,
        /// Bytes per paced record
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(32..))]
        chunk: u16,
        /// Time between paced records, in microseconds
        #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..))]
        period_us: u32,
        /// Time between probes, in microseconds
        #[arg(long, default_value_t = 20_000)]
        probe_us: u32,
        /// Time between datagrams, in microseconds
        #[arg(long, default_value_t = 20_000)]
        datagram_us: u32,
    },
}

fn main() -> ExitCode {
    let ended = match Arguments::parse().role {
        Role::Serve { at, tcp, udp, fault } => traffic::serve(at, tcp, udp, fault),
        Role::Open { to, count } => traffic::open(&to, count),
        Role::Client {
            to,
            also,
            tcp,
            udp,
            connections,
            listen,
            accept,
            plain,
            chunk,
            period_us,
            probe_us,
            datagram_us,
        } => {
            let microseconds = |number| Duration::from_micros(u64::from(number));
            traffic::client(&ClientOptions {
                to,
                also,
                tcp,
                udp,
                connections,
                listen,
                accept,
                plain,
                chunk,
                period: microseconds(period_us),
                probe: microseconds(probe_us),
                datagram: microseconds(datagram_us),
            })
        }
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lsm-traffic: {}", traffic::chain(&error));
            ExitCode::FAILURE
        }
    }
}
