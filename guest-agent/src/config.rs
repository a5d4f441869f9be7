//! What this VM was told: `/etc/lsm/guest.toml`. Every key is optional, and so is the file; `packaging/guest.toml` shows
//! each with its default.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use lsm_protocol::{Millis, guest::HOLD};
use lsm_records::places::Places;
use serde::{Deserialize, Serialize};
use toml::{Spanned, Value};

/// Where the file is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/lsm/guest.toml";

/// Their names are compared at each socket(2) of a plain program.
const MOST_UNITS: usize = 64;

/// Everything the agent was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub mptcp: Mptcp,
    /// How long programs in the VM may hold a preparation back, all together.
    pub hold_limit: Millis,
    /// How long each script of `switched.d` may run.
    pub script_deadline: Duration,
    /// Where the reports of moves go.
    pub reports: Places,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            mptcp: Mptcp::default(),
            hold_limit: HOLD,
            script_deadline: lsm_scripts::DEADLINE,
            reports: Places::default(),
        }
    }
}

/// Which programs get Multipath TCP without having asked for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mptcp {
    pub force: Force,
    /// With [`Force::All`]: units that keep plain TCP.
    pub except: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Force {
    Off,
    All,
    /// systemd's units of these names.
    Units(Vec<String>),
}

/// Programs in Debian that use what Multipath TCP sockets lack: the signatures (TCP_MD5SIG, TCP-AO) of BGP sessions.
const NEED_PLAIN_TCP: [&str; 6] =
    ["bird.service", "bird6.service", "exabgp.service", "frr.service", "gobgpd.service", "openbgpd.service"];

impl Default for Mptcp {
    fn default() -> Self {
        Mptcp { force: Force::Off, except: NEED_PLAIN_TCP.map(String::from).to_vec() }
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    /// Line and column count from 1.
    #[error("{}:{line}:{column}: {what}", path.display())]
    Invalid { path: PathBuf, line: usize, column: usize, what: String },
}

impl Config {
    /// Reads and checks the file; none is as good as an empty one.
    ///
    /// # Errors
    /// When it cannot be read, and for the first thing in it that is wrong.
    pub fn load(path: &Path) -> Result<Config, Error> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(Error::Unreadable { path: path.to_owned(), source }),
            Ok(text) => text,
        };
        Config::understand(&text, path)
    }

    /// What the file says; `path` is for errors.
    pub(crate) fn understand(text: &str, path: &Path) -> Result<Config, Error> {
        Config::parse(text).map_err(|Wrong { at, what }| {
            let before = text.get(..at).unwrap_or(text);
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            let (line, column) = (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1);
            Error::Invalid { path: path.to_owned(), line, column, what }
        })
    }

    fn parse(text: &str) -> Result<Config, Wrong> {
        let file: File = toml::from_str(text).map_err(|error| Wrong {
            at: error.span().map_or(0, |span| span.start),
            what: in_words(error.message()),
        })?;
        let mut config = Config::default();
        if let Some(force) = file.mptcp.force {
            config.mptcp.force = read_force(&force)?;
        }
        if let Some(except) = file.mptcp.except {
            let at = except.span().start;
            config.mptcp.except = except.into_inner().into_iter().map(Spanned::into_inner).collect();
            check_units(&config.mptcp.except).map_err(|what| Wrong { at, what })?;
        }
        if let Some(limit) = file.hold.limit_ms {
            config.hold_limit = *limit.get_ref();
            if config.hold_limit > HOLD {
                let what =
                    format!("limit_ms may be {HOLD} at most, the default: hosts wait no longer; 0 lets nobody hold");
                return Err(Wrong { at: limit.span().start, what });
            }
        }
        if let Some(seconds) = file.scripts.deadline_s {
            let at = seconds.span().start;
            config.script_deadline = lsm_scripts::deadline(seconds.into_inner()).map_err(|what| Wrong { at, what })?;
        }
        if let Some(reports) = file.reports {
            let at = reports.span().start;
            config.reports = reports.into_inner().checked().map_err(|what| Wrong { at, what })?;
        }
        Ok(config)
    }
}

