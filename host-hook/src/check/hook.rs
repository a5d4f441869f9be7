//! Whether libvirt is one that calls us, and we answer.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use lsm_protocol::finding::Finding;

use crate::{hook, libvirt::command::virsh};

/// The first that runs what is in `qemu.d`.
const LEAST: (u32, u32) = (6, 5);
const LINK: &str = "ln -s /usr/sbin/lsm-hook /etc/libvirt/hooks/qemu.d/lsm && systemctl restart libvirtd";
/// A running VM does not notice.
const RESTART: &str = "systemctl restart libvirtd  # or virtqemud; running VMs run on";

pub(super) fn libvirt() -> Finding {
    match virsh(&["version"]) {
        Ok(said) => version(&said),
        Err(why) => Finding::bad("libvirt", why, "systemctl start libvirtd"),
    }
}

fn version(said: &str) -> Finding {
    let of = |what: &str| {
        said.lines().find_map(|line| line.strip_prefix(what)?.rsplit_once(' ').map(|(_, version)| version.to_owned()))
    };
    let (library, emulator) = (of("Using library:").unwrap_or_default(), of("Running hypervisor:").unwrap_or_default());
    let mut numbers = library.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) < LEAST {
        let found = format!("libvirt {library} does not run hooks in qemu.d; 6.5 and later do");
        return Finding::bad("libvirt", found, "virsh version --daemon  # upgrade libvirt");
    }
    Finding::good("libvirt", format!("libvirt {library}, QEMU {emulator}"))
}

/// Whether libvirt finds us, and who is asked before us. `hooks`: where its hooks are.
pub(super) fn called(hooks: &Path, proc: &Path) -> Vec<Finding> {
    let mut all: Vec<PathBuf> = files(&hooks.join("qemu.d"));
    all.sort();
    let Some(at) = all.iter().position(|path| is_ours(path)) else {
        let found = format!("libvirt finds no lsm-hook in {}", hooks.join("qemu.d").display());
        return vec![Finding::bad("hook", found, LINK)];
    };
    let ours = &all[at];
    if !fs::metadata(ours).is_ok_and(|file| file.permissions().mode() & 0o111 != 0) {
        let fix = format!("chmod +x {}", ours.display());
        return vec![Finding::bad("hook", format!("{} cannot be run", ours.display()), fix)];
    }
    // Each gets what the one before it has printed.
    let script = hooks.join("qemu");
    let before: Vec<&PathBuf> = Some(&script).filter(|script| script.exists()).into_iter().chain(&all[..at]).collect();
    let mut findings = vec![noticed(&all, &script, ours, proc)];
    if !before.is_empty() {
        let names = before.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
        let found = format!("{names} runs first: what it prints as a VM's description is what LSM reads");
        findings.push(Finding::good("other hooks", found));
    }
    findings
}

/// libvirt looks once, at its start, whether there is any hook for QEMU (`virHookInitialize`); then at each call.
fn noticed(all: &[PathBuf], script: &Path, ours: &Path, proc: &Path) -> Finding {
    let made = |path: &Path| path.symlink_metadata().map_or(i64::MAX, |file| file.ctime());
    let first = all.iter().map(PathBuf::as_path).chain([script]).map(made).min().unwrap_or(i64::MAX);
    let found = format!("libvirt calls {}", ours.display());
    match started(proc) {
        Some((daemon, at)) if at < first => Finding::bad(
            "hook",
            format!("{daemon} started before {} was there, and does not call it", ours.display()),
            RESTART,
        ),
        Some(_) => Finding::good("hook", found),
        None => Finding::good("hook", format!("{found}, when it runs next")),
    }
}

/// Which of libvirt's daemons runs, and its directory in /proc.
pub(super) fn daemon(proc: &Path) -> Option<(String, PathBuf)> {
    daemons(proc).next()
}

fn daemons(proc: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    fs::read_dir(proc).into_iter().flatten().flatten().filter_map(|process| {
        let name = fs::read_to_string(process.path().join("comm")).ok()?.trim().to_owned();
        matches!(name.as_str(), "libvirtd" | "virtqemud").then(|| (name, process.path()))
    })
}

