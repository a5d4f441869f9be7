//! What the terminal shows while it happens.

use std::{
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::stage::Stage;

/// How often the logs are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Lines with the time since the beginning, from the demo and from the hosts' logs.
#[derive(Clone)]
pub struct Live {
    start: Instant,
    /// Held while a line is printed.
    out: Arc<Mutex<()>>,
    quiet: bool,
}

impl Live {
    #[must_use]
    pub fn new(quiet: bool) -> Live {
        Live { start: Instant::now(), out: Arc::default(), quiet }
    }

    /// Prints a line.
    pub fn say(&self, what: &str) {
        self.line("", what);
    }

    fn line(&self, who: &str, what: &str) {
        if self.quiet {
            return;
        }
        let _one = self.out.lock();
        println!("{:8.3}  {who:<9} {what}", self.start.elapsed().as_secs_f64());
    }

    /// Shows from now on what the hosts log and what QEMU says, for as long as the stage stands.
    pub fn follow(&self, stage: &Stage) {
        for site in &stage.sites {
            for (log, word) in
                [("lsm-hook.log", told_by_hook as fn(&str) -> Option<String>), ("monitor.log", told_by_qemu)]
            {
                let (live, path, name) = (self.clone(), site.dir().join(log), site.name().to_owned());
                thread::spawn(move || live.tail(&path, &name, word));
            }
        }
    }

    fn tail(&self, path: &PathBuf, who: &str, word: fn(&str) -> Option<String>) {
        let Ok(mut file) = File::open(path) else { return };
        let _ = file.seek(SeekFrom::End(0));
        let mut reader = BufReader::new(file);
        let mut line = String::new();
        while path.exists() {
            match reader.read_line(&mut line) {
                Ok(n) if n > 0 && line.ends_with('\n') => {
                    if let Some(what) = word(line.trim_end()) {
                        self.line(who, &what);
                    }
                    line.clear();
                }
                _ => thread::sleep(LOOK),
            }
        }
    }
}

/// `... INFO state at the source vm="vm" migration=... from="building" to="preparing" why="..." ...`
fn told_by_hook(line: &str) -> Option<String> {
    let field = |name: &str| Some(line.split_once(&format!("{name}=\""))?.1.split('"').next()?.to_owned());
    if line.contains("state at the ") {
        return Some(format!("{} → {}: {}", field("from")?, field("to")?, field("why")?));
    }
    line.split_once(" WARN ").map(|(_, what)| format!("warning: {what}"))
}

/// `event STOP at 1795218014.837106 for domain 'vm': <null>`
fn told_by_qemu(line: &str) -> Option<String> {
    match line.split_whitespace().nth(1)? {
        "STOP" => Some("QEMU: the CPUs stop".into()),
        "RESUME" => Some("QEMU: the CPUs run".into()),
        _ => None,
    }
}
