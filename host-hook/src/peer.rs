//! The channel between two hosts: TCP and TLS 1.3, certificates demanded and checked on both sides, never without.
//!
//! A host is its name: the one that stands in the other's `[peer.NAME]` and in this host's certificates as a subject
//! alternative name. Both certificates lead to the CA of `[tls]`.
//!
//! In TLS 1.3 the caller is done before the other side has looked at its certificate. So the accepting side says one
//! byte, the [`Verdict`], before anything else, and the caller waits for it: whoever holds a [`Channel`] is welcome, and
//! whoever does not can be told why.

mod error;
mod identity;

use std::{net::SocketAddr, time::Duration};

use rustls::pki_types::{CertificateDer, ServerName};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use webpki::EndEntityCert;

use self::error::{Defect, Side, handshake_failed};
pub use self::{error::PeerError, identity::Identity};

/// An open channel: either end of it. Close it with `shutdown`, so that the other side can tell the end from a cut.
pub type Channel = TlsStream<TcpStream>;

/// Connecting, handshake and verdict together: several times the round trip of any WAN.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What the accepting side thinks of the caller. On the wire: one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Welcome = 1,
    /// No configured peer has a name of the certificate.
    Stranger = 2,
    /// More than one has.
    Ambiguous = 3,
}

/// Calls the host `name` at `address` (`host:port`).
///
/// # Errors
/// Where it cannot be reached within 5 s, is not who it should be, or does not want this host.
pub async fn connect(identity: &Identity, name: &str, address: &str) -> Result<Channel, PeerError> {
    connect_by(identity, name, address, TcpStream::connect(address)).await
}

/// [`connect`], where somebody else makes the connection.
///
/// # Errors
/// As of [`connect`].
pub async fn connect_by(
    identity: &Identity,
    name: &str,
    address: &str,
    tcp: impl Future<Output = std::io::Result<TcpStream>>,
) -> Result<Channel, PeerError> {
    let handshake = async {
        let server = ServerName::try_from(name.to_owned()).map_err(|_| PeerError::BadName { peer: name.into() })?;
        let unreachable = |cause| PeerError::Unreachable { peer: name.into(), address: address.into(), cause };
        let tcp = tcp.await.map_err(unreachable)?;
        keep_alive(&tcp).map_err(unreachable)?;
        let failed = |cause| handshake_failed(identity, name, Side::Called, cause);
        let connector = TlsConnector::from(identity.client.clone());
        let mut channel = connector.connect(server, tcp).await.map_err(failed)?;
        match channel.read_u8().await.map_err(failed)? {
            1 => Ok(Channel::from(channel)),
            2 => Err(PeerError::NotWelcome { peer: name.into(), why: Verdict::Stranger.to_string() }),
            3 => Err(PeerError::NotWelcome { peer: name.into(), why: Verdict::Ambiguous.to_string() }),
            byte => Err(PeerError::NotWelcome {
                peer: name.into(),
                why: format!("it says {byte}, which this version does not know; upgrade this host"),
            }),
        }
    };
    let silent = |_| PeerError::Silent { peer: format!("{name} at {address}"), within: HANDSHAKE };
    timeout(HANDSHAKE, handshake).await.map_err(silent)?
}

/// Takes a call and tells which of the hosts named in `allowed` it is.
///
/// # Errors
/// Where the caller does not finish within 5 s, has no certificate of the CA, or is none of `allowed`.
pub async fn accept(identity: &Identity, tcp: TcpStream, allowed: &[String]) -> Result<(String, Channel), PeerError> {
    let from =
        tcp.peer_addr().map_or_else(|_| "a caller that is gone".to_owned(), |address| named(address).to_string());
    let handshake = async {
        let failed = |cause| handshake_failed(identity, &from, Side::Caller, cause);
        keep_alive(&tcp).map_err(failed)?;
        let mut channel = TlsAcceptor::from(identity.server.clone()).accept(tcp).await.map_err(failed)?;
        let certificate = channel.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let who = match certificate {
            Some(certificate) => who(certificate, allowed),
            // The verifier lets nobody through without.
            None => Err((Verdict::Stranger, Defect::Other("is missing".into()))),
        };
        let verdict = who.as_ref().map_or_else(|(verdict, _)| *verdict, |_| Verdict::Welcome);
        channel.write_u8(verdict as u8).await.map_err(failed)?;
        channel.flush().await.map_err(failed)?;
        match who {
            Ok(name) => Ok((name, Channel::from(channel))),
            Err((_, defect)) => {
                // The verdict is out; whether the caller hears the end of the channel matters to nobody.
                let _ = channel.shutdown().await;
                Err(PeerError::Stranger { from: from.clone(), why: defect.to_string() })
            }
        }
    };
    let silent = |_| PeerError::Silent { peer: format!("the caller from {from}"), within: HANDSHAKE };
    timeout(HANDSHAKE, handshake).await.map_err(silent)?
}

/// An IPv4 address as one, also where the listener hears both families.
pub fn named(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Which of `allowed` the certificate, whose chain is good, belongs to.
fn who(certificate: &CertificateDer<'_>, allowed: &[String]) -> Result<String, (Verdict, Defect)> {
    let certificate = EndEntityCert::try_from(certificate).map_err(|e| (Verdict::Stranger, Defect::from(&e)))?;
    let mut presented = None;
    let mut names = Vec::new();
    for name in allowed {
        let Ok(subject) = ServerName::try_from(name.as_str()) else { continue };
        match certificate.verify_is_valid_for_subject_name(&subject) {
            Ok(()) => names.push(name),
            Err(error) => presented = Some(Defect::from(&error)),
        }
    }
    match names[..] {
        [name] => Ok(name.clone()),
        [] => Err((
            Verdict::Stranger,
            presented.unwrap_or(Defect::Other("is of no use while no peer is configured".into())),
        )),
        // A wildcard, or one host listed twice: it could act for either.
        [one, other, ..] => Err((
            Verdict::Ambiguous,
            Defect::Other(format!(
                "carries the names of both {one} and {other}; give each host a certificate of its own"
            )),
        )),
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Welcome => "this host is welcome",
            Self::Stranger => "none of its [peer.NAME] sections has a name of this host's client certificate; add one there",
            Self::Ambiguous => {
                "more than one of its [peer.NAME] sections has a name of this host's client certificate; it must be one host's"
            }
        })
    }
}

/// Small messages at once; a peer that is gone is noticed within 15 s, sent to or not.
fn keep_alive(tcp: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    let probes =
        TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(3)).with_retries(3);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(15)))
}

#[cfg(test)]
mod tests;