/// Which of libvirt's daemons runs, and since when, in seconds since 1970.
fn started(proc: &Path) -> Option<(String, i64)> {
    let boot: i64 = fs::read_to_string(proc.join("stat"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok())?;
    daemons(proc)
        .filter_map(|(name, process)| {
            let stat = fs::read_to_string(process.join("stat")).ok()?;
            // The 22nd field, counted from the end of the name, in hundredths (proc_pid_stat(5)). Rounded up: a hook
            // made in the same second is taken for older.
            let ticks: i64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
            Some((name, boot + ticks / 100 + 1))
        })
        .max_by_key(|(_, at)| *at)
}

fn files(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A link to this program, or a copy of it: by the name lsm-hook it would not know that libvirt calls.
fn is_ours(path: &Path) -> bool {
    let named = |path: &Path| path.file_name().is_some_and(|name| name == "lsm-hook");
    let linked = fs::canonicalize(path).is_ok_and(|target| named(&target));
    let copied = || {
        let same_length = |own: &PathBuf| Some(fs::metadata(own).ok()?.len() == fs::metadata(path).ok()?.len());
        let own = std::env::current_exe().ok().filter(|own| same_length(own) == Some(true))?;
        Some(fs::read(own).ok()? == fs::read(path).ok()?)
    };
    !named(path) && (linked || copied() == Some(true))
}

pub(super) fn service() -> Finding {
    match hook::ask("status", "") {
        Ok(_) => Finding::good("service", "answers"),
        Err(why) => Finding::bad("service", why, "systemctl enable --now lsm-hook.socket"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use lsm_protocol::finding::Verdict;

    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let place = std::env::temp_dir().join(format!("lsm-check-{name}-{}", std::process::id()));
            fs::create_dir_all(place.join("hooks/qemu.d")).unwrap();
            fs::create_dir_all(place.join("proc/7")).unwrap();
            Place(place)
        }

        fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.0.join(path);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        }

        /// libvirtd runs since so many seconds after 1970.
        fn libvirtd(&self, since: i64) {
            self.write("proc/stat", "cpu 1 2\nbtime 1000\n");
            self.write("proc/7/comm", "libvirtd\n");
            let ticks = (since - 1000) * 100;
            self.write("proc/7/stat", &format!("7 (lib) virtd) S{} {ticks} 5", " 0".repeat(18)));
        }

        fn called(&self) -> Vec<Finding> {
            called(&self.0.join("hooks"), &self.0.join("proc"))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_hook_is_found_and_known_to_the_running_libvirt() {
        let place = Place::new("hook");
        place.write("hooks/qemu.d/lsm-hook", "not by this name");
        let missing = &place.called()[0];
        assert_eq!((missing.verdict, missing.fix.as_deref()), (Verdict::Bad, Some(LINK)));

        let program = place.write("lsm-hook", "");
        symlink(&program, place.0.join("hooks/qemu.d/lsm")).unwrap();
        fs::remove_file(place.0.join("hooks/qemu.d/lsm-hook")).unwrap();
        assert!(place.called()[0].found.ends_with("when it runs next"));
        place.libvirtd(2000);
        let early = &place.called()[0];
        assert_eq!((early.verdict, early.fix.as_deref()), (Verdict::Bad, Some(RESTART)), "{early:?}");
        place.libvirtd(i64::from(u32::MAX));
        assert_eq!(place.called()[0].verdict, Verdict::Good);
        assert_eq!(place.called().len(), 1);

        fs::set_permissions(&program, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(place.called()[0].found.ends_with("cannot be run"));
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        place.write("hooks/qemu.d/10-other", "");
        place.write("hooks/qemu.d/z", "");
        let others = place.called();
        assert!(others[1].found.contains("10-other runs first") && !others[1].found.contains("/z"), "{:?}", others[1]);
    }

    #[test]
    fn an_old_libvirt_is_told_from_one_that_calls() {
        let said = |library: &str| {
            format!(
                "Compiled against library: libvirt 9.0.0\nUsing library: libvirt {library}\nUsing API: QEMU 9.0.0\nRunning hypervisor: QEMU 10.0.2\n"
            )
        };
        assert_eq!(version(&said("9.0.0")), Finding::good("libvirt", "libvirt 9.0.0, QEMU 10.0.2"));
        assert_eq!(version(&said("6.5.0")).verdict, Verdict::Good);
        assert_eq!(version(&said("6.4.0")).verdict, Verdict::Bad);
    }
}
