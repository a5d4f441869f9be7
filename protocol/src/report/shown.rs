//! A report for people.

use core::fmt;

use super::{Gap, Outcome, Report, Sums};

/// Connections and sockets that are printed; the JSON has all that were listed.
const PRINTED: usize = 20;

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { moved, moved_late, ended, stayed, legacy, cut, lost, kept } = self;
        write!(
            f,
            "{moved} moved, {moved_late} moved late, {stayed} stayed, {legacy} legacy, {cut} cut, {lost} lost, {ended} ended before, {kept} kept"
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migration {} to LAN {}: {}", self.migration, self.lan, self.outcome.name())?;
        if let Outcome::Refused(why) = &self.outcome {
            write!(f, ": {why}")?;
        }
        writeln!(f)?;
        for one in &self.addresses {
            match one.to {
                Some(to) => writeln!(f, "  address      {} became {to}", one.from)?,
                None => writeln!(f, "  address      {} has none in its place", one.from)?,
            }
        }
        writeln!(f, "  connections  {}", self.sums)?;
        match self.gap {
            Some(Gap { at_least, at_most }) => {
                writeln!(f, "  longest gap  {at_least} to {at_most} ms, by the VM's clock")?
            }
            None => writeln!(f, "  longest gap  not known: no connection was busy")?,
        }
        if let (Some(before), Some(after)) = (self.rtt_before, self.rtt_after) {
            let [before, after] = [before, after].map(|us| f64::from(us) / 1_000.0);
            writeln!(f, "  round trip   {before:.1} ms before, {after:.1} ms after")?;
        }
        if let Some(sockets) = self.datagrams.as_ref().filter(|sockets| !sockets.is_empty()) {
            write!(f, "  UDP          bound to what was left:")?;
            sockets.iter().take(PRINTED).try_for_each(|socket| write!(f, " {socket}"))?;
            writeln!(f)?;
        }
        for script in self.scripts.iter().flatten() {
            writeln!(f, "  script       {}", script.outcome)?;
        }
        if self.restarted {
            writeln!(f, "  the agent was started anew meanwhile; who ended before that is not counted")?;
        }
        for step in &self.steps {
            writeln!(f, "  {:>9} ms {}", step.at, step.step)?;
        }
        let worth = |c: &&super::Connection| !matches!(c.became, super::Became::Moved | super::Became::Kept);
        for one in self.connections.iter().filter(worth).take(PRINTED) {
            writeln!(f, "  {}: {}", one.peer, one.became)?;
        }
        Ok(())
    }
}
