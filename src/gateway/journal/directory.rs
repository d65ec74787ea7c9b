//! The journal's directory: its lock, its segment files and how far they have been acknowledged.
//!
//! **Files are reused.** Under load a segment is full after a fraction of a second, and finished soon after.
//! Overwriting a file that is in the page cache takes half as long as writing a new one, and data that is overwritten
//! before the next sync never reaches the disk. So a finished segment becomes a spare file, and the next segment begins
//! at its start. Spares still hold prompts that should be gone, so they live for seconds, and only while segments keep
//! coming. `JOURNAL_MAX_SIZE` does not count them: when rows pile up, no segment is finished, and new segments use up
//! the spares.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::OpenError;
use super::backlog::Position;
use super::frame::{self, checksum};

const LOCK: &str = "lock";
const WATERMARK: &str = "acknowledged";
const REJECTED: &str = "rejected.jsonl";
const REJECTED_BEFORE: &str = "rejected.1.jsonl";
const TEMPORARY: &str = "rewrite.tmp";
const SUFFIX: &str = ".seg";
const SPARE: &str = "spare";
/// Bytes of the file that records up to which position the rows are in the database.
pub(super) const WATERMARK_LEN: usize = 24;

/// More spares than this are never needed: the next segment is begun when one is full, and the one before is finished soon.
const SPARES: usize = 2;

/// Rows that the database refuses are kept for inspection, in at most two files of this size, so that a client that
/// sends such requests cannot fill the disk.
const REJECTED_MAX: u64 = 64 << 20;

/// One segment file; all of it is in the file's name, so that no damage within the file can lose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SegmentId {
    /// Segments are read in this order.
    pub(super) seq: u64,
    /// Counts the rewrites of this segment; the highest one is valid.
    pub(super) generation: u32,
    /// The initial value of its checksums.
    pub(super) salt: u32,
}

impl SegmentId {
    fn file_name(self) -> String {
        format!("{:016x}-{:08x}-{:08x}{SUFFIX}", self.seq, self.generation, self.salt)
    }

    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_suffix(SUFFIX)?.split('-');
        let seq = u64::from_str_radix(parts.next()?, 16).ok()?;
        let generation = u32::from_str_radix(parts.next()?, 16).ok()?;
        let salt = u32::from_str_radix(parts.next()?, 16).ok()?;
        let id = Self { seq, generation, salt };
        // Exactly the name that we would write: any other file in the directory is not ours to touch.
        (id.file_name() == name).then_some(id)
    }
}

/// A segment that an earlier process left with rows that may not be in the database yet.
#[derive(Debug)]
pub(super) struct Leftover {
    pub(super) id: SegmentId,
    /// Everything before this offset is in the database.
    pub(super) from: u64,
    pub(super) len: u64,
}

/// The locked directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    watermark: Mutex<File>,
    /// Finished segments whose files can be reused.
    spares: Mutex<Vec<PathBuf>>,
    /// Held while the directory is in use; the kernel releases it however the process ends.
    lock: File,
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Closing the file is not enough: a process that another thread is starting holds a copy of the descriptor
        // until its `exec`, and the lock belongs to all copies.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(%error, "the journal's directory could not be unlocked");
        }
    }
}

/// The opened directory, and what it held.
pub(super) struct Found {
    pub(super) directory: Directory,
    pub(super) leftovers: Vec<Leftover>,
    /// The first sequence number that was never used.
    pub(super) next_seq: u64,
}

