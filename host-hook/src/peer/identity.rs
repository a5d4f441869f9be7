//! Who this host is to its peers: certificates and keys, checked when they are read as the peers will check them, so
//! that the operator reads of a bad one here and not on the other host.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage};

use super::error::{Defect, PeerError, plain};
use crate::config::Tls;

/// This host's certificates and keys, ready for use. Load it again to take up renewed files.
#[derive(Clone)]
pub struct Identity {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    /// For errors.
    pub(super) files: Tls,
}

/// A certificate with its chain, and the key to it.
struct Pair<'a> {
    certificate: &'a Path,
    key: &'a Path,
    chain: Vec<CertificateDer<'static>>,
    secret: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads and checks the files.
    ///
    /// # Errors
    /// For a file that cannot be read or holds something else, a key that does not belong to its certificate, and a
    /// certificate that no peer would accept.
    pub fn load(tls: &Tls) -> Result<Self, PeerError> {
        let (roots, called, calling) = files(tls)?;
        let now = UnixTime::now();
        called.check(&roots, KeyUsage::server_auth(), &tls.ca, now)?;
        calling.check(&roots, KeyUsage::client_auth(), &tls.ca, now)?;
        Self::new(tls, roots, called, calling)
    }

    /// Whether the files will still be good after this time.
    ///
    /// # Errors
    /// As of [`Identity::load`].
    pub fn good_for(tls: &Tls, time: Duration) -> Result<(), PeerError> {
        let (roots, called, calling) = files(tls)?;
        let then = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs()) + time);
        called.check(&roots, KeyUsage::server_auth(), &tls.ca, then)?;
        calling.check(&roots, KeyUsage::client_auth(), &tls.ca, then)
    }

    /// The names of this host that both certificates carry. None where a file is no good.
    pub fn names(tls: &Tls) -> Vec<String> {
        let called = names_of(&tls.cert);
        names_of(&tls.client_cert).into_iter().filter(|name| called.contains(name)).collect()
    }

    /// For tests of what a peer says to a certificate that is not even good here.
    #[cfg(test)]
    pub(super) fn load_unchecked(tls: &Tls) -> Result<Self, PeerError> {
        let (roots, called, calling) = files(tls)?;
        Self::new(tls, roots, called, calling)
    }

    fn new(tls: &Tls, roots: RootCertStore, called: Pair<'_>, calling: Pair<'_>) -> Result<Self, PeerError> {
        let provider = Arc::new(ring::default_provider());
        let roots = Arc::new(roots);
        Ok(Self {
            client: Arc::new(calling.client(provider.clone(), roots.clone())?),
            server: Arc::new(called.server(provider, roots)?),
            files: tls.clone(),
        })
    }
}

/// The CAs, and what is shown when called and when calling.
fn files(tls: &Tls) -> Result<(RootCertStore, Pair<'_>, Pair<'_>), PeerError> {
    Ok((roots(&tls.ca)?, Pair::load(&tls.cert, &tls.key)?, Pair::load(&tls.client_cert, &tls.client_key)?))
}

impl<'a> Pair<'a> {
    fn load(certificate: &'a Path, key: &'a Path) -> Result<Self, PeerError> {
        let chain = certificates(certificate)?;
        let not_pem =
            || PeerError::NotPem { file: key.to_owned(), what: "private key (one under a passphrase cannot be used)" };
        let secret = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(|_| not_pem())?;
        Ok(Self { certificate, key, chain, secret })
    }

    /// As a peer that has the same CA would.
    fn check(&self, roots: &RootCertStore, usage: KeyUsage, ca: &Path, at: UnixTime) -> Result<(), PeerError> {
        let (own, intermediates) = self.chain.split_first().ok_or_else(|| no_certificate(self.certificate))?;
        let sound = || {
            let own = EndEntityCert::try_from(own)?;
            own.verify_for_usage(ALL_VERIFICATION_ALGS, &roots.roots, intermediates, at, usage, None, None)?;
            match own.verify_is_valid_for_subject_name(&nobody()) {
                // Any name will do here; which one is right, only the peers know.
                Err(webpki::Error::CertNotValidForName(names)) if !names.presented.is_empty() => Ok(()),
                other => other,
            }
        };
        sound().map_err(|e: webpki::Error| PeerError::Unfit {
            file: self.certificate.to_owned(),
            ca: ca.to_owned(),
            why: Defect::from(&e).to_string(),
        })
    }

    fn client(self, provider: Arc<CryptoProvider>, roots: Arc<RootCertStore>) -> Result<ClientConfig, PeerError> {
        let mismatch = mismatch(self.certificate, self.key);
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(&mismatch)?
            .with_root_certificates(roots)
            .with_client_auth_cert(self.chain, self.secret)
            .map_err(&mismatch)?;
        // A resumed session would not look at the certificates again, expired or not.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn server(self, provider: Arc<CryptoProvider>, roots: Arc<RootCertStore>) -> Result<ServerConfig, PeerError> {
        let mismatch = mismatch(self.certificate, self.key);
        // Fails for an empty store only, and `roots` is none.
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
            .build()
            .map_err(|_| no_certificate(self.certificate))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(&mismatch)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain, self.secret)
            .map_err(&mismatch)?;
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

fn mismatch(certificate: &Path, key: &Path) -> impl Fn(rustls::Error) -> PeerError + use<> {
    let (certificate, key): (PathBuf, PathBuf) = (certificate.into(), key.into());
    move |cause| match cause {
        rustls::Error::InconsistentKeys(_) => {
            PeerError::KeyMismatch { certificate: certificate.clone(), key: key.clone() }
        }
        cause => PeerError::UnusableKey { key: key.clone(), cause },
    }
}

fn roots(file: &Path) -> Result<RootCertStore, PeerError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots
            .add(certificate)
            .map_err(|_| PeerError::NotPem { file: file.to_owned(), what: "usable CA certificate" })?;
    }
    Ok(roots)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, PeerError> {
    let pem = read(file)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    certificates.ok().filter(|found| !found.is_empty()).ok_or_else(|| no_certificate(file))
}

fn no_certificate(file: &Path) -> PeerError {
    PeerError::NotPem { file: file.to_owned(), what: "certificate" }
}

fn names_of(file: &Path) -> Vec<String> {
    let chain = certificates(file).unwrap_or_default();
    let presented = chain.first().and_then(|first| {
        match EndEntityCert::try_from(first).ok()?.verify_is_valid_for_subject_name(&nobody()) {
            Err(webpki::Error::CertNotValidForName(names)) => Some(names.presented),
            _ => None,
        }
    });
    presented.unwrap_or_default().iter().map(|name| plain(name)).collect()
}

fn read(file: &Path) -> Result<Vec<u8>, PeerError> {
    fs::read(file).map_err(|cause| PeerError::Unreadable { file: file.to_owned(), cause })
}

/// A name that no certificate has.
fn nobody() -> ServerName<'static> {
    ServerName::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}
