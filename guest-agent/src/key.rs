//! The key that hosts must prove, where this VM has one: systemd's credential `lsm.key`, or `guest.key` beside the
//! configuration.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use lsm_protocol::proof::{Key, Nonce, NotAKey};

/// A key that cannot be used. The agent does not start: without the key it would listen to whoever has none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the key {}", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("others than root may read the key {}: chmod 600, and make a new one", .0.display())]
    Open(PathBuf),
    #[error("{} holds no key", .0.display())]
    NotAKey(PathBuf, #[source] NotAKey),
}

/// Reads it; `None` where there is none, which is for hosts that have none either.
///
/// # Errors
/// It cannot be used.
pub fn load(config: &Path, credentials: Option<&Path>) -> Result<Option<Key>, Error> {
    let credential = credentials.map(|directory| directory.join("lsm.key"));
    for path in credential.into_iter().chain([config.with_file_name("guest.key")]) {
        let metadata = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::Unreadable(path, error)),
            Ok(metadata) => metadata,
        };
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(Error::Open(path));
        }
        let content = fs::read(&path).map_err(|error| Error::Unreadable(path.clone(), error))?;
        return Key::read(&content).map(Some).map_err(|error| Error::NotAKey(path, error));
    }
    Ok(None)
}

/// A new nonce.
///
/// # Errors
/// No random numbers to be had.
pub(crate) fn nonce() -> io::Result<Nonce> {
    let mut nonce = [0; 32];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut nonce)?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credential_comes_first_and_a_key_that_others_may_read_is_none() {
        let directory = std::env::temp_dir().join(format!("lsm-key-{}", std::process::id()));
        let credentials = directory.join("credentials");
        fs::create_dir_all(&credentials).unwrap();
        let config = directory.join("guest.toml");
        let write = |path: &Path, content: &str, mode| {
            fs::write(path, content).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let read = |text: &str| Some(Key::read(text.as_bytes()).unwrap());
        assert_eq!(load(&config, Some(&credentials)).unwrap(), None);
        let file = directory.join("guest.key");
        write(&file, "a key in its file\n", 0o600);
        assert_eq!(load(&config, Some(&credentials)).unwrap(), read("a key in its file"));
        write(&credentials.join("lsm.key"), "a key of systemd's", 0o400);
        assert_eq!(load(&config, Some(&credentials)).unwrap(), read("a key of systemd's"));
        assert_eq!(load(&config, None).unwrap(), read("a key in its file"));
        write(&file, "a key in its file\n", 0o640);
        let error = load(&config, None).unwrap_err().to_string();
        assert!(error.contains("others than root may read the key"), "{error}");
        write(&file, "short", 0o600);
        assert!(load(&config, None).unwrap_err().to_string().ends_with("holds no key"));
        fs::remove_dir_all(&directory).unwrap();
    }
}
