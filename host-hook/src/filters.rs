//! What may cross a tunnel, as nftables rules of the bridge family in a table of our own.
//!
//! At the LAN end a VM can put only frames with its own MAC into the LAN, and of the LAN only the vNIC's own frames and
//! the few broadcasts it cannot live without (see [`Crossing`]) cross to it. At the VM end only the vNIC's own frames
//! enter the tunnel. A frame that has the vNIC's MAC as its source never comes *to* the vNIC: the VM would take it for
//! somebody with the same address. Nothing goes from one tunnel to another.
//!
//! From the underlay only the tunnel's other end is heard. Where tunnels are inside WireGuard, that has a table of its own.
//!
//! Every change is in one transaction of `nft -f -`, with others that wait for theirs. What is dropped is counted.

mod changes;
mod rules;
mod underlay;
mod wireguard;

use std::{collections::BTreeSet, io, process::Stdio};

use lsm_protocol::{Addresses, Mac};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command};

use self::changes::{CHANGES, Change, make};
pub use self::{underlay::Sender, wireguard::Entrance};

/// Which frames that are not for the vNIC alone cross from its LAN to it, and with which address it may speak there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crossing {
    /// ARP, and IPv6 neighbour solicitations and advertisements: needed to be found, and to find the gateway.
    pub arp: bool,
    /// DHCP replies by broadcast, those to the vNIC.
    pub dhcp: bool,
    /// IPv6 router advertisements.
    pub ra: bool,
    /// The vNIC's addresses of the LAN, where they are known: with no other it speaks there, link-local ones excepted.
    pub addresses: Option<Addresses>,
    /// The VM has not been in this LAN yet: its kernel's own talk is kept out.
    pub arriving: bool,
}

/// Frames that one end of a tunnel has seen since it was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Into the tunnel at this end.
    pub sent: u64,
    /// Kept out of the tunnel at this end.
    pub sent_dropped: u64,
    /// Out of the tunnel at this end.
    pub received: u64,
    /// Come out of the tunnel and dropped.
    pub received_dropped: u64,
    /// Of those sent to many, ARP and neighbour discovery.
    pub arp: u64,
    /// DHCP replies.
    pub dhcp: u64,
    /// Router advertisements.
    pub ra: u64,
}

