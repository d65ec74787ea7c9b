//! Checks and conversions of values on their way to the database.

use url::Url;

use super::error::{StoreError, StoreResult};
use crate::domain::label::LABEL_MAX_CHARS;

/// A name that becomes a label: [`LabelValue`](crate::domain::label::LabelValue) must leave it unchanged. Two names
/// that differ only in characters that the label drops would be one series.
pub(super) fn name(field: &'static str, name: &str) -> StoreResult<()> {
    if name.trim().is_empty() {
        return Err(StoreError::invalid(field, "must not be empty"));
    }
    if name.trim() != name {
        return Err(StoreError::invalid(field, "must not begin or end with a space"));
    }
    if name.chars().count() > LABEL_MAX_CHARS {
        return Err(StoreError::invalid(
            field,
            format!("must not be longer than {LABEL_MAX_CHARS} characters"),
        ));
    }
    if name.chars().any(|c| c == '\\' || c.is_control()) {
        return Err(StoreError::invalid(field, "must not contain backslashes or control characters"));
    }
    Ok(())
}

/// Free text: anything but NUL, which PostgreSQL cannot store.
pub(super) fn text(field: &'static str, text: Option<&str>) -> StoreResult<()> {
    match text {
        Some(text) if text.contains('\0') => {
            Err(StoreError::invalid(field, "must not contain NUL characters"))
        }
        _ => Ok(()),
    }
}

/// The longest comment, in characters: a paragraph, not a document.
const COMMENT_MAX: usize = 1000;

/// A comment.
pub(super) fn comment(comment: Option<&str>) -> StoreResult<()> {
    length("comment", comment, COMMENT_MAX)?;
    text("comment", comment)
}

/// Text that travels in an HTTP header: printable ASCII.
pub(super) fn header_text(field: &'static str, text: Option<&str>) -> StoreResult<()> {
    match text {
        Some(text) if !text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') => {
            Err(StoreError::invalid(field, "must be printable ASCII"))
        }
        _ => Ok(()),
    }
}

/// At most `max` characters.
pub(super) fn length(field: &'static str, text: Option<&str>, max: usize) -> StoreResult<()> {
    match text {
        Some(text) if text.chars().count() > max => {
            Err(StoreError::invalid(field, format!("must not be longer than {max} characters")))
        }
        _ => Ok(()),
    }
}

/// An HTTP or HTTPS URL with a host. The error does not repeat the text: it may hold a password.
pub(super) fn http_url(field: &'static str, text: &str) -> StoreResult<Url> {
    let url = url(field, text, &["http", "https"])?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(StoreError::invalid(
            field,
            "must not carry user or password: lists show it, and calls do not send them",
        ));
    }
    Ok(url)
}

/// The URL of a proxy, perhaps with user and password. The upstream client supports HTTP proxies only.
pub(super) fn proxy_url(field: &'static str, text: &str) -> StoreResult<Url> {
    url(field, text, &["http"])
}

fn url(field: &'static str, text: &str, schemes: &[&str]) -> StoreResult<Url> {
    // A URL parser takes these out, but the text is what is stored.
    if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(StoreError::invalid(field, "must not contain white space or control characters"));
    }
    let url = Url::parse(text).map_err(|error| StoreError::invalid(field, format!("not a URL: {error}")))?;
    if !schemes.contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        let schemes = schemes.join("://, ");
        return Err(StoreError::invalid(
            field,
            format!("must begin with one of {schemes}:// and name a host"),
        ));
    }
    Ok(url)
}

/// A number from 0 to `max`.
pub(super) fn at_most<T>(field: &'static str, number: Option<T>, max: T) -> StoreResult<()>
where
    T: Copy + Default + PartialOrd + std::fmt::Display,
{
    match number {
        // Not so of NaN.
        Some(number) if !(T::default()..=max).contains(&number) => {
            Err(StoreError::invalid(field, format!("must be from 0 to {max}")))
        }
        _ => Ok(()),
    }
}

/// A stored count as the domain has it. A value out of range, which only a manual edit of the database writes, is
/// clamped.
pub(super) fn count(stored: i64) -> u32 {
    u32::try_from(stored.max(0)).unwrap_or(u32::MAX)
}

/// Refuses a limit of 0, which would let nothing through; `None` is no limit.
pub(super) fn lets_something_through(field: &'static str, limit: Option<u32>) -> StoreResult<()> {
    match limit {
        Some(0) => Err(StoreError::invalid(field, "must be 1 or more")),
        _ => Ok(()),
    }
}
