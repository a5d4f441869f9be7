//! An estimate for people.

use std::fmt;

use lsm_plan::Prediction;

use super::{Estimate, way::MBIT};

const MIB: f64 = 1_048_576.0;

impl fmt::Display for Estimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.situation;
        writeln!(f, "VM {} to {}", self.vm, self.to)?;
        writeln!(
            f,
            "  memory       {:.0} MiB, {:.0} MiB of it in use; compressed to {:.0} % at most",
            at.memory / MIB,
            at.data / MIB,
            at.compressed * 100.0
        )?;
        writeln!(
            f,
            "  writes       {:.0} MiB differ after 1 s, {:.0} MiB after 10 s, {:.0} MiB after a minute",
            at.writes.within(1.0) / MIB,
            at.writes.within(10.0) / MIB,
            at.writes.within(60.0) / MIB
        )?;
        if at.disk > 0.0 {
            writeln!(
                f,
                "  disks        {:.0} MiB; to copy them takes {} more",
                at.disk / MIB,
                span(at.disk / at.rate)
            )?;
        }
        writeln!(
            f,
            "  the way      {:.0} Mbit/s ({}), round trip {:.1} ms",
            at.rate / MBIT,
            self.rate_from,
            at.round_trip * 1e3
        )?;
        self.unsure.iter().try_for_each(|what| writeln!(f, "  not known    {what}"))?;
        writeln!(f)?;
        writeln!(f, "  {:<34}{:>9}{:>12}{:>10}", "", "time", "data", "pause")?;
        let rows = [
            ("pre-copy", self.ways.pre_copy, ""),
            ("auto-converge", self.ways.auto_converge, "held back"),
            ("post-copy", self.ways.post_copy, "slow"),
            ("parallel, compressed", self.ways.compressed, ""),
            ("hot pages passed over (SEC'17)", self.ways.hot_skip, ""),
        ];
        for (name, way, slow) in rows {
            row(f, name, way, slow)?;
        }
        writeln!(f, "\n  Hot pages are passed over by no QEMU: that row says what it would be worth.")?;
        if !self.can.compressed {
            writeln!(f, "  This libvirt cannot compress over parallel connections.")?;
        }
        writeln!(f, "\n  virsh migrate {} {} qemu+tls://{}/system", self.advice.flags.join(" "), self.vm, self.to)?;
        self.advice.why.iter().try_for_each(|sentence| writeln!(f, "    {sentence}"))
    }
}

fn row(f: &mut fmt::Formatter<'_>, name: &str, way: Option<Prediction>, slow: &str) -> fmt::Result {
    let Some(way) = way else { return writeln!(f, "  {name:<34}{:>9}", "never") };
    let pause = format!("{:.0} ms", way.pause * 1e3);
    write!(f, "  {name:<34}{:>9}{:>8.0} MiB{pause:>10}", span(way.seconds), way.bytes / MIB)?;
    if way.slow > 0.0 && !slow.is_empty() {
        write!(f, "  {slow} for {}", span(way.slow))?;
    }
    writeln!(f)
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
