//! A machine of its own without a kernel of its own: this one's files behind an overlay, a real systemd, a network and
//! processes of its own. For what needs units, and no VM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    netns::Netns,
    shell::{During as _, Process, Result, run},
};

/// It is there while it runs; its directory, until this is dropped.
#[derive(Debug)]
pub struct Container {
    name: String,
    directory: PathBuf,
    binds: String,
}

impl Container {
    /// `name`: the machine's, no other's that runs now.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn new(name: &str) -> Result<Container> {
        let directory = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        for below in ["root", "lab"] {
            let path = directory.join(below);
            fs::create_dir_all(&path).during(|| format!("make {}", path.display()))?;
        }
        let binds = format!(" --bind={}:/lab", directory.join("lab").display());
        Ok(Container { name: name.into(), directory, binds })
    }

    /// What is `/lab` in it.
    #[must_use]
    pub fn lab(&self) -> PathBuf {
        self.directory.join("lab")
    }

    /// Puts a file, or a directory, into it.
    pub fn bind(&mut self, from: &Path, to: &str) {
        self.binds.push_str(&format!(" --bind-ro={}:{to}", from.display()));
    }

    /// Writes a file below `/lab`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.lab().join(name);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).during(|| format!("make {}", parent.display()))?;
        }
        fs::write(&file, text).during(|| format!("write {}", file.display()))
    }

    /// What a file below `/lab` has; nothing, where there is none.
    #[must_use]
    pub fn said(&self, name: &str) -> String {
        fs::read_to_string(self.lab().join(name)).unwrap_or_default()
    }

    /// Boots it, and has a script of bash run when what `unit` (lines of its `[Unit]`) asks for is there. It ends with the
    /// script. What it said is where it wrote it.
    ///
    /// # Errors
    /// It did not start, or not end within two minutes.
    pub fn run(&mut self, unit: &str, script: &str) -> Result<()> {
        self.write("script", script)?;
        let service = format!(
            "[Unit]\nDefaultDependencies=no\nSuccessAction=exit-force\nFailureAction=exit-force\n{unit}\
             [Service]\nType=oneshot\nTimeoutStartSec=60\nExecStart=/bin/bash /lab/script\n"
        );
        self.write("lab.service", &service)?;
        self.write("lab.target", "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\nWants=lab.service\n")?;
        for unit in ["lab.service", "lab.target"] {
            self.bind(&self.lab().join(unit), &format!("/etc/systemd/system/{unit}"));
        }
        run(&mut self.nspawn("timeout 120", "--private-network")).map(drop)
    }

    /// Boots it as far as what every machine has (`basic.target`), with a network that is there already, everything that root
    /// may do, and TAP devices: enough for a libvirt. It is there until the process is ended; what the console says is in
    /// the file `console` of its directory.
    ///
    /// # Errors
    /// It could not be started.
    pub fn boot(&mut self, network: &Netns) -> Result<Process> {
        self.write("lab.target", "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n")?;
        self.bind(&self.lab().join("lab.target"), "/etc/systemd/system/lab.target");
        let network =
            format!("--network-namespace-path={} --capability=all --bind=/dev/net/tun", network.path().display());
        let log = self.directory.join("console");
        let output = fs::File::create(&log).during(|| format!("make {}", log.display()))?;
        let errors = output.try_clone().during(|| "share the console".into())?;
        // Of the kernel's parameters those of its network alone.
        let mut nspawn = self.nspawn("env SYSTEMD_NSPAWN_API_VFS_WRITABLE=network", &network);
        Process::start(&format!("the machine {}", self.name), nspawn.stdout(output).stderr(errors))
    }

    /// What its console says from now on, whenever it is asked.
    pub(crate) fn console(&self) -> impl Fn() -> String + use<> {
        let file = self.directory.join("console");
        move || fs::read_to_string(&file).unwrap_or_default()
    }

    fn nspawn(&self, under: &str, more: &str) -> Command {
        // The bind mount's own name for "/": nspawn will not take the other. It goes with its mount namespace.
        let command = format!(
            "mount --bind / {root} && exec {under} systemd-nspawn --quiet --register=no --keep-unit --directory={root} \
             --volatile=overlay --machine={name} {more}{binds} --boot systemd.unit=lab.target",
            root = self.directory.join("root").display(),
            name = self.name,
            binds = self.binds,
        );
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "sh", "-c", &command]);
        unshare
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
