//! The journal's size limit on the disk, and what is dropped beyond it.

use super::*;

/// A journal's size on the disk keeps to `JOURNAL_MAX_SIZE`, to the byte.
#[test]
fn the_size_is_that_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(JournalConfig { segment_size: 300, ..config(dir.path()) });
    (0..20).for_each(|n| journal.append(TestRow::with_bodies(n, 20)));
    let batch = next(&journal).unwrap();
    journal.settle(&batch);
    (20..30).for_each(|n| journal.append(TestRow::with_bodies(n, 20)));
    // As the keeper does when no segment is started for a while.
    let disk = journal.shared.disk.as_ref().unwrap();
    disk.active.lock().cut();
    disk.directory.remove_spares();
    assert_eq!(bytes(dir.path()), journal.status().disk_bytes + WATERMARK_LEN as u64);
}

#[test]
fn the_oldest_bodies_go_first_and_every_row_stays() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        JournalConfig { max_size: 100_000, segment_size: 5_000, memory_rows: 3, ..config(dir.path()) };
    let (journal, told) = open(settings.clone());
    for n in 0..200 {
        journal.append(TestRow::with_bodies(n, 500));
        // Slowly enough that the keeper keeps up; when it does not, the newest bodies are left out as well.
        if n % 5 == 0 {
            wait_until("the keeper makes room", || journal.status().disk_bytes <= 105_000);
        }
    }
    wait_until("the size is kept", || journal.status().disk_bytes <= 100_000);
    assert!(bytes(dir.path()) <= 100_000, "all files together");
    drop(journal);

    // The same as seen by another process, which also sees the rows that were in memory.
    let (journal, _) = open(settings);
    assert_eq!(pending(&journal), 200);
    let rows = drain(&journal);
    assert_eq!(numbers(&rows), (0..200).collect::<Vec<_>>());
    let first_with = rows.iter().position(|row| !row.payloads.is_empty()).unwrap();
    assert!(rows[first_with..].iter().all(|row| row.payloads.len() == 1000), "only the oldest lost theirs");
    assert!(first_with > 100 && told.rows_dropped() == 0);
    // The first three were in memory with their bodies, so they have lost nothing yet.
    assert_eq!(told.payloads_dropped(), u64::try_from(first_with).unwrap() - 3);
}

#[test]
fn a_size_kept_while_rows_are_being_read_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) = open(JournalConfig {
        max_size: 60_000,
        segment_size: 5_000,
        memory_rows: 3,
        batch_rows: 7,
        ..config(dir.path())
    });
    let mut rows = Vec::new();
    for n in 0..300 {
        journal.append(TestRow::with_bodies(n, 500));
        if n % 10 == 0 {
            let batch = next(&journal).unwrap();
            rows.extend(batch.groups[0].rows.clone());
            // The segment is rewritten between its rows' reading and their settling.
            wait_until("the keeper makes room", || journal.status().disk_bytes <= 66_000);
            journal.settle(&batch);
        }
    }
    rows.extend(drain(&journal));
    assert_eq!(numbers(&rows), (0..300).collect::<Vec<_>>());
    assert!(told.payloads_dropped() > 0 && told.rows_dropped() == 0);
    let bare = rows.iter().filter(|row| row.payloads.is_empty()).count();
    assert_eq!(told.payloads_dropped(), u64::try_from(bare).unwrap());
}

#[test]
fn rows_are_dropped_only_when_they_alone_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, told) =
        open(JournalConfig { max_size: 20_000, segment_size: 1_000, memory_rows: 3, ..config(dir.path()) });
    for n in 0..2000 {
        journal.append(TestRow::with_bodies(n, 20));
        if n % 20 == 0 {
            wait_until("the keeper makes room", || journal.status().disk_bytes <= 21_000);
        }
    }
    wait_until("the size is kept", || journal.status().disk_bytes <= 20_000);
    let rows = drain(&journal);
    let kept = u64::try_from(rows.len()).unwrap();
    let tally = journal.tally(LogTable::Completions);
    assert_eq!((tally.accepted, tally.acknowledged, tally.dropped), (2000, kept, 2000 - kept));
    assert_eq!(told.rows_dropped(), 2000 - kept);
    assert_eq!(numbers(&rows[..3]), [0, 1, 2], "rows in memory are not lost with their segment");
    let newest: Vec<_> = (2000 - (kept - 3)..2000).collect();
    assert_eq!(numbers(&rows[3..]), newest);
}

/// Whoever ends now is told about the rows that only memory has, those of dropped segments included.
#[test]
fn rows_of_a_dropped_segment_are_in_memory_only() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        JournalConfig { max_size: 20_000, segment_size: 1_000, batch_rows: 10, ..config(dir.path()) };
    let (journal, told) = open(settings.clone());
    let mut batch = None;
    for n in 0..1000 {
        journal.append(TestRow::with_bodies(n, 20));
        if n % 20 == 0 {
            wait_until("the keeper makes room", || journal.status().disk_bytes <= 21_000);
        }
        if n == 10 {
            // On its way into the database all the while.
            batch = Some(next(&journal).unwrap());
        }
    }
    wait_until("the size is kept", || journal.status().disk_bytes <= 20_000);
    assert_eq!((told.rows_dropped(), pending(&journal)), (0, 1000));
    let in_memory = journal.only_in_memory();
    assert!(batch.is_some() && in_memory > 10);
    drop(journal);
    let (journal, _) = open(settings);
    assert_eq!(usize::try_from(pending(&journal)).unwrap() + in_memory, 1000);
}
