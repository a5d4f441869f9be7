//! The packages, built for tests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::shell::{During as _, Result, program, run};

/// The project's own directory.
#[must_use]
pub fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// In a directory that goes when this is dropped.
#[derive(Debug)]
pub struct Packages(PathBuf);

impl Packages {
    fn directory_for_tests() -> PathBuf {
        std::env::temp_dir().join(format!("lsm-packages-{}", std::process::id()))
    }

    /// Copies of those in a directory whose names end with one of these.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn at(directory: &Path, ends: &[&str]) -> Result<Packages> {
        let packages = Packages(Packages::directory_for_tests());
        std::fs::create_dir_all(&packages.0).during(|| format!("make {}", packages.0.display()))?;
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if ends.iter().any(|end| name.to_string_lossy().ends_with(end)) {
                let to = packages.0.join(&name);
                std::fs::copy(entry.path(), &to).during(|| format!("write {}", to.display()))?;
            }
        }
        Ok(packages)
    }

    /// As they are shipped but for the optimizer, so that the programs of the other tests are used. `arguments`: further
    /// ones of `packaging/build`.
    ///
    /// # Errors
    /// It has failed.
    pub fn build(arguments: &[&str]) -> Result<Packages> {
        let mut build = Command::new(sources().join("packaging/build"));
        // Compiled for its own tests, where the whole workspace is tested.
        if let Ok(manual) = program("lsm-manual") {
            build.arg("--manual").arg(manual);
        }
        let packages = Packages(Packages::directory_for_tests());
        run(build.args(["--profile", "lab", "--output"]).arg(&packages.0).args(arguments))?;
        Ok(packages)
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// Those of one format, in order.
    #[must_use]
    pub fn files(&self, end: &str) -> Vec<PathBuf> {
        let all = std::fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<PathBuf> = all.filter(|path| path.extension().is_some_and(|is| is == end)).collect();
        found.sort();
        found
    }
}

impl Drop for Packages {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
