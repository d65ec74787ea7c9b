//! Events in every cut, with all line ends.

use proptest::prelude::*;

use super::*;

type Event = (Option<String>, String);

/// Every event of `chunks`, with the bytes of its range in the whole stream.
fn scan(chunks: &[&[u8]]) -> (Vec<Event>, Vec<Vec<u8>>) {
    let stream = chunks.concat();
    let mut scanner = SseScanner::new();
    let (mut events, mut raw) = (Vec::new(), Vec::new());
    for chunk in chunks {
        scanner
            .feed(chunk, |event| {
                events.push((event.event.map(str::to_owned), event.data.to_owned()));
                let [start, end] =
                    [event.range.start, event.range.end].map(|at| usize::try_from(at).unwrap());
                raw.push(stream[start..end].to_vec());
            })
            .unwrap();
    }
    (events, raw)
}

#[test]
fn a_stream_is_known_by_its_first_bytes() {
    for stream in ["data: {}", "\u{feff}\r\n event:x", "id:", ":\n", "\n\nretry: 1"] {
        for end in 0..stream.len() {
            let seen = begins_as_events(&stream.as_bytes()[..end]);
            assert_ne!(seen, Some(false), "{stream:?} up to {end}");
        }
        assert_eq!(begins_as_events(stream.as_bytes()), Some(true), "{stream:?}");
    }
    for other in ["{\"data:\"", "<!doctype", "database", "\u{feff}{", "eventually", "Data:", "\u{e9}"] {
        assert_eq!(begins_as_events(other.as_bytes()), Some(false), "{other:?}");
    }
}

fn events(stream: &str) -> Vec<Event> {
    scan(&[stream.as_bytes()]).0
}

fn event(name: Option<&str>, data: &str) -> Event {
    (name.map(str::to_owned), data.to_owned())
}

/// Cuts `stream` at the given positions.
fn cut<'a>(stream: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = places.iter().map(|place| place.index(stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
}

/// The standard's algorithm, line by line over the whole decoded text.
fn by_the_book(stream: &[u8]) -> Vec<Event> {
    let text = String::from_utf8_lossy(stream.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(stream)).into_owned();
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let (mut events, mut name, mut data) = (Vec::new(), String::new(), String::new());
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines.pop(); // What follows the last line end is not a line yet.
    for line in lines {
        if line.is_empty() {
            if !data.is_empty() {
                data.pop();
                events.push((Some(name.clone()).filter(|name| !name.is_empty()), data.clone()));
            }
            name.clear();
            data.clear();
            continue;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut name),
            "data" => {
                data.push_str(value);
                data.push('\n');
            }
            _ => {}
        }
    }
    events
}

#[test]
fn the_examples_of_the_standard_read_as_it_says() {
    assert_eq!(events("data: YHOO\ndata: +2\ndata: 10\n\n"), [event(None, "YHOO\n+2\n10")]);
    let stream =
        ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
    assert_eq!(
        events(stream),
        [event(None, "first event"), event(None, "second event"), event(None, " third event")]
    );
    assert_eq!(events("data\n\ndata\ndata\n\ndata:"), [event(None, ""), event(None, "\n")]);
    assert_eq!(events("data:test\n\ndata: test\n\n"), [event(None, "test"), event(None, "test")]);
}

#[test]
fn names_comments_and_unknown_fields_are_told_apart() {
    let stream = "event: a\n\nevent: b\nretry: 5\n: data: no\ndatabase: no\ndata: yes\n\nevent:\ndata: x\n\n";
    assert_eq!(events(stream), [event(Some("b"), "yes"), event(None, "x")]);
}

#[test]
fn an_error_line_is_an_event_of_that_name() {
    let stream = "error: {\"code\":400}\n\nerror: no\ndata: yes\n\nevent: a\nerror:b\n\nerrors: no\n\n";
    let expected = [event(Some("error"), "{\"code\":400}"), event(None, "yes"), event(Some("error"), "b")];
    assert_eq!(events(stream), expected);
}

