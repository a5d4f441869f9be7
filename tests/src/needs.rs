//! What a test needs of this machine: where it is missing the test is skipped, and fails where everything is expected
//! (`LSM_EXPECT_ALL`).

use std::path::Path;

/// Whether the test is to be skipped for this.
///
/// # Panics
/// Something is missing and `LSM_EXPECT_ALL` is set.
#[must_use]
pub fn lacking(missing: Option<String>) -> bool {
    let Some(missing) = missing else { return false };
    assert!(std::env::var_os("LSM_EXPECT_ALL").is_none(), "{missing}, and LSM_EXPECT_ALL is set");
    eprintln!("skipped: {missing}");
    true
}

/// What keeps a test from working as root with these files; `remedy` brings them.
#[must_use]
pub fn missing(files: &[&str], remedy: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root".to_owned());
    }
    files.iter().find(|path| !Path::new(path).exists()).map(|path| format!("no {path}; {remedy}"))
}

/// The same for Multipath TCP in this machine's kernel.
#[must_use]
pub fn missing_mptcp() -> Option<String> {
    missing(&["/proc/sys/net/mptcp"], "this kernel has no MPTCP")
}
