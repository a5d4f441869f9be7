//! Nothing is left behind, however the lab ends: a shell outside the lab's process group knows what must go, and
//! removes it when its pipe from the lab closes (which the kernel does even after SIGKILL).

use std::{
    fmt::Write as _,
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
};

/// Lines on its input: `keep KIND WHAT` and `forget KIND WHAT`. What is still kept at the end is removed, last first.
/// A process is known by its id and its start time, so that a reused id is not killed.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
declare -A kept
order=()
born() { local stat; born=; read -r stat 2>/dev/null <"/proc/$1/stat" || return; stat=(${stat##*) }); born=${stat[19]}; }
while read -r verb kind what; do
    case $verb in
        keep) born=; [ "$kind" != pid ] || born "$what"; kept["$kind $what"]=x$born; order+=("$kind $what") ;;
        forget) unset "kept[$kind $what]" ;;
    esac
done
for ((i = ${#order[@]} - 1; i >= 0; i--)); do
    item=${order[i]}
    [ -n "${kept[$item]}" ] || continue
    what=${item#* }
    case $item in
        pid\ *) born "$what"; [ -n "$born" ] && [ "${kept[$item]}" = "x$born" ] && kill -KILL "$what" ;;
        netns\ *) ip netns delete "$what" ;;
        # What was just killed may still write for a moment.
        dir\ *) for try in {1..50}; do rm -rf --one-file-system "$what"; [ -e "$what" ] || break; sleep 0.1; done ;;
    esac
done 2>/dev/null
"#;

static KEEPER: OnceLock<Option<Mutex<Child>>> = OnceLock::new();

/// From now on `what` is removed when this process ends.
pub(crate) fn keep(kind: &str, what: &str) {
    tell("keep", kind, what);
}

/// `what` is gone already.
pub(crate) fn forget(kind: &str, what: &str) {
    tell("forget", kind, what);
}

fn tell(verb: &str, kind: &str, what: &str) {
    let keeper = KEEPER.get_or_init(|| {
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT, "lsm-lab-keeper"]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().ok().map(Mutex::new)
    });
    // Without a keeper the guards' own Drop still cleans up after everything but a crash.
    let Some(keeper) = keeper else { return };
    let Ok(mut keeper) = keeper.lock() else { return };
    let mut line = String::new();
    let _ = writeln!(line, "{verb} {kind} {what}");
    if let Some(stdin) = keeper.stdin.as_mut() {
        let _ = stdin.write_all(line.as_bytes());
    }
}