fn read_force(value: &Spanned<Value>) -> Result<Force, Wrong> {
    let wrong = |what: String| Wrong { at: value.span().start, what };
    let not_a_choice = || wrong("say \"off\", \"all\", or a list of units such as [\"nginx.service\"]".to_owned());
    match value.get_ref() {
        Value::String(word) if word == "off" => Ok(Force::Off),
        Value::String(word) if word == "all" => Ok(Force::All),
        Value::Array(units) => {
            let units = units.iter().map(|unit| unit.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>();
            let units = units.ok_or_else(not_a_choice)?;
            check_units(&units).map_err(wrong)?;
            Ok(if units.is_empty() { Force::Off } else { Force::Units(units) })
        }
        _ => Err(not_a_choice()),
    }
}

fn check_units(units: &[String]) -> Result<(), String> {
    if units.len() > MOST_UNITS {
        return Err(format!("{} units; {MOST_UNITS} are allowed: name a slice that holds them", units.len()));
    }
    units.iter().try_for_each(|unit| check_unit(unit))
}

/// Whether a unit may be called this, and has a cgroup of its own (systemd.unit(5)).
pub(crate) fn check_unit(unit: &str) -> Result<(), String> {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b":-_.\\@".contains(&c);
    let kinds = [".service", ".slice", ".scope"];
    if kinds.iter().any(|kind| unit.strip_suffix(kind).is_some_and(|name| !name.is_empty()))
        && unit.bytes().all(allowed)
        && unit.len() <= lsm_force::LONGEST_UNIT
    {
        return Ok(());
    }
    Err(format!("{unit:?} is no unit with processes: write its whole name, NAME.service, NAME.slice or NAME.scope"))
}

/// What TOML says of it, on one line. A key that is not known here may be another version's.
fn in_words(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    if message.starts_with("unknown field") {
        return format!(
            "{message}; lsm-guest {} has no such key: is the file of another version?",
            env!("CARGO_PKG_VERSION")
        );
    }
    message
}

/// The first thing in the file that is wrong, and its offset in bytes.
#[derive(Debug)]
struct Wrong {
    at: usize,
    what: String,
}

/// The file as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    mptcp: MptcpSection,
    #[serde(default)]
    hold: HoldSection,
    #[serde(default)]
    scripts: ScriptsSection,
    reports: Option<Spanned<Places>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MptcpSection {
    force: Option<Spanned<Value>>,
    except: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct HoldSection {
    limit_ms: Option<Spanned<u64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptsSection {
    deadline_s: Option<Spanned<u64>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn units(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn nothing_said_is_off() {
        let absent = Config::load(Path::new("/nonexistent/guest.toml")).unwrap();
        assert_eq!(absent, Config::default());
        assert_eq!((absent.hold_limit, absent.script_deadline), (4_000, Duration::from_secs(10)));
        assert_eq!(Config::parse("[mptcp]\n").unwrap(), absent);
        assert_eq!(absent.mptcp.force, Force::Off);
        assert!(Config::load(Path::new("/proc/self/mem")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn the_shipped_file_shows_the_defaults() {
        let shipped = include_str!("../../packaging/guest.toml");
        assert_eq!(Config::parse(shipped).unwrap(), Config::default());
        let keys = shipped.lines().filter_map(|line| line.strip_prefix('#').filter(|l| l.contains(" = ")));
        let keys: Vec<&str> = keys.filter(|line| !line.starts_with(' ')).collect();
        assert_eq!(keys.len(), 6, "{keys:?}");
        let active = |line: &'static str| line.strip_prefix('#').filter(|key| keys.contains(key)).unwrap_or(line);
        let spelled_out = shipped.lines().map(active).collect::<Vec<_>>().join("\n");
        assert_eq!(Config::parse(&spelled_out).unwrap(), Config::default());
    }

    #[test]
    fn each_choice_is_read() {
        let force = |text: &str| Config::parse(&format!("mptcp.force = {text}")).unwrap().mptcp.force;
        assert_eq!(force("\"off\""), Force::Off);
        assert_eq!(force("\"all\""), Force::All);
        assert_eq!(force("[]"), Force::Off);
        let some = units(&["nginx.service", "app-a@1.service", "machine.slice"]);
        assert_eq!(force(r#"["nginx.service", "app-a@1.service", "machine.slice"]"#), Force::Units(some));
        let except = Config::parse("mptcp.except = [\"a.service\"]").unwrap().mptcp.except;
        assert_eq!(except, units(&["a.service"]));
        let times = Config::parse("hold.limit_ms = 0\nscripts.deadline_s = 600").unwrap();
        assert_eq!((times.hold_limit, times.script_deadline), (0, Duration::from_secs(600)));
        let reports = Config::parse("[reports]\nhistory = \"/h\"\nmetrics = \"/m\"").unwrap().reports;
        assert_eq!((reports.history.as_path(), reports.collector()), (Path::new("/h"), Some(Path::new("/m"))));
        let wrong = Config::parse("[reports]\nmetrics = \"m\"").unwrap_err();
        assert_eq!(wrong.what, "m is not an absolute path of a directory");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let many = format!("mptcp.force = [{}]", "\"a.service\",".repeat(65));
        let long = format!("mptcp.force = [\"{}.service\"]", "a".repeat(248));
        for (text, line, column, words) in [
            ("\n[mptcp]\nforced = \"off\"", 3, 1, "unknown field `forced`"),
            ("[mtcp]\n", 1, 2, "unknown field `mtcp`"),
            ("[mptcp]\nforce = \"some\"", 2, 9, "say \"off\", \"all\""),
            ("[mptcp]\nforce = 1", 2, 9, "say \"off\", \"all\""),
            ("[mptcp]\nforce = [1]", 2, 9, "say \"off\", \"all\""),
            ("[mptcp]\nforce = [\"nginx\"]", 2, 9, "\"nginx\" is no unit with processes"),
            ("[mptcp]\nforce = [\".service\"]", 2, 9, "write its whole name"),
            ("[mptcp]\nforce = [\"../a.service\"]", 2, 9, "write its whole name"),
            ("[mptcp]\nexcept = [\"a.socket\"]", 2, 10, "write its whole name"),
            (&many, 1, 15, "65 units; 64 are allowed"),
            (&long, 1, 15, "write its whole name"),
            ("[hold]\nlimit = 1", 2, 1, "unknown field `limit`"),
            ("[hold]\nlimit_ms = 4001", 2, 12, "limit_ms may be 4000 at most"),
            ("[hold]\nlimit_ms = -1", 2, 12, ""),
            ("[scripts]\ndeadline_s = 0", 2, 14, "deadline_s must be from 1 to 600 seconds; the default is 10"),
            ("[scripts]\ndeadline_s = 601", 2, 14, "deadline_s must be from 1 to 600 seconds"),
            ("[mptcp\n", 1, 7, ""),
        ] {
            let file = std::env::temp_dir().join(format!("lsm-config-{}", std::process::id()));
            fs::write(&file, text).unwrap();
            let told = Config::load(&file).unwrap_err();
            fs::remove_file(&file).unwrap();
            assert!(
                matches!(&told, Error::Invalid { line: l, column: c, what, .. } if (*l, *c) == (line, column) && what.contains(words)),
                "{text}: {told}"
            );
        }
    }
}
