//! A benchmark's part of RESULTS.md.

use std::{fs, path::Path, process::Command};

use super::{pictures, plot::Plot};
use crate::{
    measure::median,
    shell::{During as _, Result, run},
};

/// Text, and the pictures that it shows.
pub(super) struct Page {
    name: &'static str,
    text: String,
    pictures: Vec<(String, String)>,
}

impl Page {
    pub(super) fn new(name: &'static str) -> Page {
        Page { name, text: String::new(), pictures: Vec::new() }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// A paragraph.
    pub(super) fn say(&mut self, text: &str) {
        self.text.push_str(text);
        self.text.push_str("\n\n");
    }

    pub(super) fn table(&mut self, head: &[&str], rows: &[Vec<String>]) {
        let line = |cells: &mut dyn Iterator<Item = &str>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        self.text.push_str(&line(&mut head.iter().copied()));
        self.text.push_str(&format!("|{}\n", "---|".repeat(head.len())));
        for row in rows {
            self.text.push_str(&line(&mut row.iter().map(String::as_str)));
        }
        self.text.push('\n');
    }

    pub(super) fn plot(&mut self, plot: &Plot) {
        let file = format!("{}-{}.svg", self.name, self.pictures.len() + 1);
        self.text.push_str(&format!("![{}](docs/results/{file})\n\n", plot.title));
        self.pictures.push((file, plot.svg()));
    }

    pub(super) fn write_pictures(&self, results: &Path) -> Result<()> {
        let directory = pictures(results);
        fs::create_dir_all(&directory).during(|| format!("make {}", directory.display()))?;
        self.pictures.iter().try_for_each(|(file, svg)| {
            let path = directory.join(file);
            fs::write(&path, svg).during(|| format!("write {}", path.display()))
        })
    }
}

/// What all of it was measured on.
pub(super) fn head() -> String {
    let word = |program: &str, arguments: &[&str]| {
        let said = run(Command::new(program).args(arguments)).unwrap_or_default();
        said.lines().next().unwrap_or_default().trim().to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "# Results\n\nWritten by `sudo tests/bench`; no number here was written by hand. Medians, and smallest to largest \
         in parentheses; each single measurement is in [docs/results/measured](docs/results/measured), from where a run goes on.\n\nLast written {} on Linux {}, {cpus} CPUs, {}, libvirt {}.\n",
        word("date", &["+%Y-%m-%d"]),
        word("uname", &["-r"]),
        word("qemu-system-x86_64", &["--version"]),
        word("virsh", &["--version"]),
    )
}

/// Median and spread.
pub(super) fn spread(values: &[f64], digits: usize) -> String {
    let Some(middle) = median(values) else { return "not yet run".into() };
    if values.len() == 1 {
        return format!("{middle:.digits$}");
    }
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("{middle:.digits$} ({least:.digits$} to {most:.digits$})")
}