#[test]
fn all_line_ends_and_a_byte_order_mark_are_read() {
    for end in ["\n", "\r", "\r\n"] {
        let stream = "\u{FEFF}event: é\ndata: 1\ndata: 2\n\ndata: 3\n\n".replace('\n', end);
        assert_eq!(events(&stream), [event(Some("é"), "1\n2"), event(None, "3")], "{end:?}");
        let bytes: Vec<&[u8]> = stream.as_bytes().chunks(1).collect();
        assert_eq!(scan(&bytes).0, events(&stream), "{end:?} byte by byte");
    }
}

#[test]
fn a_blank_line_cut_within_its_crlf_ends_the_event_at_once() {
    let mut scanner = SseScanner::new();
    let mut seen = 0;
    scanner.feed(b"data: x\r\n\r", |_| seen += 1).unwrap();
    assert_eq!(seen, 1);
    assert!(scanner.owes_line_feed());
    scanner.feed(b"\ndata: y\r\n\r\n", |event| assert_eq!(event.range, 11..22)).unwrap();
    assert!(!scanner.owes_line_feed());
    assert_eq!(scanner.pending_from(), scanner.position());
}

#[test]
fn a_too_large_event_is_skipped_and_reported_once_wherever_it_is_cut() {
    let stream = format!("data: a\n\ndata: {}\n\ndata: b\n\n", "x".repeat(100));
    for size in [1, 7, 30, 1000] {
        let mut scanner = SseScanner::with_limit(50);
        let (mut data, mut errors) = (Vec::new(), 0);
        for chunk in stream.as_bytes().chunks(size) {
            errors += usize::from(scanner.feed(chunk, |event| data.push(event.data.to_owned())).is_err());
            assert!(scanner.tail.len() <= 50);
        }
        assert_eq!((data, errors), (vec!["a".to_owned(), "b".to_owned()], 1), "chunks of {size}");
    }
}

#[test]
fn an_event_without_its_blank_line_is_read_at_the_end() {
    let mut scanner = SseScanner::new();
    scanner.feed(b"data: a\n\ndata: b", |event| assert_eq!(event.data, "a")).unwrap();
    let mut last = None;
    scanner.finish(|event| last = Some((event.data.to_owned(), event.range)));
    assert_eq!(last, Some(("b".to_owned(), 9..16)));
}

#[test]
fn written_events_keep_their_line_ends() {
    let mut buf = BytesMut::new();
    write_event(&mut buf, Some("ping"), "{}");
    write_event(&mut buf, None, "a\r\nb\rc\n\n");
    assert_eq!(&buf[..], b"event: ping\ndata: {}\n\ndata: a\ndata: b\ndata: c\ndata: \ndata: \n\n");
}

/// Arbitrary bytes, with more of those that the scanner's decisions depend on.
fn stream_bytes() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "data: ", "data:", "data", "event: x", "event:", ":", "é", "🦀", "\u{FEFF}", " ", "id: 1", "{}",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        4 => prop::sample::select(vec!["\n", "\r", "\r\n", "\n\n", "\r\n\r\n"])
            .prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_bytes_cut_anywhere_read_as_the_standard_says(
        stream in stream_bytes(),
        places in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let (whole, raw) = scan(&[&stream]);
        prop_assert_eq!(&whole, &by_the_book(&stream));
        let (cut_events, cut_raw) = scan(&cut(&stream, &places));
        prop_assert_eq!(&cut_events, &whole);
        for (cut_raw, raw) in cut_raw.iter().zip(&raw) {
            // The LF of a CRLF cut by a chunk boundary is reported by `owes_line_feed` instead.
            prop_assert!(cut_raw == raw || [cut_raw, &b"\n"[..]].concat() == *raw);
        }
    }

    #[test]
    fn what_is_written_is_read_again(name in "[a-z.]{0,8}", data in "(.|\n){0,40}") {
        let data: String = data.chars().filter(|c| *c != '\r').collect();
        let mut buf = BytesMut::new();
        write_event(&mut buf, Some(&name).filter(|name| !name.is_empty()).map(|name| &**name), &data);
        let name = Some(name).filter(|name| !name.is_empty());
        prop_assert_eq!(scan(&[&buf]).0, vec![(name, data)]);
    }
}
