//! Rate-limit headers for the caller.
//!
//! Two families, both on every answer: OpenAI's (`x-ratelimit-limit-requests`, … with durations such as `6m0s`; see
//! "Rate limits in headers" in OpenAI's documentation) and the reference system's (`X-RateLimit-Limit-RPM`, …).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{BucketState, Decision, LimitState};

/// The headers of a refusal: the state's, and `Retry-After`.
pub fn headers(decision: &Decision) -> HeaderMap {
    let mut headers = HeaderMap::new();
    add_state(&decision.state, &mut headers);
    if !decision.allowed() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_seconds(decision.retry_after)));
    }
    headers
}

/// Of the requests' limit, and of the tokens'.
static NAMES: [[HeaderName; 5]; 2] = families([
    [
        "x-ratelimit-limit-requests",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-reset-requests",
        "x-ratelimit-limit-rpm",
        "x-ratelimit-remaining-rpm",
    ],
    [
        "x-ratelimit-limit-tokens",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-tokens",
        "x-ratelimit-limit-tpm",
        "x-ratelimit-remaining-tpm",
    ],
]);

/// The names of the headers that [`add_state`] adds.
pub fn names() -> impl Iterator<Item = HeaderName> {
    NAMES.iter().flatten().cloned()
}

/// Adds the headers of every answer, refusals included: up to ten.
///
/// `limit` is the configured limit per minute; `remaining` is the bucket's present content, and thus up to `burst`
/// times as much; `reset` is the time until the bucket is full again.
pub fn add_state(state: &LimitState, headers: &mut HeaderMap) {
    // All values share one allocation, one after the other.
    let mut text = Vec::with_capacity(128);
    let mut ends = [[0; 3]; 2];
    for (ends, bucket) in ends.iter_mut().zip([state.rpm, state.tpm]) {
        let Some(BucketState { limit, remaining, reset, .. }) = bucket else { continue };
        write_number(&mut text, limit.into());
        ends[0] = text.len();
        write_number(&mut text, remaining);
        ends[1] = text.len();
        write_reset(&mut text, reset);
        ends[2] = text.len();
    }
    let text = Bytes::from(text);
    // Digits and letters are valid in a header.
    let value = |from: usize, to: usize| {
        HeaderValue::from_maybe_shared(text.slice(from..to)).unwrap_or(HeaderValue::from_static(""))
    };
    headers.reserve(10);
    let mut start = 0;
    for ((names, ends), bucket) in NAMES.iter().zip(ends).zip([state.rpm, state.tpm]) {
        if bucket.is_none() {
            continue;
        }
        let (limit, remaining, reset) =
            (value(start, ends[0]), value(ends[0], ends[1]), value(ends[1], ends[2]));
        headers.insert(&names[0], limit.clone());
        headers.insert(&names[1], remaining.clone());
        headers.insert(&names[2], reset);
        headers.insert(&names[3], limit);
        headers.insert(&names[4], remaining);
        start = ends[2];
    }
}

fn write_number(text: &mut Vec<u8>, number: u64) {
    text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Names made once: parsing ten of them would cost each answer half a microsecond.
const fn families(texts: [[&'static str; 5]; 2]) -> [[HeaderName; 5]; 2] {
    const fn family(texts: [&'static str; 5]) -> [HeaderName; 5] {
        let [a, b, c, d, e] = texts;
        [
            HeaderName::from_static(a),
            HeaderName::from_static(b),
            HeaderName::from_static(c),
            HeaderName::from_static(d),
            HeaderName::from_static(e),
        ]
    }
    let [requests, tokens] = texts;
    [family(requests), family(tokens)]
}

/// `Retry-After` in whole seconds (RFC 9110 § 10.2.3), rounded up so that a client that obeys is not refused again, and
/// at least 1.
pub fn retry_after_seconds(wait: Duration) -> u64 {
    let up = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(up).max(1)
}

/// A duration as OpenAI writes it: `20ms`, `1s`, `1.5s`, `6m0s`, `1h0m30s`. Rounded up to milliseconds.
fn write_reset(text: &mut Vec<u8>, duration: Duration) {
    let millis = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    if (1..1000).contains(&millis) {
        write_number(text, millis);
        text.extend_from_slice(b"ms");
        return;
    }
    let (minutes, millis) = (millis / 60_000, millis % 60_000);
    let (hours, minutes) = (minutes / 60, minutes % 60);
    if hours > 0 {
        write_number(text, hours);
        text.push(b'h');
    }
    if hours > 0 || minutes > 0 {
        write_number(text, minutes);
        text.push(b'm');
    }
    write_number(text, millis / 1000);
    let (mut rest, mut digit) = (millis % 1000, 100);
    if rest > 0 {
        text.push(b'.');
    }
    while rest > 0 {
        write_number(text, rest / digit);
        (rest, digit) = (rest % digit, digit / 10);
    }
    text.push(b's');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::label::LimitType;

    #[test]
    fn reset_reads_like_openai() {
        let format_reset = |duration| {
            let mut text = Vec::new();
            write_reset(&mut text, duration);
            String::from_utf8(text).unwrap()
        };
        for (millis, text) in [
            (0, "0s"),
            (20, "20ms"),
            (1000, "1s"),
            (1001, "1.001s"),
            (1500, "1.5s"),
            (6_050, "6.05s"),
            (360_000, "6m0s"),
            (61_250, "1m1.25s"),
            (3_630_000, "1h0m30s"),
        ] {
            assert_eq!(format_reset(Duration::from_millis(millis)), text);
        }
        assert_eq!(format_reset(Duration::from_nanos(1)), "1ms");
    }

    #[test]
    fn retry_after_is_rounded_up_and_never_zero() {
        assert_eq!(retry_after_seconds(Duration::ZERO), 1);
        assert_eq!(retry_after_seconds(Duration::from_millis(1)), 1);
        assert_eq!(retry_after_seconds(Duration::from_secs(2)), 2);
        assert_eq!(retry_after_seconds(Duration::from_millis(2001)), 3);
    }

    #[test]
    fn both_families_are_rendered_for_the_limits_that_exist() {
        let bucket = BucketState { limit: 60, remaining: 179, used: 1, reset: Duration::from_secs(1) };
        let decision = Decision {
            refused_by: Some(LimitType::Tpm),
            retry_after: Duration::from_millis(1500),
            state: LimitState { rpm: Some(bucket), tpm: None },
        };
        let text: Vec<String> = headers(&decision)
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        assert_eq!(
            text,
            [
                "x-ratelimit-limit-requests: 60",
                "x-ratelimit-remaining-requests: 179",
                "x-ratelimit-reset-requests: 1s",
                "x-ratelimit-limit-rpm: 60",
                "x-ratelimit-remaining-rpm: 179",
                "retry-after: 2",
            ]
        );
    }
}
