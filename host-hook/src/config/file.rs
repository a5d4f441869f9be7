//! The file as it is written: names of keys, and where each value stands.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use toml::{Spanned, Value};

use super::{Encrypt, Join, Switch, Unprepared};

pub(super) type Text = Spanned<String>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) name: Option<Text>,
    #[serde(default)]
    pub(super) peer_channel: PeerChannel,
    #[serde(default)]
    pub(super) tunnel: Tunnel,
    #[serde(default)]
    pub(super) tls: Tls,
    #[serde(default)]
    pub(super) lan: BTreeMap<Text, Lan>,
    #[serde(default)]
    pub(super) peer: BTreeMap<Text, Peer>,
    #[serde(default)]
    pub(super) policy: Policy,
    #[serde(default)]
    pub(super) stream: Stream,
    #[serde(default)]
    pub(super) scripts: Scripts,
    pub(super) reports: Option<Spanned<lsm_records::places::Places>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerChannel {
    pub(super) listen: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tunnel {
    pub(super) address: Option<Text>,
    pub(super) port: Option<Spanned<u16>>,
    pub(super) mtu: Option<Spanned<Value>>,
    pub(super) encrypt: Option<Encrypt>,
    pub(super) wireguard_port: Option<Spanned<u16>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) client_cert: Option<PathBuf>,
    pub(super) client_key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Lan {
    pub(super) bridge: Option<Text>,
    pub(super) prefix: Option<Spanned<Value>>,
    pub(super) gateway: Option<Spanned<Value>>,
    pub(super) pool: Option<Spanned<Value>>,
    pub(super) mtu: Option<Spanned<u32>>,
    pub(super) addressing: Option<Spanned<Addressing>>,
    pub(super) offer: Option<Spanned<bool>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Peer {
    pub(super) address: Option<Text>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) join: Option<Join>,
    pub(super) switch: Option<Switch>,
    pub(super) unprepared: Option<Unprepared>,
    pub(super) prepare_wait_ms: Option<Spanned<u64>>,
    pub(super) drain: Option<Text>,
    pub(super) min_survival: Option<Spanned<Value>>,
    pub(super) lease_s: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stream {
    #[serde(default)]
    pub(super) paths: Vec<Text>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scripts {
    pub(super) deadline_s: Option<Spanned<u64>>,
}

/// How VMs get their addresses of a LAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Addressing {
    #[default]
    Static,
    Dhcp,
    Slaac,
    #[serde(rename = "dhcp+slaac")]
    DhcpSlaac,
}
