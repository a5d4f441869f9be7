//! A log that is read on: what was said earlier does not count again.

use std::time::Duration;

use crate::{
    shell::{LabError, Result, wait_for},
    stage::Stage,
};

/// Whoever logs has done so within this.
const LIMIT: Duration = Duration::from_secs(20);

/// From where on a log is unread.
pub struct Logbook<'a> {
    name: String,
    read: Box<dyn Fn() -> String + 'a>,
    seen: usize,
}

impl<'a> Logbook<'a> {
    /// The agent's, from now on.
    #[must_use]
    pub fn of_agent(stage: &'a Stage) -> Logbook<'a> {
        let read = || stage.guest.exec("cat /var/log/lsm-guest.log").map(|outcome| outcome.stdout).unwrap_or_default();
        Logbook::new("lsm-guest", read)
    }

    /// The host service's, from now on.
    #[must_use]
    pub fn of_host(stage: &'a Stage, site: &str) -> Logbook<'a> {
        let name = site.to_owned();
        Logbook::new(&format!("lsm-hook in {site}"), move || stage.log(&name))
    }

    fn new(name: &str, read: impl Fn() -> String + 'a) -> Logbook<'a> {
        let seen = read().len();
        Logbook { name: name.into(), read: Box::new(read), seen }
    }

    /// Waits for the next line with all of these words, and reads on behind it.
    ///
    /// # Errors
    /// None came; with what did come.
    pub fn says(&mut self, words: &[&str]) -> Result<String> {
        let what = format!("{} to log {words:?}", self.name);
        let found = wait_for(&what, LIMIT, || {
            let log = (self.read)();
            let mut end = self.seen;
            for line in log.get(self.seen..)?.split_inclusive('\n') {
                end += line.len();
                if line.ends_with('\n') && words.iter().all(|word| line.contains(word)) {
                    return Some((line.trim_end().to_owned(), end));
                }
            }
            None
        });
        match found {
            Ok((line, end)) => {
                self.seen = end;
                Ok(line)
            }
            Err(error) => {
                let said = (self.read)();
                Err(LabError::Other(format!("{error}; it said: {}", said.get(self.seen..).unwrap_or_default())))
            }
        }
    }

    /// How many lines from here on have these words.
    #[must_use]
    pub fn count(&self, words: &str) -> usize {
        let log = (self.read)();
        log.get(self.seen..).unwrap_or_default().lines().filter(|line| line.contains(words)).count()
    }
}
