//! What a VM boots: Debian's cloud kernel and an initramfs with busybox, iproute2, the lab's first process and what
//! the test adds. Kept in `tests/cache`, by content.

use std::{
    collections::BTreeSet,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    cpio::Archive,
    distribution::{self, Owner},
    shell::{During as _, LabError, Result, run},
};

/// Modules that a VM loads, with what they need, in this order. What a kernel has built in is passed over.
const MODULES: [&str; 10] = [
    "virtio_pci",
    "virtio_console",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "mptcp_diag",
    "af_packet_diag",
    "nf_tables",
];

/// Programs of the machine that go into the VM as they are, with their libraries. dash and not busybox's shell, which
/// prefers its own applets: its `ip` knows nothing of MPTCP.
const PROGRAMS: [(&str, &str); 5] = [
    ("/bin/dash", "/bin/sh"),
    ("/sbin/ip", "/sbin/ip"),
    ("/bin/ss", "/sbin/ss"),
    ("/sbin/tc", "/sbin/tc"),
    ("/usr/bin/chrt", "/bin/chrt"),
];

/// Numbers the files being written by this process.
static PARTIAL: AtomicU32 = AtomicU32::new(0);

/// An image in the making.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    series: String,
    modules: Vec<String>,
    files: Vec<(String, u32, Vec<u8>)>,
    /// Programs of the machine's beside [`PROGRAMS`].
    installed: Vec<String>,
    services: Vec<(String, String)>,
    units: Vec<(String, String)>,
    distribution: Option<Owner>,
    disk: Option<PathBuf>,
}

/// A kernel and an initramfs, on disk, and perhaps a disk.
#[derive(Debug, Clone)]
pub struct Image {
    /// The kernel's release.
    pub release: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// A whole distribution, never written to.
    pub disk: Option<PathBuf>,
}

