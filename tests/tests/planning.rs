//! What `lsm-hook estimate` says before a move, beside the move.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail the test")]

use lsm_tests::{
    planning::{Compared, Load, compare, load, stage},
    stage::{Stage, lacking},
};

/// The bench does the same over more of rates and loads (`tests/bench --only planning`).
#[test]
fn the_time_of_a_move_is_known_before_it() {
    if lacking() {
        return;
    }
    let stage = stage().unwrap();
    for (writes, rate) in [(Load { mib: 48, per_second: 6 }, 12), (Load { mib: 32, per_second: 12 }, 24)] {
        load(&stage, writes).unwrap();
        let compared = compare(&stage, rate).unwrap();
        let Compared { predicted, seconds, .. } = compared;
        let off = predicted.unwrap() / seconds - 1.0;
        eprintln!("{writes:?} at {rate} MiB/s: {compared:?}, {:.0} % off", off * 100.0);
        assert!(off.abs() < 0.25, "{compared:?}");
    }
}

fn refused(stage: &Stage, site: &str, arguments: &[&str]) -> String {
    let arguments: Vec<&str> = ["estimate"].iter().chain(arguments).copied().collect();
    stage.lsm_hook(site, &arguments).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_estimated() {
    if lacking() {
        return;
    }
    let mut stage = stage().unwrap();
    let says = |refusal: String, words: &[&str]| {
        eprintln!("{refusal}");
        assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");
    };
    says(refused(&stage, "montreal", &["vm", "--to", "paris"]), &["[peer.paris]", "knows dallas"]);
    says(refused(&stage, "montreal", &["other", "--to", "dallas"]), &["no VM other here", "virsh list"]);
    says(refused(&stage, "montreal", &["vm", "--to", "dallas", "--rate", "quick"]), &["number of Mbit/s"]);
    says(refused(&stage, "montreal", &["vm", "--to", "dallas", "--rate", "-5"]), &["--rate"]);

    // A VM that is paused has an estimate: nothing writes.
    stage.site("montreal").virsh(&["suspend", "vm"]).unwrap();
    let text = stage.lsm_hook("montreal", &["estimate", "vm", "--to", "dallas"]).unwrap();
    eprintln!("{text}");
    for words in [
        "writes       0 MiB differ",
        "it is paused",
        "the speed of wan",
        "virsh migrate --live vm qemu+tls://dallas/system",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    stage.site("montreal").virsh(&["resume", "vm"]).unwrap();

    stage.stop_service("dallas");
    says(refused(&stage, "montreal", &["vm", "--to", "dallas", "--rate", "100"]), &["dallas", "refused"]);
    stage.restart_service("dallas").unwrap();

    // A QEMU without the command, as far as libvirt can tell.
    let virsh = stage.site("montreal").dir().join("virsh");
    std::fs::write(&virsh, "#!/bin/sh\ncase \"$*\" in *domdirtyrate-calc*) echo \"error: unknown command: 'domdirtyrate-calc'\" >&2; exit 1;; esac\nexec /usr/bin/virsh \"$@\"\n").unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&virsh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/bin:/bin", stage.site("montreal").dir().display());
    let mut hook = stage.site("montreal").command("env");
    hook.arg(format!("PATH={path}")).arg(stage.hook()).args(["estimate", "vm", "--to", "dallas", "--rate", "100"]);
    let said = lsm_tests::shell::run(&mut hook).unwrap_err().to_string();
    says(said, &["how fast VM vm writes", "libvirt 7.2"]);

    let definition = stage.site("montreal").virsh(&["dumpxml", "vm"]).unwrap();
    stage.site("montreal").virsh(&["destroy", "vm"]).unwrap();
    let file = stage.site("montreal").dir().join("off.xml");
    std::fs::write(&file, definition).unwrap();
    stage.site("montreal").virsh(&["define".as_ref(), file.as_os_str()]).unwrap();
    says(refused(&stage, "montreal", &["vm", "--to", "dallas"]), &["VM vm is off", "--offline"]);
}
