//! Debian's nginx, which knows nothing of Multipath TCP, made to speak it, in a VM that moves in the middle of a download by
//! a curl that knows nothing of it either.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    io::Read as _,
    net::IpAddr,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

use lsm_tests::{
    connections::address,
    needs,
    shell::wait_for,
    stage::{Stage, StageOptions, lacking},
    traffic::{Subflow, subflows},
};

const LIMIT: Duration = Duration::from_secs(60);
const NGINX: &str = "/usr/sbin/nginx";
const CURL: &str = "/usr/bin/curl";
const MPTCPIZE: &str = "/usr/bin/mptcpize";
/// Lines of the file that is served: each is the number of the line.
const LINES: usize = 1_000_000;
/// Of it, read before the VM moves.
const BEFORE: usize = 64 << 10;

/// A VM without Debian's directories, its users and its log.
const CONFIGURATION: &str = "daemon off; user root root; worker_processes 2; error_log stderr; pid /run/nginx.pid;
events {}
http {
    access_log off;
    client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
    server { listen 80; root /srv; }
}
";

/// `mptcpize run curl`, whose output waits in its pipe until it is read.
struct Download {
    curl: Child,
    page: ChildStdout,
    read: Vec<u8>,
}

impl Download {
    fn begin(stage: &Stage, from: IpAddr) -> Download {
        let client = stage.topology.ns("client");
        // Little of the page may be under way.
        client.sysctl(&[("net/ipv4/tcp_rmem", "4096 65536 262144")]).unwrap();
        let mut curl = client.command(MPTCPIZE);
        curl.args(["run", CURL, "--silent", "--show-error", "--no-buffer", &format!("http://{from}/numbers")]);
        let mut curl = curl.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let page = curl.stdout.take().unwrap();
        let mut download = Download { curl, page, read: vec![0; BEFORE] };
        download.page.read_exact(&mut download.read).unwrap();
        download
    }

    fn end(mut self) -> Vec<u8> {
        self.page.read_to_end(&mut self.read).unwrap();
        assert!(self.curl.wait().unwrap().success());
        self.read
    }
}

/// At the client: of connections to a web server.
fn web(stage: &Stage) -> Vec<Subflow> {
    let all = subflows(stage.topology.ns("client").command("ss")).unwrap();
    all.into_iter().filter(|subflow| subflow.remote.port() == 80).collect()
}

#[test]
fn nginx_moves_in_the_middle_of_a_download() {
    let remedy = "run tests/install --tests";
    if lacking() || needs::lacking(needs::missing(&[NGINX, CURL, MPTCPIZE], remedy)) {
        return;
    }
    let installed = vec![NGINX.to_owned()];
    let options = StageOptions { installed, policy: "switch = \"early\"".into(), ..StageOptions::default() };
    let stage = Stage::set(&options, |what| eprintln!("{what}")).unwrap();
    let cgroup = "/sys/fs/cgroup/system.slice/nginx.service";
    for command in [
        &format!("mkdir -p /srv /etc/lsm {cgroup}"),
        &format!("cat >/etc/nginx.conf <<'END'\n{CONFIGURATION}END"),
        "printf '[mptcp]\\nforce = [\"nginx.service\"]\\n' >/etc/lsm/guest.toml; lsm-guest force",
    ] {
        stage.guest.must(command).unwrap();
    }
    stage.guest.exec_within(&format!("seq 1 {LINES} >/srv/numbers"), LIMIT).unwrap();
    let serve = format!("echo 0 >{cgroup}/cgroup.procs; exec {NGINX} -e stderr -c /etc/nginx.conf");
    stage.guest.spawn("nginx", &serve).unwrap();
    let listening = || stage.guest.must("ss -HMln sport = :80").ok().filter(|said| said.contains(":80"));
    if let Err(error) = wait_for("nginx's Multipath TCP listener", LIMIT, listening) {
        panic!("{error}: {}", stage.guest.must("cat /var/log/nginx.log; ss -ltnp; lsm-guest force --status").unwrap());
    }

    let old = address(&stage).unwrap();
    let mut download = Download::begin(&stage, old);
    let before = web(&stage);
    assert!(before.len() == 1 && before[0].token.is_some() && before[0].remote.ip() == old, "{before:?}");
    stage.migrate("dallas").unwrap();
    stage.settled(LIMIT).unwrap();
    let new = address(&stage).unwrap();
    let after = web(&stage);
    let moved = |subflow: &Subflow| subflow.token == before[0].token && subflow.remote.ip() == new;
    assert!(!after.is_empty() && after.iter().all(moved), "{new}, {before:?}: {after:?}");
    assert!(download.curl.try_wait().unwrap().is_none(), "the page was read before the VM had moved");
    let page = download.end();
    let wanted: String = (1..=LINES).map(|line| format!("{line}\n")).collect();
    assert!(page == wanted.as_bytes(), "{} bytes of {}", page.len(), wanted.len());
    println!("nginx at {old} became {new} in the middle of a download of {} bytes, all right", page.len());
}
