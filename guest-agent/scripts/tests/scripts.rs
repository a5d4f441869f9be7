//! Scripts good and bad. As root only: what root alone may write cannot be made by anybody else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::PathBuf,
    time::{Duration, Instant},
};

use lsm_scripts::{DEADLINE, Outcome, Ran};

/// A directory for scripts, gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Option<Dir> {
        if !nix::unistd::geteuid().is_root() {
            let reason = "needs root: scripts must be root's";
            assert!(std::env::var_os("LSM_EXPECT_ALL").is_none_or(|value| value != "1"), "{reason}");
            eprintln!("skipped: {reason}");
            return None;
        }
        let path = std::env::temp_dir().join(format!("lsm-scripts-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Some(Dir(path))
    }

    fn script(&self, name: &str, body: &str, mode: u32) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn run(&self, variables: &[(&str, String)], deadline: Duration) -> Vec<Ran> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(lsm_scripts::run(&self.0, variables, deadline))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn outcomes(ran: &[Ran]) -> Vec<(&str, &Outcome)> {
    ran.iter().map(|ran| (ran.name.as_str(), &ran.outcome)).collect()
}

#[test]
fn scripts_run_in_order_of_name_with_their_variables_and_nothing_else() {
    let Some(dir) = Dir::new("order") else { return };
    let log = dir.0.join("log.txt");
    let say = |what: &str| format!("echo {what} >>{}", log.display());
    dir.script("20-second", &say("second $(env | grep -c LSM_) $HOME."), 0o755);
    dir.script("10-first", &say("first $LSM_NEW_ADDRESS"), 0o700);
    dir.script("30-fails", &format!("{}; exit 3", say("third")), 0o755);
    dir.script("40-not-executable", &say("wrong"), 0o644);
    for leftover in ["50-old~", ".60-hidden", "70-new.dpkg-dist", "80-new.rpmnew"] {
        dir.script(leftover, &say("wrong"), 0o755);
    }
    fs::create_dir(dir.0.join("90-directory")).unwrap();
    dir.script("99-last", &say("last"), 0o755);
    let variables = [("LSM_NEW_ADDRESS", "10.2.0.7".to_owned()), ("LSM_LAN", "dallas $(id)".to_owned())];
    let ran = dir.run(&variables, DEADLINE);
    let good = Outcome::Exited(0);
    let expected = [("10-first", &good), ("20-second", &good), ("30-fails", &Outcome::Exited(3)), ("99-last", &good)];
    assert_eq!(outcomes(&ran), expected);
    assert_eq!(fs::read_to_string(log).unwrap(), "first 10.2.0.7\nsecond 2 .\nthird\nlast\n");
    assert!(ran[2].to_string().starts_with("30-fails: exit status 3 after "), "{}", ran[2]);
}

#[test]
fn a_script_that_hangs_is_killed_with_what_it_started() {
    let Some(dir) = Dir::new("hangs") else { return };
    let pid = dir.0.join("pid.txt");
    dir.script("10-hangs", &format!("trap '' TERM INT HUP\nsleep 600 &\necho $! >{}\nwait", pid.display()), 0o755);
    dir.script("20-next", "exit 0", 0o755);
    let began = Instant::now();
    let ran = dir.run(&[], Duration::from_millis(500));
    assert!(began.elapsed() < Duration::from_secs(5), "{ran:?}");
    assert_eq!(outcomes(&ran), [("10-hangs", &Outcome::TooSlow), ("20-next", &Outcome::Exited(0))]);
    let child = fs::read_to_string(&pid).unwrap();
    let dead = || {
        let state = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        state.is_empty() || state.contains(") Z ")
    };
    let limit = Instant::now() + Duration::from_secs(5);
    while !dead() {
        assert!(Instant::now() < limit, "process {child} of the script lives on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_others_than_root_could_have_written_is_refused() {
    let Some(dir) = Dir::new("refused") else { return };
    let trace = dir.0.join("trace.txt");
    let touch = format!("touch {}", trace.display());
    dir.script("10-world-writable", &touch, 0o757);
    dir.script("20-group-writable", &touch, 0o775);
    chown(dir.script("30-somebody-s", &touch, 0o755), Some(1000), None).unwrap();
    symlink(dir.script("no-script", &touch, 0o644), dir.0.join("40-link")).unwrap();
    fs::write(dir.0.join("50-no-program"), "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(dir.0.join("50-no-program"), fs::Permissions::from_mode(0o755)).unwrap();
    dir.script("60-good", "exit 0", 0o755);
    let ran = dir.run(&[], DEADLINE);
    assert!(!trace.exists(), "one was run: {ran:?}");
    let said: Vec<String> = ran.iter().map(Ran::to_string).collect();
    for (at, words) in [
        (0, "10-world-writable: not run: others than root can write it (mode 0757)"),
        (1, "20-group-writable: not run: others than root can write it (mode 0775)"),
        (2, "30-somebody-s: not run: it belongs to user 1000"),
        (3, "40-link: not run: it is a symbolic link"),
        (4, "50-no-program: not run: cannot be started"),
    ] {
        assert!(said[at].starts_with(words), "{said:#?}");
    }
    assert_eq!(ran[5].outcome, Outcome::Exited(0));
}

#[test]
fn a_directory_that_others_can_write_is_refused_whole() {
    let Some(dir) = Dir::new("open") else { return };
    dir.script("10-good", "exit 0", 0o755);
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o777)).unwrap();
    let ran = dir.run(&[], DEADLINE);
    assert!(ran.len() == 1 && ran[0].to_string().contains("others than root can write it (mode 0777)"), "{ran:?}");
    fs::set_permissions(&dir.0, fs::Permissions::from_mode(0o755)).unwrap();
    chown(&dir.0, Some(1000), None).unwrap();
    let ran = dir.run(&[], DEADLINE);
    assert!(ran.len() == 1 && ran[0].to_string().contains("it belongs to user 1000"), "{ran:?}");
    let absent = Dir(dir.0.join("absent"));
    assert_eq!(absent.run(&[], DEADLINE), []);
}

/// The programs have a real-time priority; a script that spins must not.
#[test]
fn a_script_has_an_ordinary_priority() {
    let Some(dir) = Dir::new("priority") else { return };
    let policy = dir.0.join("policy.txt");
    dir.script("10-look", &format!("chrt -p $$ >{}", policy.display()), 0o755);
    let set = std::process::Command::new("chrt").args(["-r", "-p", "1", &nix::unistd::gettid().to_string()]).output();
    if !set.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no real-time priority here");
        return;
    }
    let ran = dir.run(&[], DEADLINE);
    assert_eq!(ran[0].outcome, Outcome::Exited(0));
    let policy = fs::read_to_string(policy).unwrap();
    assert!(policy.contains("SCHED_OTHER"), "{policy}");
}
