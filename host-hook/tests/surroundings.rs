//! The service where it cannot work: it says what is in its way, and how to get it out.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use std::process::Command;

/// Starts the service in a mount namespace of its own, with its state on a file system that is mounted like this.
fn serve(options: &str) -> String {
    let place = std::env::temp_dir().join(format!("lsm-surroundings-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let config = place.with_extension("toml");
    std::fs::write(&config, "name = \"here\"\n").unwrap();
    let script = "mount -t tmpfs -o \"$1\" tmpfs \"$2\" && exec \"$3\" serve --config \"$4\" --directory \"$2\"";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", options]);
    command.arg(&place).arg(env!("CARGO_BIN_EXE_lsm-hook")).arg(&config);
    let output = command.output().unwrap();
    std::fs::remove_file(&config).unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_state_directory_that_is_read_only_or_full_is_named() {
    for (options, cause) in [("ro", "Read-only file system"), ("nr_inodes=1", "No space left on device")] {
        let said = serve(options);
        for words in ["lsm-hook: cannot keep state in ", cause, "see that it can be written and has room: df "] {
            assert!(said.contains(words), "{words}: {said}");
        }
    }
}

/// As libvirt would, with nobody at the service's socket.
#[test]
fn without_the_service_a_vm_starts_and_has_its_bridge() {
    let xml = "<domain><metadata><vm xmlns='urn:lsm:1'/></metadata><devices><interface type='bridge'><source bridge='lsm-spare'/></interface></devices></domain>";
    let script =
        "mount -t sysfs sysfs /sys && printf %s \"$1\" | \"$2\" hook vm prepare begin - && ip -o link show lsm-spare";
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "--net", "sh", "-c", script, "sh", xml]);
    let output = command.arg(env!("CARGO_BIN_EXE_lsm-hook")).output().unwrap();
    let (said, complaints) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complaints}");
    assert!(said.contains(": lsm-spare: <") && said.contains(",UP"), "{said} {complaints}");
    assert!(complaints.contains("goes on without LSM: cannot reach the host service"), "{complaints}");
}
