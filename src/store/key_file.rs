//! The file that holds the encryption key of an embedded database: `<database>.key`, mode 0600.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use super::crypt::EncryptionKey;
use super::error::{StoreError, StoreResult};

/// The key file of this database file.
pub(super) fn path_for(database: &Path) -> PathBuf {
    with_suffix(database, ".key")
}

/// The file in which a rotation keeps the next key until the database uses it.
pub(super) fn next(path: &Path) -> PathBuf {
    with_suffix(path, ".new")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Reads the key in this file; `None`: there is no such file.
pub(super) fn read(path: &Path) -> StoreResult<Option<EncryptionKey>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail("read", path, &error)),
    };
    warn_if_open(path);
    EncryptionKey::parse(&text).map(Some).map_err(|_| {
        StoreError::Secret(format!("the key file {} does not hold 32 bytes in base64", path.display()))
    })
}

/// Makes the file with a new random key. If another process made it first, returns that file's key.
pub(super) fn create(path: &Path) -> StoreResult<EncryptionKey> {
    let key = EncryptionKey::random();
    // Written elsewhere and linked into place: the file is never seen half-written, and the link fails if the name is
    // taken.
    let draft = with_suffix(path, &format!(".{:016x}", rand::random::<u64>()));
    write_private(&draft, &key).map_err(|error| fail("create", path, &error))?;
    let linked = fs::hard_link(&draft, path);
    let removed = fs::remove_file(&draft);
    match linked {
        Ok(()) => removed
            .and_then(|()| sync_folder(path))
            .map(|()| key)
            .map_err(|error| fail("create", path, &error)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            read(path)?.ok_or_else(|| fail("create", path, &error))
        }
        // A file system without hard links.
        Err(_) => write_private(path, &key).map(|()| key).map_err(|error| fail("create", path, &error)),
    }
}

/// Puts a new random key beside the current one, for [`promote`].
pub(super) fn prepare_next(path: &Path) -> StoreResult<EncryptionKey> {
    let (key, next) = (EncryptionKey::random(), next(path));
    match fs::remove_file(&next) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(fail("replace", &next, &error)),
        _ => {}
    }
    write_private(&next, &key)
        .and_then(|()| sync_folder(&next))
        .map_err(|error| fail("create", &next, &error))?;
    Ok(key)
}

/// Makes the next key the current one.
pub(super) fn promote(path: &Path) -> StoreResult<()> {
    fs::rename(next(path), path)
        .and_then(|()| sync_folder(path))
        .map_err(|error| fail("replace", path, &error))
}

fn write_private(path: &Path, key: &EncryptionKey) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    writeln!(file, "{}", key.to_base64())?;
    file.sync_all()
}

/// Makes a new name in this folder survive a power cut.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Not an error: some mounted file systems show every file as open to all.
fn warn_if_open(path: &Path) {
    #[cfg(unix)]
    if let Ok(metadata) = fs::metadata(path) {
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), mode = format!("{mode:o}"), "the key file is open to other users; chmod 600");
        }
    }
}

fn fail(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Secret(format!("cannot {what} the key file {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn only_the_owner_can_read_a_key_file() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = path_for(&folder.path().join("gate.db"));
        let key = create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap(), Some(key));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn of_many_that_create_it_one_wins() {
        let folder = tempfile::tempdir().unwrap();
        let path = path_for(&folder.path().join("gate.db"));
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(|| create(&path).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winner = read(&path).unwrap().unwrap();
        assert!(keys.iter().all(|key| *key == winner));
    }

    #[test]
    fn a_damaged_file_is_named_and_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate.db.key");
        fs::write(&path, "oops").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("gate.db.key") && !error.contains("oops"), "{error}");
    }
}
