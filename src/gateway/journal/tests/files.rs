//! Files that are reused, that vanish, and that cannot be read.

use rustix::io::Errno;

use super::*;

#[test]
fn files_that_nobody_uses_again_are_gone_soon() {
    let dir = tempfile::tempdir().unwrap();
    let quick =
        JournalConfig { segment_size: 1000, sync_interval: Duration::from_millis(5), ..config(dir.path()) };
    let (journal, _) = open(quick);
    for n in 0..200 {
        journal.append(TestRow::with_bodies(n, 20));
        drain(&journal);
    }
    // Two files are left: the watermark of acknowledged rows, and the open segment.
    wait_until("what was logged is gone", || {
        bytes(dir.path()) < WATERMARK_LEN as u64 + 1000 + 200 && !spares(dir.path())
    });
    (200..203).for_each(|n| journal.append(TestRow::with_bodies(n, 20)));
    drop(journal);
    let (journal, told) = open(config(dir.path()));
    assert_eq!((numbers(&drain(&journal)), told.damaged()), (vec![200, 201, 202], 0));
}

fn spares(dir: &Path) -> bool {
    let spare = |path: &Path| path.extension().is_some_and(|extension| extension == "spare");
    fs::read_dir(dir).unwrap().any(|entry| spare(&entry.unwrap().path()))
}

#[test]
fn what_a_killed_process_left_of_a_file_s_last_use_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        JournalConfig { segment_size: 2000, sync_interval: Duration::from_secs(3600), ..config(dir.path()) };
    let (journal, _) = open(settings);
    for n in 0..300 {
        journal.append(TestRow::with_bodies(n, 20));
        drain(&journal);
    }
    (300..303).for_each(|n| journal.append(TestRow::with_bodies(n, 20)));
    // As a killed process leaves it.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let open_file = segments(copy.path()).pop().unwrap();
    assert!(fs::metadata(open_file).unwrap().len() > 1900, "most of it is of its last use");
    fs::write(copy.path().join("0000000000000001-00000000-00000002.spare"), "old").unwrap();
    let (journal, told) = open(config(copy.path()));
    assert_eq!((pending(&journal), told.damaged(), spares(copy.path())), (3, 0, false));
    assert_eq!(numbers(&drain(&journal)), [300, 301, 302]);
}

/// A sync that hangs takes the keeper with it, while requests go on.
#[test]
fn finished_segments_are_not_held_open_until_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        JournalConfig { segment_size: 1000, sync_interval: Duration::from_secs(3600), ..config(dir.path()) };
    let (journal, _) = open(settings);
    let held = || {
        let links =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        links.filter(|path| path.starts_with(dir.path())).count()
    };
    let before = held();
    for n in 0..300 {
        journal.append(TestRow::with_bodies(n, 20));
        drain(&journal);
    }
    assert!(held() <= before + 1, "{} files are open, of which one is appended to", held() - before);
    // One with rows that are not in the database is still to be synced.
    (300..320).for_each(|n| journal.append(TestRow::with_bodies(n, 20)));
    assert!(held() > before + 1);
}

#[test]
fn a_segment_that_vanished_is_not_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(JournalConfig { memory_rows: 2, ..config(dir.path()) });
    (0..5).for_each(|n| journal.append(TestRow::new(n)));
    fs::remove_file(segments(dir.path()).remove(0)).unwrap();
    assert_eq!(numbers(&drain(&journal)), [0, 1]);
    (5..8).for_each(|n| journal.append(TestRow::new(n)));
    drop(journal);
    let (journal, _) = open(config(dir.path()));
    assert_eq!(numbers(&drain(&journal)), [5, 6, 7]);
}

/// Writes to a deleted file succeed, and are of no use.
#[test]
fn a_deleted_segment_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) = open(config(dir.path()));
    journal.append(TestRow::new(0));
    fs::remove_file(segments(dir.path()).remove(0)).unwrap();
    wait_until("it is told", || told.journal_failed() > 0);
    wait_until("the row is known to be in memory only", || journal.only_in_memory() == 1);
    journal.append(TestRow::new(1));
    drop(journal);
    let (journal, _) = open(config(dir.path()));
    assert_eq!(numbers(&drain(&journal)), [1]);
}

#[test]
fn a_shortage_of_the_process_is_not_the_fault_of_a_segment() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) = open(JournalConfig { memory_rows: 2, ..config(dir.path()) });
    (0..5).for_each(|n| journal.append(TestRow::new(n)));
    let memory = next(&journal).unwrap();
    journal.settle(&memory);
    let disk = journal.shared.disk.as_ref().unwrap();
    for _ in 0..10 {
        let (run, id) = journal.shared.first_disk_run().unwrap();
        journal.shared.read_failed(disk, &run, id, &Errno::MFILE.into());
    }
    assert_eq!(numbers(&drain(&journal)), [2, 3, 4]);
    assert_eq!(told.rows_dropped(), 0);
}

#[test]
fn a_segment_left_behind_that_cannot_be_read_is_set_aside_and_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(JournalConfig { segment_size: 1, ..config(dir.path()) });
    (0..3).for_each(|n| journal.append(TestRow::new(n)));
    drop(journal);
    let bad = segments(dir.path()).remove(1);
    fs::remove_file(&bad).unwrap();
    fs::create_dir(&bad).unwrap();
    let (journal, told) = open(config(dir.path()));
    assert_eq!(told.damaged(), 1);
    assert_eq!(numbers(&drain(&journal)), [0, 2]);
    assert!(journal.is_drained() && bad.with_extension("unreadable").exists());
}
