use proptest::prelude::*;

use super::*;

const SALT: u32 = 0x5eed_1234;
const ID: SegmentId = SegmentId { seq: 5, generation: 0, salt: SALT };

/// A segment of records with the given bodies, and where each one begins.
fn segment(records: &[(String, Option<Vec<u8>>)]) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for (index, (row, body)) in records.iter().enumerate() {
        starts.push(bytes.len());
        let payloads = Payloads { request: body.clone().map(Bytes::from), response: None };
        let mut head = encode(
            |head| serde_json::to_writer(head, row),
            LogTable::ALL[index % 2],
            &payloads,
            SALT,
            index as u64,
        )
        .unwrap();
        seal(&mut head, ID);
        bytes.extend(head);
        bytes.extend(body.iter().flatten());
    }
    (bytes, starts)
}

fn rows(bytes: &[u8], scan: &Scan) -> Vec<String> {
    scan.frames.iter().map(|frame| serde_json::from_slice(&bytes[frame.row.clone()]).unwrap()).collect()
}

fn records() -> impl Strategy<Value = Vec<(String, Option<Vec<u8>>)>> {
    // Bodies full of the magic: they must not mislead the search.
    let body = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..200),
        proptest::collection::vec(Just(MAGIC), 0..20).prop_map(|parts| parts.concat()),
    ];
    proptest::collection::vec((".{0,40}", proptest::option::of(body)), 1..12)
}

#[test]
fn what_is_written_is_found_again() {
    let payloads = Payloads { request: Some("question".into()), response: Some("answer".into()) };
    let mut bytes = encode(
        |head| serde_json::to_writer(head, "row"),
        LogTable::Embeddings,
        &payloads,
        SALT,
        u64::MAX - 1,
    )
    .unwrap();
    seal(&mut bytes, ID);
    bytes.extend(b"questionanswer");
    let scan = scan(&bytes, ID, true, 10);
    let [frame] = &scan.frames[..] else { panic!("{scan:?}") };
    assert_eq!((frame.table, frame.time_ms), (LogTable::Embeddings, u64::MAX - 1));
    assert_eq!(&bytes[frame.row.clone()], b"\"row\"");
    assert_eq!(&bytes[frame.request.clone().unwrap()], b"question");
    assert_eq!(&bytes[frame.response.clone().unwrap()], b"answer");
    assert_eq!((scan.consumed, scan.damaged), (bytes.len(), 0));
}

#[test]
fn a_forged_record_within_a_damaged_one_is_not_believed() {
    let mut forged = encode(
        |head| serde_json::to_writer(head, "forged"),
        LogTable::Completions,
        &Payloads::default(),
        0,
        1,
    )
    .unwrap();
    seal(&mut forged, SegmentId { salt: 0, ..ID });
    let (mut bytes, _) = segment(&[("real".into(), Some(forged))]);
    bytes[20] ^= 1;
    let scan = scan(&bytes, ID, true, 10);
    assert!(scan.frames.is_empty(), "{scan:?}");
    assert_eq!(scan.damaged, 1);
}

#[test]
fn what_is_left_of_the_file_s_last_use_is_not_read() {
    let (old, _) =
        segment(&[("old".into(), Some(vec![b'o'; 30])), ("older".into(), None), ("oldest".into(), None)]);
    let now = SegmentId { seq: ID.seq + 1, ..ID };
    // Without a mark the old records count as damage, never as rows.
    let found = scan(&old, now, true, 10);
    assert!(found.frames.is_empty() && found.damaged == 1 && !found.ended, "{found:?}");

    let mut new = encode(
        |head| serde_json::to_writer(head, "new"),
        LogTable::Completions,
        &Payloads::default(),
        SALT,
        1,
    )
    .unwrap();
    seal(&mut new, now);
    let end = new.len();
    new.extend(end_mark(now));
    let file = [&new, &old[new.len()..]].concat();
    for cut in end + 4..=file.len() {
        let found = scan(&file[..cut], now, true, 10);
        assert_eq!(rows(&file, &found), ["new"]);
        assert_eq!((found.consumed, found.damaged, found.ended), (end, 0, true), "cut at {cut}");
    }
    // A mark of another segment ends nothing.
    assert!(!scan(&end_mark(ID), now, true, 10).ended);
}

#[test]
fn records_of_before_files_were_used_again_are_read() {
    let (mut bytes, _) = segment(&[("a".into(), Some(b"body".to_vec()))]);
    bytes[4] = 1;
    let sum = checksum(SALT, &bytes[..36]);
    bytes[36..40].copy_from_slice(&sum.to_le_bytes());
    let found = scan(&bytes, ID, true, 10);
    assert_eq!((rows(&bytes, &found), found.frames[0].has_bodies()), (vec!["a".to_owned()], true));
    let stripped = without_bodies(&bytes, &found.frames[0], ID);
    assert_eq!(rows(&stripped, &scan(&stripped, ID, true, 10)), ["a"]);
}

#[test]
fn damaged_bodies_do_not_cost_the_row() {
    let (mut bytes, _) = segment(&[("a".into(), Some(vec![b'x'; 50])), ("b".into(), None)]);
    bytes[HEADER + 10] ^= 1;
    let scan = scan(&bytes, ID, true, 10);
    assert_eq!(rows(&bytes, &scan), ["a", "b"]);
    assert!(scan.frames[0].bodies_lost && !scan.frames[0].has_bodies());
    assert_eq!(scan.damaged, 1);
}

