//! What LSM costs a VM that it has nothing to do with: a hook call, beside `/bin/true` started the same way.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use super::{Benchmark, Measure, Notes, Page, Point, page::spread};
use crate::{
    domain::Domain,
    image::{Image, static_program},
    shell::{During as _, LabError, Result},
    topology::SitePlan,
};

pub(super) const BENCHMARK: Benchmark =
    Benchmark { name: "hook-call", title: "A hook call for a VM without LSM's metadata", points, begin, show };

/// Calls of each per measurement, one after the other each time, so that both see the same machine.
const CALLS: usize = 50;
const KEY: &str = "calls";

fn points(quick: bool) -> Vec<Point> {
    vec![Point { key: KEY.into(), times: if quick { 1 } else { 10 } }]
}

/// Removed with the last measurement.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn begin() -> Result<Measure> {
    let hook = static_program("lsm-hook", "lsm-hook")?;
    let image = Image { release: String::new(), kernel: "/vmlinuz".into(), initramfs: "/initrd".into(), disk: None };
    let site = SitePlan {
        number: 1,
        name: "montreal".into(),
        bridge: "br0".into(),
        gateway: [10, 1, 0, 1].into(),
        wan: [172, 30, 1, 2].into(),
    };
    let domain = Domain { metadata: None, ..Domain::new("vm", image, &site) };
    let scratch = Scratch(std::env::temp_dir().join(format!("lsm-hook-call-{}", std::process::id())));
    fs::create_dir_all(&scratch.0).during(|| format!("make {}", scratch.0.display()))?;
    // libvirt calls it by another name.
    let (called, input) = (scratch.0.join("lsm"), scratch.0.join("vm.xml"));
    fs::copy(&hook, &called).during(|| format!("copy {}", hook.display()))?;
    fs::write(&input, domain.xml()).during(|| format!("write {}", input.display()))?;
    Ok(Box::new(move |_| {
        let _kept = &scratch;
        let times = measure(&called, &input)?;
        serde_json::to_value(times).map_err(|error| LabError::Other(error.to_string()))
    }))
}

/// Milliseconds: of `/bin/true`, of the hook.
fn measure(called: &Path, input: &Path) -> Result<[Vec<f64>; 2]> {
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..CALLS {
        for (program, times) in [Path::new("/bin/true"), called].into_iter().zip(&mut times) {
            let xml = File::open(input).during(|| format!("open {}", input.display()))?;
            let mut command = Command::new(program);
            command.args(["vm", "migrate", "begin", "-"]).stdin(xml).stdout(Stdio::null());
            let start = Instant::now();
            let status = command.status().during(|| format!("run {}", program.display()))?;
            times.push(start.elapsed().as_secs_f64() * 1_000.0);
            if !status.success() {
                return Err(LabError::Other(format!("{} failed: {status}", program.display())));
            }
        }
    }
    Ok(times)
}

fn show(notes: &Notes, page: &mut Page) {
    let all: Vec<[Vec<f64>; 2]> = notes.of(KEY);
    let of = |which: usize| all.iter().flat_map(|times| times[which].iter().copied()).collect::<Vec<f64>>();
    let rows = [("/bin/true", of(0)), ("hook", of(1))];
    let rows: Vec<_> =
        rows.iter().map(|(name, ms)| vec![(*name).to_owned(), ms.len().to_string(), spread(ms, 2)]).collect();
    page.table(&["", "calls", "ms"], &rows);
}