/// This package's directory.
fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl ImageBuilder {
    /// With the newest kernel of a series, `6.12` or `6.1`, that `tests/install` fetched.
    #[must_use]
    pub fn new(series: &str) -> ImageBuilder {
        let modules = MODULES.map(String::from).to_vec();
        let (files, installed, services, units) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        ImageBuilder {
            series: series.into(),
            modules,
            files,
            installed,
            services,
            units,
            distribution: None,
            disk: None,
        }
    }

    /// Has the VM go over to a whole distribution, whose network cards are `owner`'s. Files and programs are put onto that.
    #[must_use]
    pub fn distribution(mut self, owner: Owner) -> ImageBuilder {
        self.modules.extend(distribution::MODULES.map(String::from));
        self.distribution = Some(owner);
        self
    }

    /// The same with a disk that somebody else made, who has said who owns its network cards.
    #[must_use]
    pub fn disk(mut self, disk: &Path) -> ImageBuilder {
        self.modules.extend(distribution::MODULES.map(String::from));
        self.disk = Some(disk.to_owned());
        self
    }

    /// Adds a file; `path` is absolute, its directories are made.
    #[must_use]
    pub fn file(mut self, path: &str, permissions: u32, contents: impl Into<Vec<u8>>) -> ImageBuilder {
        self.files.push((path.into(), permissions, contents.into()));
        self
    }

    /// Adds a static program as `/bin/NAME`, NAME being the file's.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn program(self, program: &Path) -> Result<ImageBuilder> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let contents = fs::read(program).during(|| format!("read {}", program.display()))?;
        Ok(self.file(&format!("/bin/{name}"), 0o755, contents))
    }

    /// Adds a program as this machine has it installed, with its libraries, at the same place.
    #[must_use]
    pub fn installed(mut self, program: &str) -> ImageBuilder {
        self.installed.push(program.into());
        self
    }

    /// Has the VM start a command when its network is up. What it prints is in `/var/log/NAME.log` there.
    #[must_use]
    pub fn service(mut self, name: &str, command: &str) -> ImageBuilder {
        self.services.push((name.into(), command.into()));
        self
    }

    /// Has systemd start a service of this name as the unit says; for distributions.
    #[must_use]
    pub fn unit(mut self, name: &str, text: &str) -> ImageBuilder {
        self.units.push((name.into(), text.into()));
        self
    }

    /// Has the VM load another module of its kernel (`sch_netem`, `vhost_vsock`...).
    #[must_use]
    pub fn module(mut self, name: &str) -> ImageBuilder {
        self.modules.push(name.into());
        self
    }

    /// Writes the image, unless the same one is in the cache.
    ///
    /// # Errors
    /// `tests/install` has not run, or the lab's first process does not compile.
    pub fn build(mut self) -> Result<Image> {
        let disk = match self.disk.take() {
            None => self.distribution.map(|_| distribution::disk()).transpose()?,
            made => made,
        };
        if disk.is_some() {
            for (path, ..) in &mut self.files {
                path.insert_str(0, distribution::ONTO);
            }
            self.files.extend(distribution::onto(self.distribution, &std::mem::take(&mut self.services), &self.units));
        }
        let release = release(&self.series)?;
        let dir = package().join("cache/kernels").join(&release);
        let init = static_program("lsm-tests", "lab-init")?;
        let init = fs::read(&init).during(|| format!("read {}", init.display()))?;
        self.files.push(("/init".into(), 0o755, init));
        let services = self.services.iter().map(|(name, command)| format!("{name} {command}\n")).collect::<String>();
        self.files.push(("/etc/lab/services".into(), 0o644, services.into()));
        self.files.push(("/etc/passwd".into(), 0o644, "root:x:0:0:root:/:/bin/sh\n".into()));
        self.files.push(("/etc/group".into(), 0o644, "root:x:0:\n".into()));

        let mut hasher = DefaultHasher::new();
        (&release, &self.modules, &self.files, &self.installed, include_str!("image.rs")).hash(&mut hasher);
        let images = package().join("cache/images");
        let initramfs = images.join(format!("{}-{:016x}", self.series, hasher.finish()));
        if !initramfs.exists() {
            fs::create_dir_all(&images).during(|| format!("make {}", images.display()))?;
            discard_old(&images);
            self.add_modules(&dir.join("modules"))?;
            self.add_programs()?;
            let number = PARTIAL.fetch_add(1, Ordering::Relaxed);
            let partial = images.join(format!(".{}.{number}", std::process::id()));
            self.write(&partial).during(|| format!("write {}", partial.display()))?;
            fs::rename(&partial, &initramfs).during(|| format!("write {}", initramfs.display()))?;
        }
        Ok(Image { release, kernel: dir.join("vmlinuz"), initramfs, disk })
    }

    fn add_modules(&mut self, tree: &Path) -> Result<()> {
        let listing = run(Command::new("find").arg(tree).args(["-name", "*.ko*"]))?;
        let find = |name: &str| {
            listing.lines().find(|path| {
                let file = path.rsplit('/').next().unwrap_or_default();
                file.split('.').next().unwrap_or_default().replace('-', "_") == name
            })
        };
        let mut ordered: Vec<(String, String)> = Vec::new();
        // Depth first: a module's needs come before it.
        let mut open: Vec<(String, bool)> = self.modules.iter().rev().map(|name| (name.clone(), false)).collect();
        while let Some((name, needs_seen)) = open.pop() {
            let Some(path) = find(&name) else { continue };
            if ordered.iter().any(|(known, _)| *known == name) {
                continue;
            }
            if needs_seen {
                ordered.push((name, path.to_owned()));
                continue;
            }
            open.push((name, true));
            let needs = run(Command::new("modinfo").args(["-F", "depends", path]))?;
            open.extend(needs.trim().split(',').rev().map(|need| (need.trim().replace('-', "_"), false)));
        }
        let mut list = String::new();
        for (name, path) in ordered {
            let contents = if path.ends_with(".xz") {
                let output = Command::new("xz").args(["-dc", &path]).output().during(|| format!("unpack {path}"))?;
                output.stdout
            } else {
                fs::read(&path).during(|| format!("read {path}"))?
            };
            self.files.push((format!("/lib/modules/{name}.ko"), 0o644, contents));
            list.push_str(&format!("/lib/modules/{name}.ko\n"));
        }
        self.files.push(("/etc/lab/modules".into(), 0o644, list.into()));
        Ok(())
    }

    fn add_programs(&mut self) -> Result<()> {
        let mut libraries = BTreeSet::new();
        let installed = std::mem::take(&mut self.installed);
        let installed = installed.iter().map(|path| (path.as_str(), path.as_str()));
        for (from, to) in PROGRAMS.into_iter().chain(installed) {
            let contents = fs::read(from).during(|| format!("read {from}"))?;
            self.files.push((to.into(), 0o755, contents));
            let listed = run(Command::new("ldd").arg(from))?;
            let paths = listed.split_whitespace().filter(|word| word.starts_with('/'));
            libraries.extend(paths.map(String::from));
        }
        for path in libraries {
            let contents = fs::read(&path).during(|| format!("read {path}"))?;
            self.files.push((path, 0o755, contents));
        }
        let busybox = fs::read("/bin/busybox").during(|| "read /bin/busybox (Debian's busybox-static)".into())?;
        self.files.push(("/bin/busybox".into(), 0o755, busybox));
        Ok(())
    }

    fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut archive = Archive::new(BufWriter::new(fs::File::create(path)?));
        let mut made = BTreeSet::new();
        let standing = ["/dev/x", "/proc/x", "/sys/x", "/run/x", "/tmp/x", "/var/log/x", "/var/lib/x", "/usr/bin/x"];
        let paths = standing.into_iter().chain(self.files.iter().map(|(path, ..)| path.as_str()));
        for path in paths {
            let ancestors = Path::new(path).ancestors().skip(1).collect::<Vec<_>>();
            for directory in ancestors.into_iter().rev().filter(|directory| directory.as_os_str() != "/") {
                if made.insert(directory.to_owned()) {
                    archive.directory(&directory.display().to_string())?;
                }
            }
        }
        archive.character_device("/dev/console", 5, 1)?;
        for (path, permissions, contents) in &self.files {
            if *permissions == distribution::LINK {
                archive.symlink(path, &String::from_utf8_lossy(contents))?;
            } else {
                archive.file(path, *permissions, contents)?;
            }
        }
        let taken = |applet: &str| self.files.iter().any(|(path, ..)| path.rsplit('/').next() == Some(applet));
        let applets = run(Command::new("/bin/busybox").arg("--list")).map_err(std::io::Error::other)?;
        for applet in applets.lines().filter(|applet| !taken(applet) && *applet != "init") {
            archive.symlink(&format!("/usr/bin/{applet}"), "/bin/busybox")?;
        }
        archive.finish()
    }
}

