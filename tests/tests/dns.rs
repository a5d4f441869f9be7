//! The example that updates DNS after a switch, against Debian's BIND in a namespace.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lsm_scripts::{Outcome, Ran};
use lsm_tests::{
    needs,
    netns::Netns,
    shell::{Process, run, wait_for},
};

const SERVER: &str = "192.0.2.53";
const LIMIT: Duration = Duration::from_secs(20);

/// What is missing for a name server here. Where everything is expected (`LSM_EXPECT_ALL`), that is a failure.
fn lacking() -> bool {
    let needed = ["/usr/sbin/named", "/usr/sbin/tsig-keygen", "/usr/bin/nsupdate", "/usr/bin/dig"];
    needs::lacking(needs::missing(&needed, "run tests/install --tests"))
}

/// A name server for example.org, and the example with its settings, as an operator puts it into place.
struct Names {
    ns: Netns,
    server: Process,
    dir: PathBuf,
}

impl Names {
    fn new() -> Names {
        let name = format!("lsm-dns-{}", std::process::id());
        let ns = Netns::new(&name).unwrap();
        ns.ip(&format!("address add {SERVER}/32 dev lo\n")).unwrap();
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("moved.d")).unwrap();
        fs::set_permissions(dir.join("moved.d"), fs::Permissions::from_mode(0o755)).unwrap();
        let write = |file: &str, text: &str| fs::write(dir.join(file), text).unwrap();
        for key in ["lsm", "wrong"] {
            write(&format!("{key}.key"), &run(Command::new("tsig-keygen").args(["-a", "hmac-sha256", key])).unwrap());
        }
        // The other key is known, and may not.
        let path = dir.display();
        write(
            "named.conf",
            &format!(
                "include \"{path}/lsm.key\";\ninclude \"{path}/wrong.key\";\ncontrols {{}};\n\
                 options {{ directory \"{path}\"; listen-on {{ {SERVER}; }}; listen-on-v6 {{ none; }}; recursion no;\n\
                 pid-file none; session-keyfile none; dnssec-validation no; notify no; }};\n\
                 zone \"example.org\" {{ type primary; file \"zone\"; update-policy {{ grant lsm subdomain example.org A AAAA; }}; }};\n"
            ),
        );
        write(
            "zone",
            "$TTL 300\n@ SOA ns hostmaster 1 3600 600 86400 30\n@ NS ns\nns A 192.0.2.53\nvm 30 A 10.1.0.10\nvm 30 A 203.0.113.80\n",
        );
        let script = dir.join("moved.d/50-update-dns");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/examples/update-dns"), &script).unwrap();
        fs::set_permissions(script, fs::Permissions::from_mode(0o755)).unwrap();
        let mut named = ns.command("/usr/sbin/named");
        named.arg("-g").arg("-c").arg(dir.join("named.conf"));
        let server = Process::start("named", &mut named).unwrap();
        let names = Names { ns, server, dir };
        wait_for("the name server", LIMIT, || (names.addresses("A").len() == 2).then_some(())).unwrap();
        names
    }

    fn addresses(&self, kind: &str) -> Vec<String> {
        let at = format!("@{SERVER}");
        let asked = ["+short", "+time=1", "+tries=1", at.as_str(), "vm.example.org", kind];
        let answer = run(self.ns.command("dig").args(asked)).unwrap_or_default();
        let mut addresses: Vec<String> =
            answer.lines().filter(|line| !line.starts_with(';')).map(str::to_owned).collect();
        addresses.sort();
        addresses
    }

    /// `from` and `to`: an address, or one of each family.
    fn moved(&self, domain: &str, from: &str, to: &str, key: &str) -> Vec<Ran> {
        let conf = self.dir.join("dns.conf");
        let text = format!("SERVER={SERVER}\nZONE=example.org\nKEY={}/{key}.key\n", self.dir.display());
        fs::write(&conf, text).unwrap();
        let [from, to] = [from, to].map(|all| all.split(' ').map(|at| at.parse().unwrap()).collect::<Vec<_>>());
        let mut variables = lsm_scripts::addresses(&from, &to);
        variables.push(("LSM_DOMAIN", domain.to_owned()));
        variables.push(("LSM_DNS_CONF", conf.display().to_string()));
        let directory = self.dir.join("moved.d");
        let ran = self.ns.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(lsm_scripts::run(&directory, &variables, lsm_scripts::DEADLINE))
        });
        ran.unwrap()
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.server.kill();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn only(ran: &[Ran]) -> &Outcome {
    assert_eq!(ran.len(), 1, "{ran:?}");
    &ran[0].outcome
}

#[test]
fn the_name_follows_the_vm() {
    if lacking() {
        return;
    }
    let mut names = Names::new();
    let good = Outcome::Exited(0);
    // What else the name stands for stays; twice is as good as once.
    for _ in 0..2 {
        assert_eq!(only(&names.moved("vm", "10.1.0.10", "10.2.0.100", "lsm")), &good);
        assert_eq!(names.addresses("A"), ["10.2.0.100", "203.0.113.80"]);
    }
    assert_eq!(only(&names.moved("vm", "2001:db8:a::7", "2001:db8:b::7", "lsm")), &good);
    assert_eq!(names.addresses("AAAA"), ["2001:db8:b::7"]);
    // Both families at once, from a LAN that has but one.
    let both = "10.1.0.10 2001:db8:a::7";
    assert_eq!(only(&names.moved("vm", "10.2.0.100", both, "lsm")), &good);
    assert_eq!(names.addresses("AAAA"), ["2001:db8:a::7", "2001:db8:b::7"]);
    assert_eq!(names.addresses("A"), ["10.1.0.10", "203.0.113.80"]);

    // A key that may not, a name that is none, and a server that is gone: it fails, in words and in time.
    for (domain, key) in [("vm", "wrong"), ("vm\nupdate delete example.org", "lsm"), ("vm example.org", "lsm")] {
        let refused = names.moved(domain, "10.1.0.10", "10.2.0.100", key);
        assert!(matches!(only(&refused), Outcome::Exited(status) if *status != 0), "{domain:?}: {refused:?}");
        assert_eq!(names.addresses("A"), ["10.1.0.10", "203.0.113.80"]);
    }
    names.server.kill();
    let began = Instant::now();
    let unanswered = names.moved("vm", "10.1.0.10", "10.2.0.100", "lsm");
    assert!(matches!(only(&unanswered), Outcome::Exited(status) if *status != 0), "{unanswered:?}");
    assert!(began.elapsed() < lsm_scripts::DEADLINE, "{unanswered:?}");
}
