//! `mptcpize` for single units, as drop-ins: the library that it puts before a program's own is named in the unit's
//! environment. Programs that are static or run with more privileges than their caller do not load it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::config::check_unit;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Unit(String),
    #[error("{0:?} has no programs of its own; name a service")]
    NotAService(String),
    #[error("mptcpize is not installed in {}: no usr/lib*/**/mptcpize/libmptcpwrap.so; install Debian's and Fedora's package \"mptcpize\" or \"mptcpd\"", root.display())]
    NoLibrary { root: PathBuf },
    #[error("cannot write {}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
}

/// Writes a drop-in for each unit into the system below `root`, and gives their places. An image is such a system as well.
///
/// # Errors
/// When a unit is no service, mptcpize is not installed there, or a file cannot be written.
pub fn write(units: &[String], root: &Path) -> Result<Vec<PathBuf>, Error> {
    for unit in units {
        check_unit(unit).map_err(Error::Unit)?;
        if !unit.ends_with(".service") {
            return Err(Error::NotAService(unit.clone()));
        }
    }
    let library = library(root).ok_or_else(|| Error::NoLibrary { root: root.to_owned() })?;
    let text = format!(
        "# Written by \"lsm-guest force --dropin\": this unit's TCP sockets become Multipath TCP. Delete the file to undo it.\n\
         [Service]\nEnvironment=LD_PRELOAD={}\n",
        Path::new("/").join(library).display()
    );
    let one = |unit: &String| {
        let directory = root.join("etc/systemd/system").join(format!("{unit}.d"));
        let path = directory.join("lsm-mptcp.conf");
        match fs::create_dir_all(&directory).and_then(|()| fs::write(&path, &text)) {
            Ok(()) => Ok(path),
            Err(source) => Err(Error::Unwritable { path, source }),
        }
    };
    units.iter().map(one).collect()
}

/// Where the library is, from the root: Debian has it in usr/lib/TRIPLET/mptcpize, Fedora in usr/lib64/mptcpize. Of several
/// names for it the shortest outlives updates.
fn library(root: &Path) -> Option<PathBuf> {
    let children = |directory: &Path| -> Vec<PathBuf> {
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let homes = ["usr/lib", "usr/lib64"].map(|lib| root.join(lib));
    let homes = homes.iter().flat_map(|lib| [vec![lib.clone()], children(lib)].concat());
    let files = homes.flat_map(|home| children(&home.join("mptcpize")));
    let wraps = files
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libmptcpwrap.so")));
    let shortest = wraps.min_by_key(|path| path.as_os_str().len())?;
    shortest.strip_prefix(root).ok().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_names_the_library_of_its_own_system() {
        let root = std::env::temp_dir().join(format!("lsm-dropin-{}", std::process::id()));
        let units = ["web.service".to_owned(), "getty@tty1.service".to_owned()];
        fs::create_dir_all(&root).unwrap();
        let refused = write(&units, &root).unwrap_err().to_string();
        assert!(refused.contains("mptcpize is not installed in"), "{refused}");
        assert!(!root.join("etc").exists());

        let home = root.join("usr/lib/x86_64-linux-gnu/mptcpize");
        fs::create_dir_all(&home).unwrap();
        for name in ["libmptcpwrap.so.0.0.1", "libmptcpwrap.so.0", "README"] {
            fs::write(home.join(name), "").unwrap();
        }
        let written = write(&units, &root).unwrap();
        assert_eq!(written[1], root.join("etc/systemd/system/getty@tty1.service.d/lsm-mptcp.conf"));
        let text = fs::read_to_string(&written[0]).unwrap();
        assert!(
            text.ends_with("[Service]\nEnvironment=LD_PRELOAD=/usr/lib/x86_64-linux-gnu/mptcpize/libmptcpwrap.so.0\n"),
            "{text}"
        );
        assert!(matches!(write(&["machine.slice".into()], &root), Err(Error::NotAService(_))));
        assert!(matches!(write(&["../x.service".into()], &root), Err(Error::Unit(_))));
        fs::remove_dir_all(&root).unwrap();
    }
}
