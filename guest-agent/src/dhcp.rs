//! A DHCP client (RFC 2131) for VMs in which nobody else is one for the vNIC: an address is asked for, checked, kept alive
//! and given back. It only asks and tells: addresses and routes are set elsewhere.
//!
//! ```text
//!  acquire: DISCOVER -> OFFER -> REQUEST -> ACK -> ARP: nobody has it     (NAK, or somebody has it: DECLINE, once more)
//!  extend:  REQUEST to the server; later to everybody -> ACK              (NAK: the address is lost)
//!  release: RELEASE, unanswered
//! ```
//! Between those no socket is open: traffic of the vNIC wakes nobody up.

pub mod packet;

use std::{
    io::{self, Read as _},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use lsm_protocol::{Mac, Millis};
use nix::libc;
use serde::{Deserialize, Serialize};
use socket2::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{sleep, timeout},
};

use crate::{neighbours, raw::watch};
use packet::{Answer, Ask, Question, Said};

/// How long one question may remain without an answer. Servers that first look whether the address is free take three
/// seconds (dnsmasq) or one (Kea, ISC).
pub const PATIENCE: Duration = Duration::from_millis(3_500);
/// Asked again after this, then after twice as long. A round trip through the tunnel is shorter; only loss makes it useful.
const AGAIN: Duration = Duration::from_millis(400);
/// Offers that turn out to be worth nothing, before it is given up.
const TRIES: u8 = 3;
/// Whoever has the address already answers within twice the time that the server took, within these limits.
const TAKEN: [Duration; 2] = [Duration::from_millis(60), Duration::from_millis(500)];
/// A lease that never ends (RFC 2131, 3.3).
const FOREVER: u32 = u32::MAX;
/// Of a lease's time, unless the server says: when its server is asked, and when everybody is (RFC 2131, 4.4.5).
const RENEW: f64 = 0.5;
const REBIND: f64 = 0.875;

/// The card that the address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Card {
    pub ifindex: u32,
    pub mac: Mac,
}

/// An address for a time. Times in milliseconds of the agent's clock; `None` for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix_len: u8,
    pub gateway: Ipv4Addr,
    pub server: Ipv4Addr,
    /// The server on the link, or the relay to it.
    pub via: Mac,
    /// When its server is to be asked to extend it.
    pub renew: Option<Millis>,
    /// When any server is.
    pub rebind: Option<Millis>,
    /// When the address is not ours any more.
    pub end: Option<Millis>,
}

/// Why there is no address, or no more.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no DHCP server answered within {} s; is there one on the LAN, and does host.toml say addressing = \"dhcp\" for it?", .0.as_secs_f32())]
    NoAnswer(Duration),
    #[error("DHCP server {server} refused ({message:?}); see its log")]
    Nak { server: Ipv4Addr, message: String },
    #[error("DHCP server {server} gave {what}; correct its configuration")]
    Useless { server: Ipv4Addr, what: String },
    #[error("{address}, which DHCP server {server} gave, is in use by {by}; find out whose it is")]
    Taken { address: Ipv4Addr, server: Ipv4Addr, by: Mac },
    #[error("cannot speak on the vNIC")]
    Io(#[from] io::Error),
}

impl Lease {
    /// What an acknowledgement gives from `now` on.
    fn of(answer: &Answer, now: Millis) -> Result<Lease, Failure> {
        let server = answer.server.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let useless = |what: &str| Failure::Useless { server, what: what.to_owned() };
        let address = answer.address.ok_or_else(|| useless("no address"))?;
        let gateway = answer.router.ok_or_else(|| useless("no router"))?;
        let mask = answer.mask.ok_or_else(|| useless("no subnet mask"))?.to_bits();
        if mask.leading_ones() + mask.trailing_zeros() != 32 || mask == 0 {
            return Err(useless("a subnet mask that is none"));
        }
        if address.to_bits() & mask != gateway.to_bits() & mask {
            let what = format!("{address}/{} with the router {gateway} outside of it", mask.leading_ones());
            return Err(Failure::Useless { server, what });
        }
        let lease = answer.lease.ok_or_else(|| useless("no lease time"))?;
        let at = |seconds: u32| (lease != FOREVER).then_some(now + Millis::from(seconds) * 1_000);
        let share = |of: f64| (f64::from(lease) * of) as u32;
        let renewal = answer.renewal.filter(|time| *time < lease).unwrap_or(share(RENEW));
        let rebinding = answer.rebinding.filter(|time| (renewal..lease).contains(time)).unwrap_or(share(REBIND));
        Ok(Lease {
            address,
            prefix_len: mask.leading_ones() as u8,
            gateway,
            server,
            via: answer.from,
            renew: at(renewal),
            rebind: at(rebinding.max(renewal)),
            end: at(lease),
        })
    }

