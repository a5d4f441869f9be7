//! Where the kernel cannot make programs speak Multipath TCP: Debian's own unit of nginx, with a drop-in for mptcpize, under a
//! real systemd.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::fs;

use lsm_tests::{container::Container, image::static_program, needs};

const NEEDED: [&str; 4] = ["/usr/sbin/nginx", "/usr/bin/curl", "/usr/bin/mptcpize", "/usr/bin/systemd-nspawn"];

/// What is done where systemd is: the first line that fails ends it.
const ASK: &str = r#"set -ex; exec >/lab/said 2>&1
ip link set lo up
kind() { ss -HMln 'sport = :80' | grep -q :80 && echo "nginx speaks $1 with Multipath TCP" || echo "nginx speaks $1 with TCP"; }
systemctl start nginx.service
kind before
lsm-guest force --dropin nginx.service
systemctl daemon-reload
systemctl restart nginx.service
kind after
mptcpize run curl --silent --show-error --max-time 20 --output /lab/page http://127.0.0.1/ &
wait $!
ss -HMtin | head
rm /etc/systemd/system/nginx.service.d/lsm-mptcp.conf
systemctl daemon-reload
systemctl restart nginx.service
kind again
echo all was done
"#;

#[test]
fn a_drop_in_for_debian_s_own_unit() {
    if needs::lacking(needs::missing(&NEEDED, "run tests/install --tests").or_else(needs::missing_mptcp)) {
        return;
    }
    let mut container = Container::new("lsm-dropin").unwrap();
    container.bind(&static_program("lsm-guest", "lsm-guest").unwrap(), "/usr/sbin/lsm-guest");
    let ran = container.run("", ASK);
    let said = container.said("said");
    assert!(ran.is_ok(), "{ran:?}: {said}");
    for words in ["before with TCP", "after with Multipath TCP", "again with TCP"] {
        assert!(said.contains(&format!("nginx speaks {words}\n")), "{words}: {said}");
    }
    assert!(said.ends_with("all was done\n"), "{said}");
    let page = fs::read_to_string(container.lab().join("page")).unwrap();
    assert!(page.contains("Welcome to nginx!"), "{page}");
}
