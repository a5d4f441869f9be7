use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose as Purpose, IsCa, KeyPair,
    date_time_ymd,
};
use tokio::net::TcpListener;

use super::*;
use crate::config::Tls;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // The same for all: another CA may have the same name.
    params.distinguished_name.push(DnType::CommonName, "the lab's CA");
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// One host's files, gone with it.
struct Host {
    directory: PathBuf,
    tls: Tls,
}

impl Drop for Host {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.directory).unwrap();
    }
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "a host");
    params
}

fn expired(mut params: CertificateParams) -> CertificateParams {
    (params.not_before, params.not_after) = (date_time_ymd(2001, 1, 1), date_time_ymd(2002, 1, 1));
    params
}

impl Host {
    fn new(trusted: &Ca, issuer: &Ca, server: CertificateParams, client: CertificateParams) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("lsm-peer-{}-{n}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let file = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let issue = |mut params: CertificateParams, purpose| {
            if params.extended_key_usages.is_empty() {
                params.extended_key_usages = vec![purpose];
            }
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
        };
        let (server, server_key) = issue(server, Purpose::ServerAuth);
        let (client, client_key) = issue(client, Purpose::ClientAuth);
        let tls = Tls {
            ca: file("cacert.pem", trusted.pem()),
            cert: file("servercert.pem", server),
            key: file("serverkey.pem", server_key),
            client_cert: file("clientcert.pem", client),
            client_key: file("clientkey.pem", client_key),
        };
        Self { directory, tls }
    }

    fn good(ca: &Ca, name: &str) -> Self {
        Self::new(ca, ca, params(&[name]), params(&[name]))
    }

    /// As [`Identity::load`] makes it, without its look at the certificates.
    fn unchecked(&self) -> Identity {
        Identity::load_unchecked(&self.tls).unwrap()
    }

    fn load_error(&self) -> String {
        chain(Identity::load(&self.tls).err().expect("it was accepted"))
    }
}

fn chain(error: PeerError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

type Met = (Result<Channel, String>, Result<(String, Channel), String>);

/// The one calls the other.
async fn meet(caller: &Identity, name: &str, called: &Identity, allowed: &[&str]) -> Met {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let allowed: Vec<_> = allowed.iter().map(|n| (*n).to_owned()).collect();
    let called = async {
        let (tcp, _) = listener.accept().await.unwrap();
        accept(called, tcp, &allowed).await.map_err(chain)
    };
    let caller = async { connect(caller, name, &address).await.map_err(chain) };
    tokio::join!(caller, called)
}

/// What each side says when they do not get together.
fn refusals(caller: &Identity, name: &str, called: &Identity, allowed: &[&str]) -> (String, String) {
    let (caller, called) = run(meet(caller, name, called, allowed));
    (caller.expect_err("the caller was content"), called.expect_err("the called was content"))
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in: {text}");
    }
}