impl Directory {
    /// Creates and locks the directory, removes finished segments, and lists the others.
    pub(super) fn open(path: &Path) -> Result<Found, OpenError> {
        create_directory(path).map_err(|source| OpenError::Create { path: path.into(), source })?;
        let unusable = |source| OpenError::Unusable { path: path.into(), source };
        let lock =
            private().create(true).truncate(false).write(true).open(path.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.into() }),
            Err(fs::TryLockError::Error(source)) => return Err(unusable(source)),
        }
        let mut watermark = private()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join(WATERMARK))
            .map_err(unusable)?;
        let acknowledged = read_watermark(&mut watermark);
        let directory =
            Self { path: path.into(), watermark: Mutex::new(watermark), spares: Mutex::default(), lock };
        let (leftovers, next_seq) = directory.sort_out(acknowledged).map_err(unusable)?;
        // An existing directory may have become read-only: better to fail now than at the first request.
        directory.create(TEMPORARY).and_then(|_| fs::remove_file(path.join(TEMPORARY))).map_err(unusable)?;
        Ok(Found { directory, leftovers, next_seq })
    }

    fn sort_out(&self, acknowledged: Option<Position>) -> io::Result<(Vec<Leftover>, u64)> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Some(id) = entry.file_name().to_str().and_then(SegmentId::parse) {
                segments.push((id, entry.metadata()?.len()));
            } else if is_spare(&entry.path()) {
                fs::remove_file(entry.path())?;
            }
        }
        segments.sort_unstable();
        let last = segments.last().map(|(id, _)| id.seq).max(acknowledged.map(|to| to.seq));
        let mut leftovers: Vec<Leftover> = Vec::new();
        for (id, len) in segments {
            // A crash between rewriting a segment and removing the old one leaves both.
            if let Some(older) = leftovers.pop_if(|older| older.id.seq == id.seq) {
                self.remove(older.id)?;
            }
            let from = match acknowledged {
                Some(to) if id.seq < to.seq => len,
                Some(to) if id.seq == to.seq && id.generation == to.generation => to.end,
                _ => 0,
            };
            if from >= len {
                self.remove(id)?;
            } else {
                leftovers.push(Leftover { id, from, len });
            }
        }
        Ok((leftovers, last.map_or(1, |seq| seq + 1)))
    }

    /// Starts a segment file. The file may be a reused one: the second value is its length.
    pub(super) fn create_segment(&self, id: SegmentId) -> io::Result<(File, u64)> {
        // A request waits for this: if the spares are locked, it does without one.
        let spare = self.spares.try_lock().and_then(|mut spares| spares.pop());
        if let Some(spare) = spare {
            match self.use_again(&spare, id) {
                Ok(again) => return Ok(again),
                // Perhaps a file system without hard links: then every segment has a new file.
                Err(error) => {
                    tracing::debug!(%error, "a finished segment's file cannot be used again");
                    let _ = fs::remove_file(&spare);
                }
            }
        }
        let open = || private().create_new(true).write(true).open(self.path_of(id));
        let file = match open() {
            // The directory was removed under us; recreating it is all that can be done.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                create_directory(&self.path).and_then(|()| open())
            }
            result => result,
        }?;
        Ok((file, 0))
    }

    fn use_again(&self, spare: &Path, id: SegmentId) -> io::Result<(File, u64)> {
        let mut file = private().write(true).open(spare)?;
        let len = file.metadata()?.len();
        // The file is a segment without records, even if the process dies before the first one.
        file.write_all(&frame::end_mark(id))?;
        // Not `rename`, which would replace an existing file.
        fs::hard_link(spare, self.path_of(id))?;
        if let Err(error) = fs::remove_file(spare) {
            tracing::warn!(%error, "a segment of the journal has two names");
        }
        Ok((file, len))
    }

    /// A segment is finished: its file becomes a spare, or is removed when there are enough.
    pub(super) fn retire(&self, id: SegmentId) -> io::Result<()> {
        let path = self.path_of(id);
        let spare = path.with_extension(SPARE);
        if self.spares.lock().len() >= SPARES || fs::rename(path, &spare).is_err() {
            return self.remove(id);
        }
        self.spares.lock().push(spare);
        Ok(())
    }

    /// Removes the spares.
    pub(super) fn remove_spares(&self) {
        let spares = std::mem::take(&mut *self.spares.lock());
        for spare in spares {
            if let Err(error) = fs::remove_file(&spare) {
                tracing::warn!(%error, "a spare file of the journal cannot be removed");
            }
        }
    }

    pub(super) fn open_segment(&self, id: SegmentId) -> io::Result<File> {
        File::open(self.path_of(id))
    }

    /// The bytes of a segment from `from` up to `to`, or to its end if that comes first.
    pub(super) fn read(&self, id: SegmentId, from: u64, to: u64) -> io::Result<Vec<u8>> {
        let mut file = self.open_segment(id)?;
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(to.saturating_sub(from)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Puts `content` in the place of segment `old`. It is on the disk before the old one goes.
    pub(super) fn replace(&self, old: SegmentId, new: SegmentId, content: &[u8]) -> io::Result<()> {
        let temporary = self.path.join(TEMPORARY);
        let written = (|| {
            let mut file = self.create(TEMPORARY)?;
            file.write_all(content)?;
            file.sync_data()?;
            fs::rename(&temporary, self.path_of(new))
        })();
        if written.is_err() {
            // Best effort: the next attempt overwrites a leftover.
            let _ = fs::remove_file(&temporary);
            return written;
        }
        self.remove(old)
    }

    /// Removes a segment; one that is already gone is fine.
    pub(super) fn remove(&self, id: SegmentId) -> io::Result<()> {
        match fs::remove_file(self.path_of(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Renames a segment that cannot be read, to keep it for inspection.
    pub(super) fn set_aside(&self, id: SegmentId) -> io::Result<()> {
        let path = self.path_of(id);
        fs::rename(&path, path.with_extension("unreadable"))
    }

    /// Records that every row up to `position` is in the database. Never synced: a watermark that a power cut sets back
    /// only means that some rows are offered to the database again.
    pub(super) fn acknowledge(&self, position: Position) -> io::Result<()> {
        let mut bytes = [0; WATERMARK_LEN];
        bytes[0..8].copy_from_slice(&position.seq.to_le_bytes());
        bytes[8..12].copy_from_slice(&position.generation.to_le_bytes());
        bytes[12..20].copy_from_slice(&position.end.to_le_bytes());
        let sum = checksum(0, &bytes[..20]);
        bytes[20..].copy_from_slice(&sum.to_le_bytes());
        let mut file = self.watermark.lock();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&bytes)
    }

    /// Keeps a line (without its line feed) for inspection.
    pub(super) fn reject(&self, mut line: Vec<u8>) -> io::Result<()> {
        line.push(b'\n');
        let path = self.path.join(REJECTED);
        if fs::metadata(&path).is_ok_and(|found| found.len() > REJECTED_MAX) {
            fs::rename(&path, self.path.join(REJECTED_BEFORE))?;
        }
        private().create(true).append(true).open(path)?.write_all(&line)
    }

    /// Syncs the directory, so that the names of new segments survive a power cut.
    pub(super) fn sync(&self) -> io::Result<()> {
        // Only Unix can open a directory; elsewhere the file system looks after its names.
        if cfg!(unix) { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    fn create(&self, name: &str) -> io::Result<File> {
        private().create(true).truncate(true).write(true).open(self.path.join(name))
    }

    fn path_of(&self, id: SegmentId) -> PathBuf {
        self.path.join(id.file_name())
    }
}

/// Whether the file is a spare: a segment's name with another extension.
fn is_spare(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == SPARE)
        && path
            .with_extension(&SUFFIX[1..])
            .file_name()
            .and_then(|name| SegmentId::parse(name.to_str()?))
            .is_some()
}

fn read_watermark(file: &mut File) -> Option<Position> {
    let mut bytes = [0; WATERMARK_LEN];
    file.read_exact(&mut bytes).ok()?;
    let sum = u32::from_le_bytes(bytes[20..].try_into().ok()?);
    (sum == checksum(0, &bytes[..20])).then_some(())?;
    Some(Position {
        seq: u64::from_le_bytes(bytes[0..8].try_into().ok()?),
        generation: u32::from_le_bytes(bytes[8..12].try_into().ok()?),
        end: u64::from_le_bytes(bytes[12..20].try_into().ok()?),
    })
}

/// The journal holds prompts and answers: no other user may read it.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn create_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(seq: u64, generation: u32) -> SegmentId {
        SegmentId { seq, generation, salt: 7 }
    }

    fn left(found: &Found) -> Vec<(SegmentId, u64, u64)> {
        found.leftovers.iter().map(|l| (l.id, l.from, l.len)).collect()
    }

    #[test]
    fn a_directory_that_is_left_is_free_even_if_a_copy_of_its_lock_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let found = Directory::open(dir.path()).unwrap();
        assert!(matches!(Directory::open(dir.path()), Err(OpenError::InUse { .. })));
        // As in a child process between its start and its `exec`.
        let _copy = found.directory.lock.try_clone().unwrap();
        drop(found);
        assert!(Directory::open(dir.path()).is_ok());
    }

    #[test]
    fn a_segment_is_known_by_its_name_and_strangers_are_left_alone() {
        let named = SegmentId { seq: u64::MAX, generation: 3, salt: 0xabc };
        assert_eq!(SegmentId::parse(&named.file_name()), Some(named));
        for stranger in ["lock", "1-2-3.seg", "notes.seg", "0000000000000001-00000000-00000007.seg.bak"] {
            assert_eq!(SegmentId::parse(stranger), None, "{stranger}");
        }
    }

    #[test]
    fn what_was_acknowledged_is_not_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let found = Directory::open(dir.path()).unwrap();
        assert_eq!((left(&found), found.next_seq), (vec![], 1));
        for seq in 1..=4 {
            found.directory.create_segment(id(seq, 0)).unwrap().0.write_all(&[0; 10]).unwrap();
        }
        found.directory.acknowledge(Position { seq: 2, generation: 0, end: 4 }).unwrap();
        drop(found);
        let found = Directory::open(dir.path()).unwrap();
        assert_eq!(left(&found), [(id(2, 0), 4, 10), (id(3, 0), 0, 10), (id(4, 0), 0, 10)]);
        assert_eq!(found.next_seq, 5);
        found.directory.acknowledge(Position { seq: 4, generation: 0, end: 10 }).unwrap();
        drop(found);
        let found = Directory::open(dir.path()).unwrap();
        assert_eq!((left(&found), found.next_seq), (vec![], 5), "a number is never used twice");
    }

    #[test]
    fn a_rewritten_segment_replaces_the_old_one_and_forgets_its_offsets() {
        let dir = tempfile::tempdir().unwrap();
        let found = Directory::open(dir.path()).unwrap();
        found.directory.create_segment(id(1, 0)).unwrap().0.write_all(&[0; 10]).unwrap();
        found.directory.acknowledge(Position { seq: 1, generation: 0, end: 4 }).unwrap();
        found.directory.replace(id(1, 0), id(1, 1), b"abc").unwrap();
        assert_eq!(found.directory.read(id(1, 1), 1, 99).unwrap(), b"bc");
        // As if the crash had preceded the removal.
        found.directory.create_segment(id(1, 0)).unwrap().0.write_all(&[0; 10]).unwrap();
        drop(found);
        let found = Directory::open(dir.path()).unwrap();
        assert_eq!(left(&found), [(id(1, 1), 0, 3)]);
        assert!(found.directory.open_segment(id(1, 0)).is_err());
    }

    #[test]
    fn a_finished_segment_s_file_is_used_again_and_then_gone() {
        let dir = tempfile::tempdir().unwrap();
        let found = Directory::open(dir.path()).unwrap();
        let directory = &found.directory;
        let spares =
            || fs::read_dir(dir.path()).unwrap().filter(|e| is_spare(&e.as_ref().unwrap().path())).count();
        for seq in 1..=4 {
            directory.create_segment(id(seq, 0)).unwrap().0.write_all(&[7; 10]).unwrap();
        }
        for seq in 1..=3 {
            directory.retire(id(seq, 0)).unwrap();
        }
        assert_eq!(spares(), 2, "no more than are needed");
        // A number already in use costs the spare file, not the segment.
        assert!(directory.create_segment(id(4, 0)).is_err());
        let (mut file, used) = directory.create_segment(id(5, 0)).unwrap();
        assert_eq!((used, spares()), (10, 0));
        let found_there = directory.read(id(5, 0), 0, 99).unwrap();
        assert_eq!(
            found_there,
            [&frame::end_mark(id(5, 0))[..], &[7, 7]].concat(),
            "no records, whatever comes"
        );
        file.rewind().unwrap();
        file.write_all(b"abc").unwrap();
        directory.retire(id(5, 0)).unwrap();
        directory.remove_spares();
        assert_eq!(spares(), 0);
        directory.retire(id(4, 0)).unwrap();
        drop(found);
        let found = Directory::open(dir.path()).unwrap();
        assert_eq!((left(&found), spares()), (vec![], 0), "what a dead process kept is gone");
    }

    #[test]
    fn a_damaged_watermark_means_everything_is_offered_again() {
        let dir = tempfile::tempdir().unwrap();
        let found = Directory::open(dir.path()).unwrap();
        found.directory.create_segment(id(1, 0)).unwrap().0.write_all(&[0; 10]).unwrap();
        found.directory.acknowledge(Position { seq: 1, generation: 0, end: 10 }).unwrap();
        drop(found);
        let mut bytes = fs::read(dir.path().join(WATERMARK)).unwrap();
        bytes[12] ^= 1;
        fs::write(dir.path().join(WATERMARK), bytes).unwrap();
        assert_eq!(left(&Directory::open(dir.path()).unwrap()), [(id(1, 0), 0, 10)]);
    }

    #[test]
    fn the_errors_of_start_up_are_one_line_and_name_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _held = Directory::open(dir.path()).unwrap();
        let error = Directory::open(dir.path()).err().unwrap().to_string();
        assert!(
            error.contains("in use by another process") && error.contains(dir.path().to_str().unwrap()),
            "{error}"
        );
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Directory::open(&file.join("journal")).err().unwrap().to_string();
        assert!(error.contains("cannot create") && !error.contains('\n'), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn nobody_else_may_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data").join("journal");
        let found = Directory::open(&path).unwrap();
        found.directory.create_segment(id(1, 0)).unwrap();
        found.directory.reject(b"{}".to_vec()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&path).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
