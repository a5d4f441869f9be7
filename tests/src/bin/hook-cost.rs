//! What LSM costs a VM that it has nothing to do with: a hook call, beside `/bin/true` started the same way.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use lsm_tests::{
    domain::Domain,
    image::{Image, static_program},
    measure::median,
    shell::chain,
    topology::SitePlan,
};

const CALLS: usize = 500;

fn main() -> ExitCode {
    let hook = match static_program("lsm-hook", "lsm-hook") {
        Ok(hook) => hook,
        Err(error) => {
            eprintln!("hook-cost: {}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    let image = Image { release: String::new(), kernel: "/vmlinuz".into(), initramfs: "/initrd".into() };
    let site = SitePlan {
        number: 1,
        name: "montreal".into(),
        bridge: "br0".into(),
        gateway: [10, 1, 0, 1].into(),
        wan: [172, 30, 1, 2].into(),
    };
    let domain = Domain { metadata: None, ..Domain::new("vm", image, &site) };
    let directory = std::env::temp_dir().join(format!("lsm-hook-cost-{}", std::process::id()));
    let measured = measure(&hook, &directory, &domain.xml());
    let _ = fs::remove_dir_all(&directory);
    match measured {
        Ok([nothing, other]) => {
            println!("/bin/true                      {nothing:.2} ms (median of {CALLS} calls)");
            println!("hook, VM without LSM metadata  {other:.2} ms, {:.2} times as much", other / nothing);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("hook-cost: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Medians in milliseconds: `/bin/true`, and the hook under the name that libvirt calls it by. One after the other each
/// time, so that both see the same machine.
fn measure(hook: &Path, directory: &Path, xml: &str) -> std::io::Result<[f64; 2]> {
    fs::create_dir_all(directory)?;
    let (called, input) = (directory.join("lsm"), directory.join("vm.xml"));
    fs::copy(hook, &called)?;
    fs::write(&input, xml)?;
    let mut times = [const { Vec::new() }; 2];
    for _ in 0..CALLS {
        for (program, times) in [Path::new("/bin/true"), &called].into_iter().zip(&mut times) {
            let mut command = Command::new(program);
            command.args(["vm", "migrate", "begin", "-"]).stdin(File::open(&input)?).stdout(Stdio::null());
            let start = Instant::now();
            let status = command.status()?;
            times.push(start.elapsed().as_secs_f64() * 1_000.0);
            if !status.success() {
                return Err(std::io::Error::other(format!("{} failed: {status}", program.display())));
            }
        }
    }
    Ok(times.map(|times| median(&times).unwrap_or_default()))
}
