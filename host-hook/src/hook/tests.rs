use std::{
    os::unix::net::UnixListener,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use super::*;

const XML: &str = "<domain><metadata><lsm:vm xmlns:lsm='urn:lsm:1'/></metadata></domain>";
const HANDLED: [(&str, &str); 5] =
    [("migrate", "begin"), ("started", "begin"), ("reconnect", "begin"), ("stopped", "end"), ("release", "end")];

struct Said {
    exit: u8,
    output: String,
    errors: String,
}

fn hook(operation: &str, sub: &str, xml: &[u8], socket: &Path, deadline: Duration) -> Said {
    let args: Vec<OsString> = ["edge", operation, sub, "-"].map(Into::into).into();
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let exit = call(&args, &mut &*xml, &mut output, &mut errors, socket, Some(deadline));
    Said { exit, output: String::from_utf8(output).unwrap(), errors: String::from_utf8(errors).unwrap() }
}

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(50);

fn socket_path() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("lsm-hook-{}-{n}.sock", std::process::id()))
}

/// A service that takes one call on the tokio side, as the real one does.
fn service(answer: HookAnswer) -> (PathBuf, thread::JoinHandle<HookRequest>) {
    let path = socket_path();
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let thread = thread::spawn({
        let path = path.clone();
        move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let listener = tokio::net::UnixListener::from_std(listener).unwrap();
                let (mut stream, _) = tokio::time::timeout(LONG, listener.accept()).await.unwrap().unwrap();
                let request = read_request(&mut stream).await.unwrap();
                write_answer(&mut stream, &answer).await.unwrap();
                std::fs::remove_file(path).unwrap();
                request
            })
        }
    });
    (path, thread)
}

/// A reader that must not be read.
struct Untouched;

impl Read for Untouched {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("standard input was read")
    }
}

#[test]
fn other_operations_and_other_vms_never_reach_the_service() {
    let nowhere = PathBuf::from("/nonexistent/hook.sock");
    for (operation, sub) in [("start", "begin"), ("migrate", "end"), ("", "")] {
        let args = [operation, operation, sub].map(OsString::from);
        assert_eq!(call(&args, &mut Untouched, &mut Vec::new(), &mut Vec::new(), &nowhere, None), 0);
    }
    assert_eq!(call(&[], &mut Untouched, &mut Vec::new(), &mut Vec::new(), &nowhere, None), 0);
    for (operation, sub) in HANDLED {
        let said = hook(operation, sub, b"<domain><name>other</name></domain>", &nowhere, LONG);
        assert_eq!((said.exit, said.output.as_str(), said.errors.as_str()), (0, "", ""));
    }
}

#[test]
fn the_service_sees_the_call_and_the_operator_its_answer() {
    for (operation, sub) in HANDLED {
        let told = HookAnswer { exit: 0, stdout: "<domain/>".into(), stderr: "mind this\n".into() };
        let (path, service) = service(told);
        let said = hook(operation, sub, XML.as_bytes(), &path, LONG);
        let request = service.join().unwrap();
        assert_eq!((request.vm.as_str(), request.extra.as_str(), request.xml.as_str()), ("edge", "-", XML));
        assert_eq!((request.operation.as_str(), request.sub.as_str()), (operation, sub));
        let xml = if operation == "migrate" { "<domain/>" } else { "" };
        assert_eq!((said.exit, said.output.as_str(), said.errors.as_str()), (0, xml, "mind this\n"));
    }
}

#[test]
fn a_refusal_is_passed_on_for_a_migration_alone() {
    for (operation, sub) in HANDLED {
        let told = HookAnswer { exit: 3, stdout: "<domain/>".into(), stderr: "no\n".into() };
        let (path, service) = service(told);
        let said = hook(operation, sub, XML.as_bytes(), &path, LONG);
        service.join().unwrap();
        let exit = if operation == "migrate" { 3 } else { 0 };
        assert_eq!((said.exit, said.output.as_str(), said.errors.as_str()), (exit, "", "no\n"), "{operation}");
    }
}

/// Only `migrate begin` may fail where nobody answers.
fn expect_no_answer(socket: &Path, xml: &[u8], deadline: Duration, words: &str) {
    for (operation, sub) in HANDLED {
        let said = hook(operation, sub, xml, socket, deadline);
        assert_eq!(said.exit, u8::from(operation == "migrate"), "{operation}: {}", said.errors);
        assert!(said.errors.contains(words) && said.errors.contains("edge"), "{operation}: {}", said.errors);
        assert_eq!(said.errors.lines().count(), 1, "one sentence: {}", said.errors);
        assert!(said.output.is_empty());
    }
}

#[test]
fn without_a_service_only_migrate_fails() {
    expect_no_answer(Path::new("/nonexistent/hook.sock"), XML.as_bytes(), LONG, "cannot reach the host service");
    let said = hook("migrate", "begin", XML.as_bytes(), Path::new("/nonexistent/hook.sock"), LONG);
    assert!(said.errors.contains("systemctl start lsm-hook.socket"), "{}", said.errors);
}

#[test]
fn a_service_that_hangs_or_dies_only_fails_migrate() {
    let path = socket_path();
    // Never accepts: the kernel's backlog takes the call.
    let listener = UnixListener::bind(&path).unwrap();
    expect_no_answer(&path, XML.as_bytes(), SHORT, "did not answer within 0.05 s");
    drop(listener);
    expect_no_answer(&path, XML.as_bytes(), LONG, "cannot reach the host service");
    std::fs::remove_file(&path).unwrap();

    let listener = UnixListener::bind(&path).unwrap();
    let closes_at_once = thread::spawn(move || {
        for _ in HANDLED {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 8]).unwrap();
        }
    });
    expect_no_answer(&path, XML.as_bytes(), LONG, "gave no answer");
    closes_at_once.join().unwrap();
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_full_backlog_is_a_service_that_does_not_answer() {
    let path = socket_path();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _first = UnixStream::connect(&path).unwrap();
    expect_no_answer(&path, XML.as_bytes(), SHORT, "did not answer within 0.05 s");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn what_is_not_a_description_is_refused() {
    let nowhere = Path::new("/nonexistent/hook.sock");
    expect_no_answer(nowhere, b"urn:lsm:1 \xff", LONG, "not UTF-8");
    expect_no_answer(nowhere, &vec![b'x'; LONGEST + 1], LONG, "longer than 16777216 bytes");
}

/// A tool whose script runs before ours prints what libvirt then gives to us.
#[test]
fn what_another_script_has_made_of_the_description_keeps_no_vm_from_starting() {
    let nobody = Path::new("/nonexistent/hook.sock");
    let cut = &XML.as_bytes()[..XML.len() / 2];
    let not_utf8 = [XML.as_bytes(), &[0xff, 0xfe]].concat();
    for broken in [cut, &not_utf8, b"urn:lsm:1", b"Traceback (most recent call last):\n"] {
        for (operation, sub) in HANDLED.into_iter().filter(|(operation, _)| *operation != "migrate") {
            let said = hook(operation, sub, broken, nobody, LONG);
            assert_eq!((said.exit, said.output.as_str()), (0, ""), "{operation}: {}", said.errors);
        }
    }
    let said = hook("migrate", "begin", &not_utf8, nobody, LONG);
    assert_eq!(said.exit, 1);
    assert!(said.errors.contains("not UTF-8") && said.errors.contains("virsh dumpxml"), "{}", said.errors);
}