#[test]
fn two_good_hosts_talk_both_ways() {
    let ca = ca();
    let (montreal, dallas) = (Host::good(&ca, "montreal"), Host::good(&ca, "dallas.example.org"));
    let (montreal, dallas) = (Identity::load(&montreal.tls).unwrap(), Identity::load(&dallas.tls).unwrap());
    run(async {
        let (caller, called) = meet(&montreal, "dallas.example.org", &dallas, &["austin", "montreal"]).await;
        let (mut caller, (name, mut called)) = (caller.unwrap(), called.unwrap());
        assert_eq!(name, "montreal");
        for stream in [caller.get_ref().0, called.get_ref().0] {
            assert!(stream.nodelay().unwrap());
            assert!(SockRef::from(stream).keepalive().unwrap());
            assert_eq!(SockRef::from(stream).tcp_user_timeout().unwrap(), Some(Duration::from_secs(15)));
        }
        assert_eq!(caller.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        caller.write_all(b"ping").await.unwrap();
        let mut heard = [0; 4];
        called.read_exact(&mut heard).await.unwrap();
        called.write_all(&heard).await.unwrap();
        caller.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping");
        called.shutdown().await.unwrap();
        assert_eq!(caller.read(&mut heard).await.unwrap(), 0);
    });
}

#[test]
fn another_ca_is_refused_by_either_side() {
    let (ours, theirs) = (ca(), ca());
    let (good, other) = (Host::good(&ours, "dallas"), Host::good(&theirs, "montreal"));
    let good = Identity::load(&good.tls).unwrap();
    let other = Identity::load(&other.tls).unwrap();
    let (caller, called) = refusals(&other, "dallas", &good, &["montreal"]);
    says(&caller, &["the certificate of peer dallas", "cacert.pem", "unknown CA", "one CA"]);
    says(&called, &["the caller from 127.0.0.1:", "does not accept this host's certificate", "servercert.pem"]);

    // The caller trusts both; it is the other that does not.
    let (trusting, called) = (Host::new(&ours, &theirs, params(&["a"]), params(&["montreal"])), good);
    let (caller, called) = refusals(&trusting.unchecked(), "dallas", &called, &["montreal"]);
    says(&called, &["the certificate of the caller from 127.0.0.1:", "unknown CA"]);
    says(&caller, &["peer dallas does not accept this host's certificate", "clientcert.pem"]);
}

#[test]
fn another_name_is_refused_by_either_side() {
    let ca = ca();
    let (montreal, dallas) = (Host::good(&ca, "montreal"), Host::good(&ca, "dallas"));
    let (montreal, dallas) = (Identity::load(&montreal.tls).unwrap(), Identity::load(&dallas.tls).unwrap());
    let (caller, _) = refusals(&montreal, "austin", &dallas, &["montreal"]);
    says(&caller, &["the certificate of peer austin", "is for dallas", "[peer.NAME]"]);

    let (caller, called) = refusals(&montreal, "dallas", &dallas, &["austin"]);
    says(&called, &["none of this host's peers", "is for montreal", "[peer.NAME]"]);
    says(&caller, &["peer dallas refuses this host", "none of its [peer.NAME]"]);
    let (_, called) = refusals(&montreal, "dallas", &dallas, &[]);
    says(&called, &["no peer is configured"]);

    let caller = run(connect(&montreal, "not a name", "127.0.0.1:1")).err().map(chain).unwrap();
    says(&caller, &["not a host's name"]);
}

#[test]
fn a_certificate_of_two_hosts_is_neither() {
    let ca = ca();
    let both = Host::new(&ca, &ca, params(&["a"]), params(&["*.example.org"]));
    let dallas = Host::good(&ca, "dallas");
    let (both, dallas) = (Identity::load(&both.tls).unwrap(), Identity::load(&dallas.tls).unwrap());
    let (caller, called) = refusals(&both, "dallas", &dallas, &["a.example.org", "b.example.org"]);
    says(&called, &["both a.example.org and b.example.org"]);
    says(&caller, &["more than one of its [peer.NAME]"]);
    let (_, called) = run(meet(&both, "dallas", &dallas, &["a.example.org"]));
    assert_eq!(called.unwrap().0, "a.example.org");
}

#[test]
fn expired_and_nameless_certificates_are_refused_by_either_side() {
    let ca = ca();
    let good = Host::good(&ca, "dallas");
    let good = Identity::load(&good.tls).unwrap();
    let old = Host::new(&ca, &ca, expired(params(&["montreal"])), expired(params(&["montreal"])));
    says(&old.load_error(), &["no peer would accept", "servercert.pem", "expired", "days ago"]);
    let (caller, called) = refusals(&old.unchecked(), "dallas", &good, &["montreal"]);
    says(&called, &["the certificate of the caller from", "expired", "days ago"]);
    says(&caller, &["peer dallas does not accept", "clientcert.pem", "certificate expired"]);
    let (caller, _) = refusals(&good, "montreal", &old.unchecked(), &["dallas"]);
    says(&caller, &["the certificate of peer montreal", "expired", "days ago"]);

    let nameless = Host::new(&ca, &ca, params(&[]), params(&[]));
    says(&nameless.load_error(), &["no peer would accept", "no subject alternative name", "dns_name"]);
    let (caller, called) = refusals(&nameless.unchecked(), "dallas", &good, &["montreal"]);
    says(&called, &["no subject alternative name"]);
    says(&caller, &["refuses this host"]);
    let (caller, _) = refusals(&good, "montreal", &nameless.unchecked(), &["dallas"]);
    says(&caller, &["the certificate of peer montreal", "no subject alternative name"]);
}

#[test]
fn a_caller_without_certificate_or_without_tls_is_refused() {
    let ca = ca();
    let dallas = Host::good(&ca, "dallas");
    let dallas = Identity::load(&dallas.tls).unwrap();
    let mut naked = dallas.clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider);
    let config = builder.with_protocol_versions(&[&rustls::version::TLS13]).unwrap().with_root_certificates(roots);
    naked.client = config.with_no_client_auth().into();
    let (caller, called) = refusals(&naked, "dallas", &dallas, &["dallas"]);
    says(&called, &["the certificate of the caller from", "it showed none"]);
    says(&caller, &["certificate required"]);

    let said = run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        plain.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        accept(&dallas, listener.accept().await.unwrap().0, &["dallas".into()]).await.err().map(chain).unwrap()
    });
    says(&said, &["the handshake with the caller from"]);
}

