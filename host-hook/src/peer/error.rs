//! Why two hosts do not talk: whose fault, in which file, and the way out.

use std::{fmt, io, path::PathBuf, time::Duration};

use rustls::{AlertDescription, CertificateError, pki_types::UnixTime};

use super::Identity;

/// This host's files are no good, or two hosts do not get together.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// One of this host's files cannot be read.
    #[error("cannot read {file}; put it there, or set its path under [tls]")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// One of this host's files holds something else.
    #[error("{file} holds no {what} in PEM format; issue it again, or set its path under [tls]")]
    NotPem {
        /// The file.
        file: PathBuf,
        /// What should be in it.
        what: &'static str,
    },
    /// A certificate and a key of this host that are not a pair.
    #[error("the key {key} does not match the certificate {certificate}; use the one that it was issued for")]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A key of a kind that TLS here cannot use.
    #[error("the key {key} cannot be used; use an RSA, ECDSA or Ed25519 key")]
    UnusableKey {
        /// The key's file.
        key: PathBuf,
        /// What TLS says of it.
        #[source]
        cause: rustls::Error,
    },
    /// A certificate of this host that no peer would accept.
    #[error("no peer would accept this host's certificate {file} (checked against {ca}): it {why}")]
    Unfit {
        /// The certificate's file.
        file: PathBuf,
        /// The CA's file.
        ca: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// A peer whose name in the configuration cannot stand in a certificate.
    #[error("peer \"{peer}\" cannot be called: that is not a host's name; correct its [peer.NAME] section")]
    BadName {
        /// The peer.
        peer: String,
    },
    /// A peer that does not answer.
    #[error(
        "cannot reach peer {peer} at {address}; is lsm-hook's peer channel open there, and its address right here?"
    )]
    Unreachable {
        /// The peer.
        peer: String,
        /// Where it was called.
        address: String,
        /// The kernel's reason.
        #[source]
        cause: io::Error,
    },
    /// A peer that says nothing, or not enough.
    #[error("{peer} did not finish the handshake within {} s; is a firewall between the hosts?", within.as_secs())]
    Silent {
        /// The peer.
        peer: String,
        /// How long it had.
        within: Duration,
    },
    /// The other side's certificate is not accepted here.
    #[error("the certificate of {peer} (checked against {ca}) {why}")]
    Rejected {
        /// The peer, or where the call came from.
        peer: String,
        /// The CA's file here.
        ca: PathBuf,
        /// What is wrong with it and what to do.
        why: String,
    },
    /// The other side does not accept this host's certificate.
    #[error("{peer} does not accept this host's certificate {file}: it says \"{alert}\"; its log has the details")]
    Refused {
        /// The peer, or where the call came from.
        peer: String,
        /// This host's certificate.
        file: PathBuf,
        /// TLS's word for the reason.
        alert: String,
    },
    /// The other side knows who this host is and has nothing to do with it.
    #[error("peer {peer} refuses this host: {why}")]
    NotWelcome {
        /// The peer.
        peer: String,
        /// Its reason and what to do.
        why: String,
    },
    /// A caller with a good certificate that is none of the peers.
    #[error("the caller from {from} is none of this host's peers: its client certificate {why}")]
    Stranger {
        /// Where the call came from.
        from: String,
        /// What is wrong with its name and what to do.
        why: String,
    },
    /// Anything else: cut off, not TLS, not TLS 1.3.
    #[error("the handshake with {peer} failed; is it an lsm-hook of this version?")]
    Handshake {
        /// The peer, or where the call came from.
        peer: String,
        /// TLS's or the kernel's reason.
        #[source]
        cause: io::Error,
    },
}

/// Which side of the call the other host is on.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Called,
    Caller,
}

/// What a failed handshake means.
pub(super) fn handshake_failed(identity: &Identity, other: &str, side: Side, cause: io::Error) -> PeerError {
    let (peer, own) = match side {
        Side::Called => (format!("peer {other}"), &identity.files.client_cert),
        Side::Caller => (format!("the caller from {other}"), &identity.files.cert),
    };
    let ca = || identity.files.ca.clone();
    let tls = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(error)) => {
            PeerError::Rejected { peer, ca: ca(), why: Defect::from(error).to_string() }
        }
        Some(rustls::Error::NoCertificatesPresented) => PeerError::Rejected {
            peer,
            ca: ca(),
            why: "is missing: it showed none; set client_cert under [tls] there".into(),
        },
        Some(rustls::Error::AlertReceived(alert)) if about_certificate(*alert) => {
            PeerError::Refused { peer, file: own.clone(), alert: words(*alert) }
        }
        _ => PeerError::Handshake { peer, cause },
    }
}

