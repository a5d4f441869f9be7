//! What libvirt runs: `/etc/libvirt/hooks/qemu.d/lsm VM OPERATION SUB-OPERATION EXTRA`, the VM's XML on standard input.
//!
//! It decides nothing. A VM without LSM metadata costs a search in its XML; for the others the host service is asked
//! over a Unix socket. A process of its own for each call: blocking, no runtime, nothing logged (the XML can hold
//! passwords), and nothing on standard output but a changed XML.
//!
//! When the service does not answer, only `migrate begin` fails: nothing has moved yet, and the operator reads why.
//! The others never fail, whatever the service says: a VM would not start, and at `reconnect` be killed.

mod spare;
mod wire;

use std::{
    error::Error,
    ffi::OsString,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

pub(crate) use self::wire::read;
pub use self::wire::{HookAnswer, HookRequest, WireError, read_request, write_answer};
use crate::domain::has_metadata;

/// Where the host service listens.
pub const SOCKET: &str = "/run/lsm/hook.sock";
/// Names another socket, for tests.
pub const SOCKET_VARIABLE: &str = "LSM_HOOK_SOCKET";
/// The longest XML, request or answer, in bytes. A VM with hundreds of devices has 1 MiB.
pub const LONGEST: usize = 16 << 20;

/// What the service is told of. Everything else of libvirt's is none of LSM's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    MigrateBegin,
    PrepareBegin,
    StartedBegin,
    ReconnectBegin,
    StoppedEnd,
    ReleaseEnd,
}

impl Operation {
    fn of(operation: &str, sub: &str) -> Option<Self> {
        match (operation, sub) {
            ("migrate", "begin") => Some(Self::MigrateBegin),
            ("prepare", "begin") => Some(Self::PrepareBegin),
            ("started", "begin") => Some(Self::StartedBegin),
            ("reconnect", "begin") => Some(Self::ReconnectBegin),
            ("stopped", "end") => Some(Self::StoppedEnd),
            ("release", "end") => Some(Self::ReleaseEnd),
            _ => None,
        }
    }

    /// A backstop for a service that hangs; it has shorter deadlines of its own. libvirt holds its lock on the VM
    /// meanwhile and would wait without limit.
    fn deadline(self) -> Duration {
        match self {
            Self::MigrateBegin => {
                crate::admission::LONGEST + crate::config::Policy::LONGEST_PREPARE_WAIT + Duration::from_secs(5)
            }
            // Enough for a service that socket activation has to start first.
            _ => Duration::from_secs(5),
        }
    }
}

/// Why the service gave no answer.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("cannot read the VM's description from standard input")]
    Input(#[source] io::Error),
    #[error("the VM's description is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the VM's description is not UTF-8")]
    NotUtf8,
    #[error("cannot reach the host service at {}", path.display())]
    Unreachable {
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    #[error("the host service did not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("the host service gave no answer")]
    Broken(#[source] WireError),
}

impl HookError {
    /// The whole story on one line, and the way out.
    fn told(&self) -> String {
        let mut story = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            story = format!("{story}: {error}");
            cause = error.source();
        }
        let way_out = match self {
            Self::Input(_) | Self::TooLong | Self::NotUtf8 => "see what \"virsh dumpxml\" says on the source",
            Self::Unreachable { .. } => "start it with \"systemctl start lsm-hook.socket\"",
            Self::Silent(_) | Self::Broken { .. } => "look into its log with \"journalctl -u lsm-hook\"",
        };
        format!("{story}; {way_out}")
    }
}

/// One call by libvirt. `args`: what follows the program's name.
pub fn run(args: &[OsString]) -> ExitCode {
    let socket = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| SOCKET.into(), PathBuf::from);
    let (input, mut output, mut errors) = (io::stdin(), io::stdout(), io::stderr());
    let code = call(args, &mut input.lock(), &mut output, &mut errors, &socket, None);
    // An XML that is cut short must not be taken for the whole.
    if output.flush().is_err() { ExitCode::FAILURE } else { ExitCode::from(code) }
}

