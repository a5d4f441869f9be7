//! What this host was told: `/etc/lsm/host.toml`. Every key is optional but the ones that only the operator can know
//! (a LAN's bridge, addresses); `packaging/host.toml` shows each with its default. A file that loads is consistent:
//! what follows needs no check of its own.

mod check;
mod file;
mod network;

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use lsm_protocol::forecast::Survival;

use crate::filters::Crossing;

pub use self::network::{Pool, Prefix};

/// Where the file is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/lsm/host.toml";

/// Everything the host service was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// How this host calls itself in logs and to its peers.
    pub name: String,
    /// Where the peer channel listens.
    pub listen: SocketAddr,
    /// The underlay of the tunnels. `None` only where no peer is configured.
    pub tunnel: Option<Underlay>,
    /// The PKI of the peer channel.
    pub tls: Tls,
    /// The LANs that this host sits on, by name. No two share a bridge or an address of their pools.
    pub lans: BTreeMap<String, Lan>,
    /// The hosts that VMs may come from and go to, by the name that their certificates must carry.
    pub peers: BTreeMap<String, Peer>,
    /// Where the VMs' keys are: beside the file.
    pub keys: PathBuf,
    /// What the operator prefers where more than one thing would be right.
    pub policy: Policy,
    /// This host's addresses that a migration's own stream may take. No two are the same.
    pub stream: Vec<IpAddr>,
    /// How long each script of `moved.d` may run.
    pub script_deadline: Duration,
    /// Where the reports of moves go.
    pub reports: lsm_records::places::Places,
}

/// This host's end of every tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The address that the tunnels start from; peers must reach it.
    pub address: IpAddr,
    /// UDP port of VXLAN, on both ends.
    pub port: u16,
    /// MTU of the underlay in bytes, where the operator set it; `None`: ask the kernel's route.
    pub mtu: Option<u32>,
    /// What hides the tunnels' frames from the underlay, on both ends alike.
    pub encrypt: Encrypt,
    /// UDP port of this host's WireGuard.
    pub wireguard_port: u16,
}

/// What hides frames from the underlay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encrypt {
    #[default]
    None,
    Wireguard,
}

/// PEM files; libvirt's by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The CAs that peers' certificates must lead to.
    pub ca: PathBuf,
    /// Shown to peers that call.
    pub cert: PathBuf,
    /// The key of `cert`.
    pub key: PathBuf,
    /// Shown to peers that are called.
    pub client_cert: PathBuf,
    /// The key of `client_cert`.
    pub client_key: PathBuf,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            ca: "/etc/pki/CA/cacert.pem".into(),
            cert: "/etc/pki/libvirt/servercert.pem".into(),
            key: "/etc/pki/libvirt/private/serverkey.pem".into(),
            client_cert: "/etc/pki/libvirt/clientcert.pem".into(),
            client_key: "/etc/pki/libvirt/private/clientkey.pem".into(),
        }
    }
}

/// A LAN that this host sits on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lan {
    /// The bridge of this host that is the LAN.
    pub bridge: String,
    /// The LAN's IP subnets that this host gives addresses of: of one family each, IPv4, IPv6 or both. None where VMs get
    /// theirs from the LAN.
    pub subnets: Vec<Subnet>,
    /// MTU of the LAN in bytes.
    pub mtu: u32,
    /// How a VM that arrives gets its address.
    pub addressing: Addressing,
    /// Whether VMs that come from other LANs get an address of this one. Of one LAN at most.
    pub offer: bool,
}

/// What a LAN is in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subnet {
    pub prefix: Prefix,
    /// The LAN's router.
    pub gateway: IpAddr,
    /// The addresses that this host may give to VMs. Hosts on the same LAN must not share any.
    pub pool: Pool,
}

/// How a vNIC gets its address of a LAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// This host gives one of its pool.
    Static,
    /// The LAN gives one of each subnet that is named.
    Obtained { dhcp: Option<lsm_protocol::Subnet<Ipv4Addr>>, slaac: Option<lsm_protocol::Subnet<Ipv6Addr>> },
}

impl Addressing {
    /// An address of the family that demands most of the LAN's MTU, of those that the LAN gives.
    fn last_family(&self) -> Option<IpAddr> {
        match self {
            Addressing::Static => None,
            Addressing::Obtained { dhcp, slaac } => {
                slaac.map(|subnet| subnet.address.into()).or(dhcp.map(|subnet| subnet.address.into()))
            }
        }
    }

    /// What of the LAN's broadcast a vNIC needs through a tunnel.
    pub fn crossing(&self) -> Crossing {
        let (dhcp, ra) = match self {
            Addressing::Static => (false, false),
            Addressing::Obtained { dhcp, slaac } => (dhcp.is_some(), slaac.is_some()),
        };
        Crossing { arp: true, dhcp, ra, addresses: None, arriving: false }
    }
}

/// Another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Where its peer channel listens: `host:port`, ready for `connect`.
    pub address: String,
}

