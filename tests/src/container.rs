//! A machine of its own without a kernel of its own: this one's files behind an overlay, a real systemd, a network and
//! processes of its own. For what needs units, and no VM.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::shell::{During as _, Result, run};

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
        // The bind mount's own name for "/": nspawn will not take the other. It goes with its mount namespace.
        let command = format!(
            "mount --bind / {root} && exec timeout 120 systemd-nspawn --quiet --register=no --keep-unit --directory={root} \
             --volatile=overlay --machine={name} --private-network{binds} --boot systemd.unit=lab.target",
            root = self.directory.join("root").display(),
            name = self.name,
            binds = self.binds,
        );
        run(Command::new("unshare").args(["--mount", "sh", "-c", &command])).map(drop)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}