/// What went wrong with the filters.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilterError {
    #[error("cannot run nft: is the package nftables installed?")]
    Run(#[source] io::Error),
    #[error("nft refused to {what}: {said}")]
    Refused { what: String, said: String },
    #[error("nft's list of {0} cannot be read")]
    Unreadable(&'static str, #[source] serde_json::Error),
}

/// Guards the LAN end of a tunnel. Also the way to change what crosses.
///
/// # Errors
/// When `nft` refuses; nothing has changed then.
pub async fn guard_lan_end(vni: u32, mac: Mac, crossing: Crossing) -> Result<(), FilterError> {
    let guard = Change::Guard { vni, family: Family::Bridge, text: rules::lan_end(vni, mac, crossing) };
    make(&format!("guard the LAN end of tunnel {vni}"), guard).await
}

/// Guards the VM end of a tunnel.
///
/// # Errors
/// As [`guard_lan_end`].
pub async fn guard_vm_end(vni: u32, mac: Mac) -> Result<(), FilterError> {
    let guard = Change::Guard { vni, family: Family::Bridge, text: rules::vm_end(vni, mac) };
    make(&format!("guard the VM end of tunnel {vni}"), guard).await
}

/// Lets nobody but `sender` send into a tunnel.
///
/// # Errors
/// As [`guard_lan_end`].
pub async fn guard_underlay(vni: u32, port: u16, sender: Sender) -> Result<(), FilterError> {
    let guard = Change::Guard { vni, family: Family::Inet, text: underlay::guard(vni, port, sender) };
    make(&format!("guard tunnel {vni} on the underlay"), guard).await
}

/// Lets only these hosts send to WireGuard, and only to the tunnels through it.
///
/// # Errors
/// As [`guard_lan_end`].
pub async fn guard_wireguard(port: u16, entrances: BTreeSet<Entrance>) -> Result<(), FilterError> {
    let _turn = CHANGES.turn().await;
    run("guard WireGuard", &wireguard::guard(port, &entrances)).await
}

/// Removes WireGuard's guard, if there is one.
///
/// # Errors
/// When `nft` refuses.
pub async fn shut() -> Result<(), FilterError> {
    let _turn = CHANGES.turn().await;
    if objects(Family::Inet, wireguard::TABLE, "chain").await?.is_empty() {
        return Ok(());
    }
    run("remove WireGuard's filter", &wireguard::remove()).await
}

/// Removes the guards of a tunnel, and the tables with the last one.
///
/// # Errors
/// When `nft` refuses.
pub async fn remove(vni: u32) -> Result<(), FilterError> {
    make(&format!("remove the filters of tunnel {vni}"), Change::Remove(vni)).await
}

/// The VNIs of the tunnels that are guarded.
///
/// # Errors
/// When `nft` does not answer.
pub async fn list() -> Result<Vec<u32>, FilterError> {
    let _turn = CHANGES.turn().await;
    let mut guarded = [guarded(Family::Bridge).await?, guarded(Family::Inet).await?].concat();
    guarded.sort_unstable();
    guarded.dedup();
    Ok(guarded)
}

/// Frames for a tunnel that were not its other end's; `None` where there is no such tunnel.
///
/// # Errors
/// When `nft` does not answer.
pub async fn foreign(vni: u32) -> Result<Option<u64>, FilterError> {
    let counters = objects(Family::Inet, rules::TABLE, "counter").await?;
    let ours = counters.iter().find(|counter| counter["name"] == underlay::counter(vni).as_str());
    Ok(ours.and_then(|counter| counter["packets"].as_u64()))
}

/// The counters of one tunnel; `None` where there is no such tunnel.
///
/// # Errors
/// When `nft` does not answer.
pub async fn counts(vni: u32) -> Result<Option<Counts>, FilterError> {
    let objects = objects(Family::Bridge, rules::TABLE, "counter").await?;
    let packets = |name: String| {
        objects.iter().find(|object| object["name"] == name.as_str()).and_then(|object| object["packets"].as_u64())
    };
    let [sent, counted @ ..] = rules::counters(vni).map(packets);
    let [sent_dropped, received, received_dropped, arp, dhcp, ra] = counted.map(|count| count.unwrap_or(0));
    Ok(sent.map(|sent| Counts { sent, sent_dropped, received, received_dropped, arp, dhcp, ra }))
}

/// Where frames pass: between the ports of a bridge, or into this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Bridge,
    Inet,
}

async fn guarded(family: Family) -> Result<Vec<u32>, FilterError> {
    let chains = objects(family, rules::TABLE, "chain").await?;
    let vni = match family {
        Family::Bridge => rules::vni_of_chain,
        Family::Inet => underlay::vni_of_chain,
    };
    Ok(chains.iter().filter_map(|chain| vni(chain["name"].as_str()?)).collect())
}

/// All objects of a kind in a table of ours; none when there is no table.
async fn objects(family: Family, table: &str, kind: &'static str) -> Result<Vec<Value>, FilterError> {
    let family = match family {
        Family::Bridge => "bridge",
        Family::Inet => "inet",
    };
    let listed = nft(&["-j", "list", &format!("{kind}s"), family], "").await?;
    if !listed.status.success() {
        let what = format!("list the {kind}s of the table {table}");
        return Err(FilterError::Refused { what, said: said(&listed.stderr) });
    }
    let value: Value = serde_json::from_slice(&listed.stdout).map_err(|e| FilterError::Unreadable(kind, e))?;
    let entries = value["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours = entries.iter().map(|entry| &entry[kind]).filter(|object| object["table"] == table);
    Ok(ours.cloned().collect())
}

async fn run(what: &str, text: &str) -> Result<(), FilterError> {
    let output = nft(&["-f", "-"], text).await?;
    if output.status.success() {
        return Ok(());
    }
    Err(FilterError::Refused { what: what.to_owned(), said: said(&output.stderr) })
}

async fn nft(arguments: &[&str], input: &str) -> Result<std::process::Output, FilterError> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(FilterError::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A transaction is far smaller than a pipe's buffer; an nft that dies early says so by its status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await.map_err(FilterError::Run)
}

fn said(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).lines().next().unwrap_or("nothing").trim().to_owned()
}
