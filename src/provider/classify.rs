//! Classifying outcomes: their labels, and whether a retry may help.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::domain::label::Outcome;

/// The outcome of an attempt that was answered with this status.
pub fn outcome_of_status(status: StatusCode) -> Outcome {
    match status.as_u16() {
        429 => Outcome::Http429,
        200..400 => Outcome::Ok,
        400..500 => Outcome::Http4xx,
        _ => Outcome::Http5xx,
    }
}

/// Whether a status means that a retry, or another provider, may do better.
pub fn is_retriable(status: StatusCode) -> bool {
    // 529 is Anthropic's "overloaded".
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 529)
}

/// How long the upstream asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date (RFC 9110 § 10.2.3).
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text =
        |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let Some(millis) =
        text(header::HeaderName::from_static("retry-after-ms")).and_then(|text| text.parse().ok())
    {
        return Some(Duration::from_millis(millis));
    }
    let text = text(header::RETRY_AFTER)?;
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).ok();
    }
    let date = chrono::DateTime::parse_from_rfc2822(text).ok()?;
    Some(SystemTime::from(date).duration_since(SystemTime::now()).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(name: &'static str, value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(name, value.parse().expect("header"));
        retry_after(&headers)
    }

    #[test]
    fn retry_after_is_read_in_all_its_forms() {
        assert_eq!(wait("retry-after", "3"), Some(Duration::from_secs(3)));
        assert_eq!(wait("retry-after", "0.5"), Some(Duration::from_millis(500)));
        assert_eq!(wait("retry-after-ms", "120"), Some(Duration::from_millis(120)));
        assert_eq!(wait("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("retry-after", "-1"), None);
        assert_eq!(wait("retry-after", "soon"), None);
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        for (status, retriable) in
            [(400, false), (401, false), (404, false), (408, true), (429, true), (501, false), (503, true)]
        {
            assert_eq!(is_retriable(StatusCode::from_u16(status).expect("status")), retriable, "{status}");
        }
    }
}
