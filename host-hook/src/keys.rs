//! The keys that this host and its VMs prove to each other: `keys` beside the configuration, a file for each VM by its
//! UUID, and `default` for those that have none of their own.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use lsm_protocol::{
    Uuid,
    proof::{Key, NotAKey},
};

/// A key that cannot be used. Nobody speaks to the guest then: without the key it might be anybody.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the VM's key {}", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    #[error("others than root may read the VM's key {}: chmod 600, and make a new one", .0.display())]
    Open(PathBuf),
    #[error("{} holds no key", .0.display())]
    NotAKey(PathBuf, #[source] NotAKey),
}

/// Where one VM's key is. Read each time that its guest is called: a new key needs no restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyOf {
    directory: PathBuf,
    vm: Uuid,
}

impl KeyOf {
    pub fn new(directory: &Path, vm: Uuid) -> KeyOf {
        KeyOf { directory: directory.to_owned(), vm }
    }

    /// Reads it; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn read(&self) -> Result<Option<Key>, KeyError> {
        for name in [self.vm.to_string(), "default".to_owned()] {
            let path = self.directory.join(name);
            let mode = match fs::metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(KeyError::Unreadable(path, error)),
                Ok(metadata) => metadata.permissions().mode(),
            };
            if mode & 0o077 != 0 {
                return Err(KeyError::Open(path));
            }
            let content = fs::read(&path).map_err(|error| KeyError::Unreadable(path.clone(), error))?;
            return Key::read(&content).map(Some).map_err(|error| KeyError::NotAKey(path, error));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_s_own_key_comes_before_the_default_and_one_that_others_may_read_is_none() {
        let directory = std::env::temp_dir().join(format!("lsm-keys-{}", std::process::id()));
        let key = KeyOf::new(&directory, Uuid([0xcc; 16]));
        assert_eq!(key.read().unwrap(), None, "no directory");
        fs::create_dir_all(&directory).unwrap();
        let write = |name: &str, content: &str, mode| {
            let file = directory.join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        };
        let own = "cccccccc-cccc-cccc-cccc-cccccccccccc";
        let expected = |text: &str| Some(Key::read(text.as_bytes()).unwrap());
        write("default", "a key for everyone\n", 0o600);
        assert_eq!(key.read().unwrap(), expected("a key for everyone"));
        write(own, "a key for this VM\n", 0o600);
        assert_eq!(key.read().unwrap(), expected("a key for this VM"));
        write(own, "a key for this VM\n", 0o604);
        assert!(matches!(key.read(), Err(KeyError::Open(_))));
        write(own, "short\n", 0o600);
        assert!(matches!(key.read(), Err(KeyError::NotAKey(..))));
        fs::remove_dir_all(&directory).unwrap();
    }
}