    /// When to try to extend it next, being tried at `now`: half of what is left of the phase, a minute at least (RFC 2131,
    /// 4.4.5).
    #[must_use]
    pub fn next_try(&self, now: Millis) -> Option<Millis> {
        let (renew, rebind, end) = (self.renew?, self.rebind?, self.end?);
        if now < renew {
            return Some(renew);
        }
        let phase = if now < rebind { rebind } else { end };
        Some(phase.min(now + (phase.saturating_sub(now) / 2).max(60_000)).max(now))
    }
}

/// Gets an address.
///
/// # Errors
/// See [`Failure`].
pub async fn acquire(card: Card, now: impl Fn() -> Millis) -> Result<Lease, Failure> {
    let line = Line::open(card)?;
    let ask = |ask, wanted, server| Question { ask, xid: 0, mac: card.mac, current: None, wanted, server };
    let mut tries = 0;
    loop {
        tries += 1;
        let offer = line.ask(ask(Ask::Discover, None, None), None, &[Said::Offer]).await?;
        let (wanted, server) = (offer.address, offer.server);
        let (asked, begun) = (Instant::now(), now());
        let answer = line.ask(ask(Ask::Request, wanted, server), None, &[Said::Ack, Said::Nak]).await?;
        let failure = if answer.said == Some(Said::Nak) {
            nak(&answer)
        } else {
            let lease = Lease::of(&answer, begun)?;
            let patience = (asked.elapsed() * 2).clamp(TAKEN[0], TAKEN[1]);
            let probe = neighbours::probe(card.ifindex, card.mac, Ipv4Addr::UNSPECIFIED.into(), lease.address.into());
            let Ok(Ok(by)) = timeout(patience, probe).await else { return Ok(lease) };
            line.tell(ask(Ask::Decline, Some(lease.address), Some(lease.server)), None)?;
            Failure::Taken { address: lease.address, server: lease.server, by }
        };
        if tries == TRIES {
            return Err(failure);
        }
        tracing::warn!(why = %failure, "asking for another address");
    }
}

/// Asks the lease's own server, or everybody when that has been in vain for long, for more time.
///
/// # Errors
/// [`Failure::Nak`]: the address is lost. Others: it may be tried again.
pub async fn extend(card: Card, lease: &Lease, now: impl Fn() -> Millis) -> Result<Lease, Failure> {
    let line = Line::open(card)?;
    let to = lease.rebind.is_none_or(|rebind| now() < rebind).then_some((lease.via, lease.server));
    let question =
        Question { ask: Ask::Request, xid: 0, mac: card.mac, current: Some(lease.address), wanted: None, server: None };
    let begun = now();
    let answer = line.ask(question, to, &[Said::Ack, Said::Nak]).await?;
    if answer.said == Some(Said::Nak) { Err(nak(&answer)) } else { Lease::of(&answer, begun) }
}

/// Gives an address back. Nobody answers.
///
/// # Errors
/// The card is gone or down.
pub fn release(card: Card, lease: &Lease) -> Result<(), Failure> {
    let question = Question {
        ask: Ask::Release,
        xid: 0,
        mac: card.mac,
        current: Some(lease.address),
        wanted: None,
        server: Some(lease.server),
    };
    Ok(Line::open(card)?.tell(question, Some((lease.via, lease.server)))?)
}

fn nak(answer: &Answer) -> Failure {
    let server = answer.server.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Failure::Nak { server, message: answer.message.clone().unwrap_or_default() }
}

/// Frames in and out of the card, past the kernel's IP.
struct Line {
    card: Card,
    socket: AsyncFd<Socket>,
}

impl Line {
    fn open(card: Card) -> io::Result<Line> {
        let socket = neighbours::packet_socket(card.ifindex, libc::ETH_P_IP as u16)?;
        Ok(Line { card, socket: watch(socket, Interest::READABLE)? })
    }