fn about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription as A;
    matches!(
        alert,
        A::NoCertificate
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::DecryptError
            | A::CertificateRequired
    )
}

fn words(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => "certificate expired".into(),
        AlertDescription::UnknownCA => "unknown CA".into(),
        AlertDescription::CertificateRequired => "certificate required".into(),
        other => format!("{other:?}"),
    }
}

/// What is wrong with a certificate, as the rest of a sentence that begins with it.
#[derive(Debug)]
pub(super) enum Defect {
    /// And for how long, in seconds.
    Expired(u64),
    NotYet,
    UnknownCa,
    WrongName(Vec<String>),
    NoName,
    WrongUse,
    Other(String),
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired(s) => {
                let (number, unit) = match s {
                    0..120 => (*s, "s"),
                    120..7200 => (s / 60, "min"),
                    7200..172_800 => (s / 3600, "hours"),
                    _ => (s / 86_400, "days"),
                };
                write!(f, "expired {number} {unit} ago; issue a new one, or set the clock right")
            }
            Self::NotYet => f.write_str("is not valid yet; set the clock right on both hosts"),
            Self::UnknownCa => {
                f.write_str("is from an unknown CA; all hosts need certificates of one CA, or a ca file with both")
            }
            Self::WrongName(names) => {
                write!(
                    f,
                    "is for {}; its name must be the NAME of a [peer.NAME] section: correct the section, or issue it with \
                     that name",
                    names.join(", ")
                )
            }
            Self::NoName => f.write_str(
                "has no subject alternative name; issue it with the host's name as one (certtool: dns_name = \"…\")",
            ),
            Self::WrongUse => f.write_str(
                "is not for this use; issue it for TLS servers, and the client's for TLS clients (certtool: \
                 tls_www_server, tls_www_client)",
            ),
            Self::Other(why) => f.write_str(why),
        }
    }
}

impl Defect {
    fn expired(now: UnixTime, end: UnixTime) -> Self {
        Self::Expired(now.as_secs().saturating_sub(end.as_secs()))
    }

    fn names(presented: &[String]) -> Self {
        if presented.is_empty() { Self::NoName } else { Self::WrongName(presented.iter().map(|n| plain(n)).collect()) }
    }
}

/// webpki writes `DnsName("dallas")`.
pub(super) fn plain(name: &str) -> String {
    name.split_once('(').map_or(name, |(_, rest)| rest.trim_end_matches(')')).trim_matches('"').to_owned()
}

impl From<&CertificateError> for Defect {
    fn from(error: &CertificateError) -> Self {
        use CertificateError as E;
        match error {
            E::Expired => Self::Expired(0),
            E::ExpiredContext { time, not_after } => Self::expired(*time, *not_after),
            E::NotValidYet | E::NotValidYetContext { .. } => Self::NotYet,
            // A CA of the same name and another key.
            E::UnknownIssuer | E::BadSignature => Self::UnknownCa,
            E::NotValidForName => Self::NoName,
            E::NotValidForNameContext { presented, .. } => Self::names(presented),
            E::InvalidPurpose | E::InvalidPurposeContext { .. } => Self::WrongUse,
            other => Self::Other(format!("cannot be used: {other}; issue it again")),
        }
    }
}

impl From<&webpki::Error> for Defect {
    fn from(error: &webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { time, not_after } => Self::expired(*time, *not_after),
            E::CertNotValidYet { .. } => Self::NotYet,
            E::UnknownIssuer | E::InvalidSignatureForPublicKey => Self::UnknownCa,
            E::CertNotValidForName(names) => Self::names(&names.presented),
            E::RequiredEkuNotFoundContext(_) => Self::WrongUse,
            other => Self::Other(format!("cannot be used: {other}; issue it again")),
        }
    }
}