#[test]
fn a_record_without_its_bodies_is_a_record() {
    let (bytes, _) = segment(&[("a".into(), Some(b"body".to_vec()))]);
    let frame = scan(&bytes, ID, true, 1).frames.remove(0);
    let stripped = without_bodies(&bytes, &frame, ID);
    let again = scan(&stripped, ID, true, 10);
    assert_eq!(rows(&stripped, &again), ["a"]);
    assert!(!again.frames[0].has_bodies() && !again.frames[0].bodies_lost);
    assert_eq!(again.frames[0].time_ms, frame.time_ms);
}

proptest! {
    #[test]
    fn a_segment_cut_anywhere_keeps_every_whole_record(records in records(), cut in any::<prop::sample::Index>()) {
        let (bytes, starts) = segment(&records);
        let cut = cut.index(bytes.len() + 1);
        let scan = scan(&bytes[..cut], ID, true, usize::MAX);
        let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
        let whole = ends.filter(|end| *end <= cut).count();
        let found = rows(&bytes, &scan);
        // The record that was cut may still have its row; nothing else may appear.
        prop_assert!(found.len() == whole || found.len() == whole + 1);
        for (found, (written, _)) in found.iter().zip(&records) {
            prop_assert_eq!(found, written);
        }
        prop_assert_eq!(scan.consumed, cut);
    }

    #[test]
    fn damage_anywhere_costs_only_the_record_it_hits(
        records in records(),
        at in any::<prop::sample::Index>(),
        junk in proptest::collection::vec(any::<u8>(), 1..60),
    ) {
        let (mut bytes, starts) = segment(&records);
        let at = at.index(bytes.len());
        let hit = at..(at + junk.len()).min(bytes.len());
        bytes[hit.clone()].copy_from_slice(&junk[..hit.len()]);
        let ends: Vec<_> = starts.iter().skip(1).copied().chain([bytes.len()]).collect();
        let scan = scan(&bytes, ID, true, usize::MAX);
        for (index, (start, end)) in starts.iter().zip(&ends).enumerate() {
            if *end <= hit.start || *start >= hit.end {
                prop_assert!(
                    scan.frames.iter().any(|f| f.start == *start && f.end == *end && f.time_ms == index as u64)
                );
            }
        }
        for frame in &scan.frames {
            prop_assert!(starts.contains(&frame.start), "a record that nobody wrote");
        }
    }

    #[test]
    fn bytes_inserted_or_lost_anywhere_cost_only_the_record_there(
        records in records(),
        at in any::<prop::sample::Index>(),
        junk in proptest::collection::vec(any::<u8>(), 0..30),
        lost in 0_usize..30,
    ) {
        let (bytes, starts) = segment(&records);
        let at = at.index(bytes.len());
        let resume = (at + lost).min(bytes.len());
        let damaged = [&bytes[..at], &junk[..], &bytes[resume..]].concat();
        // The record behind the damage may be lost, too: then the bytes equal those of damage further on, and nothing
        // tells the two apart. So the affected records follow from the bytes, not from how they came about.
        let common = |pairs: &mut dyn Iterator<Item = (&u8, &u8)>| pairs.take_while(|(a, b)| a == b).count();
        let at = common(&mut bytes.iter().zip(&damaged));
        let rest = bytes.len().min(damaged.len()) - at;
        let resume = bytes.len() - common(&mut bytes.iter().rev().zip(damaged.iter().rev())).min(rest);
        let ends: Vec<_> = starts.iter().skip(1).copied().chain([bytes.len()]).collect();
        let scan = scan(&damaged, ID, true, usize::MAX);
        for (index, (start, end)) in starts.iter().zip(&ends).enumerate() {
            if *end <= at || *start >= resume {
                prop_assert!(scan.frames.iter().any(|f| f.time_ms == index as u64 && f.end - f.start == end - start));
            }
        }
    }

    #[test]
    fn any_bytes_can_be_scanned_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..300), last: bool) {
        let scan = scan(&bytes, ID, last, usize::MAX);
        prop_assert!(scan.consumed <= bytes.len());
        prop_assert!(scan.frames.is_empty());
    }

    #[test]
    fn reading_piece_by_piece_finds_the_same(records in records(), piece in 1_usize..400, flip in any::<prop::sample::Index>()) {
        let (mut bytes, _) = segment(&records);
        let flip = flip.index(bytes.len());
        bytes[flip] ^= 0x10;
        let whole = scan(&bytes, ID, true, usize::MAX);
        let (mut at, mut size, mut found) = (0, piece, Vec::new());
        while at < bytes.len() {
            let end = (at + size).min(bytes.len());
            let part = scan(&bytes[at..end], ID, end == bytes.len(), 3);
            found.extend(part.frames.iter().map(|f| f.start + at));
            size = if part.consumed == 0 { size * 2 } else { piece };
            at += part.consumed;
        }
        prop_assert_eq!(found, whole.frames.iter().map(|f| f.start).collect::<Vec<_>>());
    }
}