/// What the operator prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// When the clients join the new path.
    pub join: Join,
    /// When the traffic takes the new path.
    pub switch: Switch,
    /// What to do with a migration that could not be prepared.
    pub unprepared: Unprepared,
    /// How long `migrate begin` may wait until the guest is prepared. At most [`Policy::LONGEST_PREPARE_WAIT`].
    pub prepare_wait: Duration,
    /// How long connections that cannot take the new path keep the old one.
    pub drain: Drain,
    /// The least that must be able to move, or the migration is refused.
    pub min_survival: Survival,
    /// How long a peer may be silent before what was made for it is undone.
    pub lease: Duration,
}

impl Policy {
    /// `migrate begin` holds libvirt's lock on the VM; the hook itself gives up a little later than this.
    pub const LONGEST_PREPARE_WAIT: Duration = Duration::from_secs(20);
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            join: Join::Before,
            switch: Switch::Auto,
            unprepared: Unprepared::PostJoin,
            prepare_wait: Duration::from_secs(5),
            drain: Drain::UntilIdle,
            min_survival: Survival::ANY,
            // QEMU's and libvirt's own patience with a broken link is 28 to 57 s.
            lease: Duration::from_secs(60),
        }
    }
}

/// When the clients join the new path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Join {
    /// While the memory is copied, through the advance tunnel.
    Before,
    /// After arrival.
    After,
    /// Never: the tunnel carries everything.
    Never,
}

/// When the traffic takes the new path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Switch {
    /// Early when the advance path costs most connections little, else at arrival.
    Auto,
    /// Shortly before the VM stops.
    Early,
    /// First thing after arrival.
    Arrival,
}

/// What to do with a migration that could not be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unprepared {
    /// Refuse it before anything moves.
    Refuse,
    /// Let it go on and join after arrival.
    PostJoin,
}

/// How long connections that cannot take the new path keep the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// Until the last of them has ended.
    UntilIdle,
    /// The tunnel stays until the operator takes it down.
    Forever,
    /// At most this long after the switch.
    For(Duration),
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}; the package's default is a place to start from")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// It does not say something that makes sense.
    #[error("{path}:{line}:{column}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong and what to do.
        what: String,
    },
}

impl Config {
    /// Whether tunnels have to be inside WireGuard.
    pub fn encrypts(&self) -> bool {
        self.tunnel.is_some_and(|tunnel| tunnel.encrypt == Encrypt::Wireguard)
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// Where the file cannot be read, and for the first thing in it that is wrong, with its line and column.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            fs::read_to_string(path).map_err(|cause| ConfigError::Unreadable { path: path.to_owned(), cause })?;
        Self::understand(&text, path)
    }

    /// What the file says; `path` is for errors, and what is beside it.
    pub(crate) fn understand(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config = Self::parse(text).map_err(|wrong| {
            let (line, column) = position(text, wrong.at);
            ConfigError::Invalid { path: path.to_owned(), line, column, what: wrong.what }
        })?;
        Ok(Self { keys: path.with_file_name("keys"), ..config })
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let file = toml::from_str(text)
            .map_err(|e| Wrong { at: e.span().map_or(0, |s| s.start), what: in_words(e.message()) })?;
        check::config(file)
    }

    /// The names that callers' certificates may carry.
    pub fn peer_names(&self) -> Vec<String> {
        self.peers.keys().cloned().collect()
    }

    /// The LAN whose addresses VMs get that come from LANs which are not here.
    pub fn offered_lan(&self) -> Option<(&String, &Lan)> {
        self.lans.iter().find(|(_, lan)| lan.offer)
    }

    /// The LAN that `bridge` is on this host.
    pub fn lan_of_bridge(&self, bridge: &str) -> Option<(&str, &Lan)> {
        self.lans.iter().find(|(_, lan)| lan.bridge == bridge).map(|(name, lan)| (name.as_str(), lan))
    }
}

/// Whether a LAN may be called this. The name stands in file, metadata and messages: a DNS label, `_` and `.` too.
pub fn is_lan_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// What TOML says of it, on one line. A key that is not known here may be another version's.
fn in_words(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    if message.starts_with("unknown field") {
        return format!(
            "{message}; lsm-hook {} has no such key: is the file of another version?",
            env!("CARGO_PKG_VERSION")
        );
    }
    message
}

/// The first thing in the file that is wrong.
#[derive(Debug)]
struct Wrong {
    /// Offset in bytes.
    at: usize,
    what: String,
}

fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Both families: see [`crate::listening`].
const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 16519);
/// VXLAN's port (RFC 7348, section 5).
const DEFAULT_TUNNEL_PORT: u16 = 4789;
/// Beside the peer channel's.
const DEFAULT_WIREGUARD_PORT: u16 = 16520;
const DEFAULT_LAN_MTU: u32 = 1500;

#[cfg(test)]
mod tests;