/// The newest release of a kernel series in the cache.
fn release(series: &str) -> Result<String> {
    let kernels = package().join("cache/kernels");
    let entries = fs::read_dir(&kernels).during(|| format!("read {}; run tests/install", kernels.display()))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let prefix = format!("{series}.");
    let numbers = |name: &str| {
        let parts = name.split(|letter: char| !letter.is_ascii_digit());
        parts.map(|part| part.parse::<u32>().unwrap_or(0)).collect::<Vec<_>>()
    };
    let newest = names.filter(|name| name.starts_with(&prefix)).max_by_key(|name| numbers(name));
    newest.ok_or_else(|| LabError::Other(format!("no kernel {series} in {}; run tests/install", kernels.display())))
}

/// Builds one of the workspace's programs for the VM: static, since the VM has no libraries for it. Returns its path.
///
/// # Errors
/// It does not compile.
pub fn static_program(package_name: &str, name: &str) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let workspace = package().parent().unwrap_or(package());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--profile", "lab", "--target", TARGET, "--package", package_name, "--bin", name]);
    build
        .current_dir(workspace)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    // What cargo tells a test of its package would look to ring's build script like a change, and be built again.
    for (name, _) in std::env::vars_os() {
        let own = name.to_string_lossy();
        if own.starts_with("CARGO_PKG_") || own.starts_with("CARGO_MANIFEST_") {
            build.env_remove(&name);
        }
    }
    run(&mut build)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    Ok(target.join(TARGET).join("lab").join(name))
}

/// Keeps the cache small: the twenty youngest images stay. More than labs use at once: QEMU reads the image again at a
/// migration's destination.
fn discard_old(images: &Path) {
    let Ok(entries) = fs::read_dir(images) else { return };
    let age = |entry: &fs::DirEntry| entry.metadata().and_then(|data| data.modified()).ok();
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(age);
    let surplus = entries.len().saturating_sub(20);
    for entry in &entries[..surplus] {
        let _ = fs::remove_file(entry.path());
    }
}
