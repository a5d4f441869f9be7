//! Which files of a directory are scripts, and whether root alone can have written them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

const ROOT: u32 = 0;
const ANYBODY_EXECUTES: u32 = 0o111;
const OTHERS_WRITE: u32 = 0o022;

/// A file that is meant to be run, and what speaks against it.
pub(crate) struct Script {
    pub path: PathBuf,
    pub fit: Result<(), String>,
}

/// The executables of a directory in order of name. What is not executable, hidden, or a leftover of an editor or of
/// dpkg or rpm is none. The error says why nothing of the directory is run.
pub(crate) fn scripts(directory: &Path) -> Result<Vec<Script>, String> {
    let metadata = match fs::symlink_metadata(directory) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("cannot look at it: {error}")),
    };
    if !metadata.is_dir() {
        return Err("it is not a directory".to_owned());
    }
    root_s_alone(&metadata)?;
    let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let mut entries = entries.map_err(|error| format!("cannot read it: {error}"))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let meant = entries.iter().filter(|entry| !is_leftover(&entry.file_name().to_string_lossy()));
    let script = |path: PathBuf| Some(Script { fit: is_fit(&path)?, path });
    Ok(meant.filter_map(|entry| script(entry.path())).collect())
}

/// `None`: it is not meant to be run.
fn is_fit(path: &Path) -> Option<Result<(), String>> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => return Some(Err(format!("cannot look at it: {error}"))),
    };
    let kind = metadata.file_type();
    if kind.is_symlink() {
        return Some(Err("it is a symbolic link, and who can write where it leads is not known; copy the file".into()));
    }
    if kind.is_dir() || kind.is_socket() || kind.is_fifo() || metadata.mode() & ANYBODY_EXECUTES == 0 {
        return None;
    }
    Some(root_s_alone(&metadata))
}

fn root_s_alone(metadata: &fs::Metadata) -> Result<(), String> {
    if metadata.uid() != ROOT {
        return Err(format!("it belongs to user {}; \"chown root\" it, if you trust what is in it", metadata.uid()));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(format!(
            "others than root can write it (mode {mode:04o}); \"chmod go-w\", if you trust what is in it"
        ));
    }
    Ok(())
}

fn is_leftover(name: &str) -> bool {
    let endings = ["~", ".bak", ".swp", ".rpmsave", ".rpmorig", ".rpmnew"];
    name.starts_with('.') || name.contains(".dpkg-") || endings.iter().any(|ending| name.ends_with(ending))
}