    fn tell(&self, mut question: Question, to: Option<(Mac, Ipv4Addr)>) -> io::Result<()> {
        if question.xid == 0 {
            question.xid = random()?;
        }
        match self.socket.get_ref().send(&question.frame(to)) {
            // A full queue is loss, and loss is put up with.
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Asks until one of these answers comes.
    async fn ask(
        &self,
        mut question: Question,
        to: Option<(Mac, Ipv4Addr)>,
        wanted: &[Said],
    ) -> Result<Answer, Failure> {
        question.xid = random()?;
        let repeated = async {
            let mut pause = AGAIN;
            loop {
                self.tell(question, to)?;
                tokio::select! {
                    answer = self.hear(question.xid, wanted) => return Ok(answer?),
                    () = sleep(pause) => pause *= 2,
                }
            }
        };
        timeout(PATIENCE, repeated).await.unwrap_or(Err(Failure::NoAnswer(PATIENCE)))
    }

    async fn hear(&self, xid: u32, wanted: &[Said]) -> io::Result<Answer> {
        let mut buffer = [0; 1514];
        loop {
            let mut guard = self.socket.readable().await?;
            let length = match guard.try_io(|socket| socket.get_ref().read(&mut buffer)) {
                Ok(length) => length?,
                Err(_would_block) => continue,
            };
            let answer = Answer::read(&buffer[..length], self.card.mac)
                .filter(|answer| answer.xid == xid && answer.said.is_some_and(|said| wanted.contains(&said)));
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        let at = |last| Some(Ipv4Addr::new(10, 2, 0, last));
        Answer {
            said: Some(Said::Ack),
            address: at(57),
            server: at(1),
            router: at(1),
            mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
            lease: Some(3_600),
            ..Answer::default()
        }
    }

    #[test]
    fn a_lease_is_extended_in_time() {
        let lease = Lease::of(&answer(), 1_000).unwrap();
        let [renew, rebind, end] = [1_801_000, 3_151_000, 3_601_000];
        assert_eq!((lease.renew, lease.rebind, lease.end), (Some(renew), Some(rebind), Some(end)));
        assert_eq!(lease.next_try(0), Some(renew));
        assert_eq!(lease.next_try(renew), Some(renew + (rebind - renew) / 2));
        assert_eq!(lease.next_try(rebind - 10_000), Some(rebind));
        assert_eq!(lease.next_try(end - 90_000), Some(end - 30_000));
        assert_eq!(lease.next_try(end - 30_000), Some(end));
        let told = Answer { renewal: Some(10), rebinding: Some(20), ..answer() };
        let lease = Lease::of(&told, 0).unwrap();
        assert_eq!((lease.renew, lease.rebind), (Some(10_000), Some(20_000)));
        let nonsense = Answer { renewal: Some(4_000), rebinding: Some(1), ..answer() };
        let lease = Lease::of(&nonsense, 0).unwrap();
        assert_eq!((lease.renew, lease.rebind), (Some(1_800_000), Some(3_150_000)));
        let forever = Lease::of(&Answer { lease: Some(FOREVER), ..answer() }, 0).unwrap();
        assert_eq!((forever.next_try(5), forever.end), (None, None));
    }

    #[test]
    fn what_no_path_can_be_made_of_is_refused_in_words() {
        let said = |answer: &Answer| Lease::of(answer, 0).unwrap_err().to_string();
        for (answer, words) in [
            (Answer { address: None, ..answer() }, "gave no address"),
            (Answer { router: None, ..answer() }, "gave no router"),
            (Answer { mask: None, ..answer() }, "gave no subnet mask"),
            (Answer { mask: Some(Ipv4Addr::new(255, 0, 255, 0)), ..answer() }, "a subnet mask that is none"),
            (Answer { mask: Some(Ipv4Addr::UNSPECIFIED), ..answer() }, "a subnet mask that is none"),
            (Answer { lease: None, ..answer() }, "gave no lease time"),
            (
                Answer { router: Some(Ipv4Addr::new(10, 3, 0, 1)), ..answer() },
                "gave 10.2.0.57/24 with the router 10.3.0.1 outside of it",
            ),
        ] {
            let said = said(&answer);
            assert!(said.starts_with("DHCP server 10.2.0.1 gave ") && said.contains(words), "{said}");
        }
    }
}