#[test]
fn a_silent_or_absent_peer_has_a_deadline() {
    let ca = ca();
    let dallas = Host::good(&ca, "dallas");
    let dallas = Identity::load(&dallas.tls).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let silent = TcpStream::connect(&address).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let allowed = ["dallas".to_owned()];
        // Nobody takes this call; the kernel's backlog does. Both wait at the same time.
        let (caller, called) =
            tokio::join!(connect(&dallas, "montreal", &address), accept(&dallas, accepted, &allowed));
        says(&chain(caller.err().unwrap()), &["montreal at 127.0.0.1:", "within 5 s"]);
        says(&chain(called.err().unwrap()), &["the caller from 127.0.0.1:", "within 5 s"]);
        drop((silent, listener));
        let absent = connect(&dallas, "montreal", &address).await.err().map(chain).unwrap();
        says(&absent, &["cannot reach peer montreal at 127.0.0.1:", "refused"]);
    });
}

#[test]
fn bad_files_are_named() {
    let ca = ca();
    let other = self::ca();
    let host = Host::good(&ca, "montreal");
    let load = |change: &dyn Fn(&mut Tls)| {
        let mut tls = host.tls.clone();
        change(&mut tls);
        chain(Identity::load(&tls).err().expect("it was accepted"))
    };
    let nothing = Path::new("/nonexistent/file.pem");
    says(&load(&|tls| tls.ca = nothing.into()), &["cannot read /nonexistent/file.pem", "[tls]", "No such file"]);
    says(&load(&|tls| tls.client_key = nothing.into()), &["cannot read /nonexistent/file.pem"]);
    says(&load(&|tls| tls.key = tls.cert.clone()), &["servercert.pem holds no private key"]);
    says(&load(&|tls| tls.client_cert = tls.client_key.clone()), &["clientkey.pem holds no certificate"]);
    let mismatch = load(&|tls| tls.client_key = tls.key.clone());
    says(&mismatch, &["serverkey.pem does not match", "clientcert.pem"]);
    let swapped = load(&|tls| {
        std::mem::swap(&mut tls.cert, &mut tls.client_cert);
        std::mem::swap(&mut tls.key, &mut tls.client_key);
    });
    says(&swapped, &["clientcert.pem", "not for this use", "tls_www_server"]);
    let foreign = Host::new(&other, &ca, params(&["montreal"]), params(&["montreal"]));
    says(&foreign.load_error(), &["servercert.pem", "cacert.pem", "unknown CA"]);
}
