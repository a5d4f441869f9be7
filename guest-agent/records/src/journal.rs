//! The log: to systemd's journal, with fields, where stderr leads there; else lines on stderr.
//!
//! What a line says of a migration is in fields of its own, whatever it is about: `journalctl LSM_MIGRATION=…` finds all
//! of it, on hosts and in the VM. The protocol is documented at <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.

use std::{
    fmt::{Debug, Write as _},
    fs, io,
    os::unix::{fs::MetadataExt, net::UnixDatagram},
};

use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    layer::{Context, SubscriberExt},
    util::SubscriberInitExt,
};

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// A datagram larger than this may not fit the socket; what is longer is cut.
const LARGEST: usize = 48 * 1024;

/// Sends what is logged from now on where it belongs. `program`: as the journal shows it.
pub fn init(program: &'static str) {
    if leads_to_journal()
        && let Ok(journal) = Journal::open(program, SOCKET)
    {
        tracing_subscriber::registry().with(LevelFilter::INFO).with(journal).init();
    } else {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_target(false).init();
    }
}

/// systemd says which socket it gave us as stderr; somebody may have put another file in its place (systemd.exec(5)).
fn leads_to_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Sends each event as a datagram.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    program: &'static str,
}

impl Journal {
    /// # Errors
    /// When nobody listens there.
    pub fn open(program: &'static str, socket: &str) -> io::Result<Journal> {
        let to = UnixDatagram::unbound()?;
        to.connect(socket)?;
        to.set_nonblocking(true)?; // a journal that stands still must not hold a migration
        Ok(Journal { socket: to, program })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut line = Line::default();
        event.record(&mut line);
        let priority = match *event.metadata().level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            _ => "7",
        };
        let _ = self.socket.send(&line.datagram(self.program, priority)); // there is nobody to tell
    }
}

/// An event's message with its fields behind it, as on stderr, and those that are fields of the journal too.
#[derive(Default)]
struct Line {
    message: String,
    rest: String,
    fields: Vec<(&'static str, String)>,
}

impl Line {
    fn take(&mut self, field: &Field, value: &str, shown: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
            return;
        }
        let _ = write!(self.rest, " {}={shown}", field.name());
        let name = match field.name() {
            "migration" => "LSM_MIGRATION",
            "vm" => "LSM_DOMAIN",
            // What has been entered ("state", from one to another), or what failed.
            "to" if self.message.starts_with("state") => "LSM_STEP",
            "step" => "LSM_STEP",
            _ => return,
        };
        self.fields.push((name, value.to_owned()));
    }

    fn datagram(self, program: &str, priority: &str) -> Vec<u8> {
        let mut all = Vec::new();
        let mut message = self.message + &self.rest;
        let mut end = message.len().min(LARGEST);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        put(&mut all, "MESSAGE", &message);
        put(&mut all, "PRIORITY", priority);
        put(&mut all, "SYSLOG_IDENTIFIER", program);
        self.fields.iter().for_each(|(name, value)| put(&mut all, name, value));
        all
    }
}

/// `NAME=value`, or where the value has lines, the name, its length in eight bytes and the value.
fn put(all: &mut Vec<u8>, name: &str, value: &str) {
    all.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        all.push(b'\n');
        all.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        all.push(b'=');
    }
    all.extend_from_slice(value.as_bytes());
    all.push(b'\n');
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value, &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        self.take(field, &value, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_fields_of_its_migration() {
        let path = std::env::temp_dir().join(format!("lsm-journal-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let listening = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open("lsm-test", path.to_str().unwrap()).unwrap();
        let id = format_args!("{:02x}", 7);
        let subscriber = tracing_subscriber::registry().with(LevelFilter::INFO).with(journal);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(vm = "a vm", migration = %id, from = "switched", to = "settling", joined = 3, "state at the source");
            tracing::debug!("not shown");
            tracing::warn!(error = "two\nlines", "it failed:\nso");
            tracing::error!("{}", "\u{fc}".repeat(LARGEST));
        });
        let receive = || {
            let mut buffer = vec![0; 2 * LARGEST];
            let length = listening.recv(&mut buffer).unwrap();
            buffer.truncate(length);
            String::from_utf8(buffer).unwrap()
        };
        assert_eq!(
            receive(),
            "MESSAGE=state at the source vm=\"a vm\" migration=07 from=\"switched\" to=\"settling\" joined=3\nPRIORITY=6\nSYSLOG_IDENTIFIER=lsm-test\n\
             LSM_DOMAIN=a vm\nLSM_MIGRATION=07\nLSM_STEP=settling\n"
        );
        let two = receive();
        let message = "it failed:\nso error=\"two\\nlines\"";
        let length = String::from_utf8((message.len() as u64).to_le_bytes().to_vec()).unwrap();
        assert_eq!(two, format!("MESSAGE\n{length}{message}\nPRIORITY=4\nSYSLOG_IDENTIFIER=lsm-test\n"));
        assert_eq!(receive().matches('\u{fc}').count(), LARGEST / 2);
        fs::remove_file(path).unwrap();
    }
}
