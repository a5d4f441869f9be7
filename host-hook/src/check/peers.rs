//! This host's certificates, and whether the other hosts take its calls.

use std::time::Duration;

use lsm_protocol::finding::Finding;

use crate::{
    config::Config,
    peer::{self, Identity, PeerError},
    peer_line, story,
};

/// Time to issue another.
const SOON: Duration = Duration::from_secs(30 * 24 * 3600);

pub(super) fn certificates(config: &Config) -> Vec<Finding> {
    let what = "certificates";
    if let Err(error) = Identity::load(&config.tls) {
        return vec![Finding::bad(what, story(&error), repair(config, &error))];
    }
    let mut findings = Vec::new();
    if let Err(error) = Identity::good_for(&config.tls, SOON) {
        let found = format!("in 30 days: {}", story(&error));
        findings.push(Finding::warning(what, found, repair(config, &error)));
    }
    let names = Identity::names(&config.tls);
    if !config.peers.is_empty() && !names.contains(&config.name) {
        let found = format!(
            "are for {}, and this host is {} in host.toml: peers must call it by a name of the certificate",
            names.join(", "),
            config.name
        );
        findings.push(Finding::warning(
            what,
            found,
            format!(
                "sed -i 's/^#*name = .*/name = \"{}\"/' /etc/lsm/host.toml",
                names.first().map_or("", String::as_str)
            ),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::good(what, format!("in order, for {}", names.join(", "))));
    }
    findings
}

/// certtool is what libvirt's own guide uses (libvirt.org/kbase/tlscerts.html).
fn repair(config: &Config, error: &PeerError) -> String {
    let issue = |file: &std::path::Path| {
        let (key, role) = if file == config.tls.client_cert {
            (&config.tls.client_key, "tls_www_client")
        } else {
            (&config.tls.key, "tls_www_server")
        };
        format!(
            "printf 'cn = {name}\\ndns_name = {name}\\nexpiration_days = 730\\n{role}\\nsigning_key\\nencryption_key\\n' >/tmp/template && certtool --generate-certificate --template /tmp/template --load-privkey {} --load-ca-certificate {} --load-ca-privkey CA_KEY --outfile {}  # where the CA's key is",
            key.display(),
            config.tls.ca.display(),
            file.display(),
            name = config.name,
        )
    };
    match error {
        PeerError::Unfit { file, .. } => issue(file),
        PeerError::KeyMismatch { certificate, .. } => issue(certificate),
        PeerError::Unreadable { file, .. } | PeerError::NotPem { file, .. } => format!(
            "ls -l {}  # put it there (https://libvirt.org/kbase/tlscerts.html), or set its path under [tls]",
            file.display()
        ),
        _ => "editor /etc/lsm/host.toml".to_owned(),
    }
}

/// Calls each peer as a migration would.
pub(super) fn reachable(config: &Config) -> Vec<Finding> {
    let Ok(identity) = Identity::load(&config.tls) else { return Vec::new() };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let calls = config.peers.iter().map(|(name, peer)| {
        let identity = &identity;
        async move {
            let what = format!("peer {name}");
            match peer::connect(identity, name, &peer.address).await {
                Ok(channel) => match peer_line::greet(channel).await {
                    Ok(line) => {
                        line.close().await;
                        Finding::good(what, format!("{} answers, and takes this host's calls", peer.address))
                    }
                    Err(error) => Finding::bad(what, story(&error), format!("ssh {name} systemctl status lsm-hook")),
                },
                Err(error) => {
                    let fix = way_out(name, &config.name, &error);
                    Finding::bad(what, story(&error), fix)
                }
            }
        }
    });
    runtime.block_on(futures_util::future::join_all(calls))
}

fn way_out(peer: &str, own: &str, error: &PeerError) -> String {
    match error {
        PeerError::NotWelcome { .. } => format!(
            "ssh {peer} \"printf '[peer.\\\"{own}\\\"]\\naddress = \\\"{own}:16519\\\"\\n' >>/etc/lsm/host.toml && systemctl restart lsm-hook\""
        ),
        PeerError::Unreachable { .. } | PeerError::Silent { .. } => {
            format!("ssh {peer} systemctl enable --now lsm-hook.socket  # and let TCP 16519 through its firewall")
        }
        PeerError::Rejected { .. } | PeerError::Refused { .. } => format!("ssh {peer} lsm-hook check"),
        _ => format!("ssh {peer} systemctl status lsm-hook"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bad_file_has_a_line_that_makes_it_anew() {
        let file = std::env::temp_dir().join(format!("lsm-check-peers-{}", std::process::id()));
        std::fs::write(&file, "name = \"here.example.org\"\n").unwrap();
        let config = Config::load(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        let unfit = |file: &std::path::Path| {
            let error = PeerError::Unfit { file: file.to_owned(), ca: config.tls.ca.clone(), why: String::new() };
            repair(&config, &error)
        };
        let (called, calling) = (unfit(&config.tls.cert), unfit(&config.tls.client_cert));
        for (line, role, key, file) in [
            (called, "tls_www_server", &config.tls.key, &config.tls.cert),
            (calling, "tls_www_client", &config.tls.client_key, &config.tls.client_cert),
        ] {
            for words in ["dns_name = here.example.org", role, &key.display().to_string()] {
                assert!(line.contains(words), "{words}: {line}");
            }
            assert!(line.contains(&format!("--outfile {} ", file.display())), "{line}");
        }
        let gone = PeerError::Unreadable { file: config.tls.ca.clone(), cause: std::io::ErrorKind::NotFound.into() };
        assert!(repair(&config, &gone).starts_with("ls -l /etc/pki/CA/cacert.pem"));
        let stranger = PeerError::NotWelcome { peer: "there".into(), why: String::new() };
        let line = way_out("there", "here", &stranger);
        assert!(line.starts_with("ssh there ") && line.contains("[peer.\\\"here\\\"]"), "{line}");
    }
}