/// A question of the operator's command line to the host service: `status`, or `release` for a VM.
///
/// # Errors
/// In words, when the service gives no answer.
pub fn ask(operation: &str, vm: &str) -> Result<HookAnswer, String> {
    let socket = std::env::var_os(SOCKET_VARIABLE).map_or_else(|| SOCKET.into(), PathBuf::from);
    let request = HookRequest { vm: vm.into(), operation: operation.into(), ..HookRequest::default() };
    exchange(&request, &socket, Duration::from_secs(5)).map_err(|error| error.told())
}

/// `deadline`: instead of the operation's own.
fn call(
    args: &[OsString],
    input: &mut impl Read,
    output: &mut impl Write,
    errors: &mut impl Write,
    socket: &Path,
    deadline: Option<Duration>,
) -> u8 {
    let word = |i: usize| args.get(i).map_or("".into(), |arg| arg.to_string_lossy());
    let (vm, operation, sub) = (word(0), word(1), word(2));
    let Some(known) = Operation::of(&operation, &sub) else { return 0 };
    let deadline = deadline.unwrap_or(known.deadline());
    let mut on_spare = false;
    let answer = match read_xml(input) {
        Ok(xml) if !has_metadata(&xml) => return 0,
        Ok(xml) => {
            on_spare = spare::is_named(&xml);
            String::from_utf8(xml).map_err(|_| HookError::NotUtf8).and_then(|xml| {
                let request = HookRequest {
                    vm: vm.clone().into_owned(),
                    operation: operation.clone().into_owned(),
                    sub: sub.clone().into_owned(),
                    extra: word(3).into_owned(),
                    xml,
                };
                exchange(&request, socket, deadline)
            })
        }
        Err(error) => Err(error),
    };
    if known == Operation::PrepareBegin
        && on_spare
        && let Err(why) = spare::ensure()
    {
        let _ = writeln!(errors, "lsm: VM {vm} has a card in a bridge that cannot be made: {why}");
    }
    // What cannot be said cannot be helped: libvirt has closed its end.
    match answer {
        Ok(answer) => {
            let _ = errors.write_all(answer.stderr.as_bytes());
            // Whatever the service says: a VM starts, and a running one is not killed (`reconnect`), without us.
            let exit = if known == Operation::MigrateBegin { answer.exit } else { 0 };
            let changed = known == Operation::MigrateBegin && exit == 0;
            if changed && output.write_all(answer.stdout.as_bytes()).is_err() {
                let _ = writeln!(errors, "lsm: cannot hand the VM's new description to libvirt");
                return 1;
            }
            exit
        }
        Err(error) if known == Operation::MigrateBegin => {
            let _ = writeln!(errors, "lsm: VM {vm} cannot move here: {}", error.told());
            1
        }
        Err(error) => {
            let _ = writeln!(errors, "lsm: {operation} {sub} of VM {vm} goes on without LSM: {}", error.told());
            0
        }
    }
}

fn read_xml(input: &mut impl Read) -> Result<Vec<u8>, HookError> {
    // A pipe's worth: most VMs need no second allocation.
    let mut xml = Vec::with_capacity(64 << 10);
    input.take(LONGEST as u64 + 1).read_to_end(&mut xml).map_err(HookError::Input)?;
    if xml.len() > LONGEST { Err(HookError::TooLong) } else { Ok(xml) }
}

fn exchange(request: &HookRequest, path: &Path, deadline: Duration) -> Result<HookAnswer, HookError> {
    let until = Instant::now() + deadline;
    let unreachable = |cause: io::Error| match cause.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => HookError::Silent(deadline),
        _ => HookError::Unreachable { path: path.to_owned(), cause },
    };
    let connect = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // Bounds connect, too: it waits where the service's backlog is full (unix_stream_connect in net/unix).
        socket.set_write_timeout(Some(deadline))?;
        socket.connect(&SockAddr::unix(path)?)?;
        Ok(UnixStream::from(OwnedFd::from(socket)))
    };
    let stream = connect().map_err(unreachable)?;
    let mut bounded = Bounded { stream, until };
    wire::write(&mut bounded, request).and_then(|()| wire::read(&mut bounded)).map_err(|cause| match cause {
        WireError::Io(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            HookError::Silent(deadline)
        }
        cause => HookError::Broken(cause),
    })
}

/// One deadline for all reads and writes together.
struct Bounded {
    stream: UnixStream,
    until: Instant,
}

impl Bounded {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Bounded {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(into)
    }
}

impl Write for Bounded {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(from)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests;
