//! Images and documents by URL: the OpenAI formats carry bytes in `data:` URLs (RFC 2397).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::ConvertError;
use super::fields::At;
use crate::domain::chat::{Media, Upload};

/// Reads `url`, which stands `at`.
pub(crate) fn from_url(url: String, at: &At<'_>) -> Result<Media, ConvertError> {
    let Some(rest) = url.strip_prefix("data:") else { return Ok(Media::Url(url)) };
    let (head, data) =
        rest.split_once(',').ok_or_else(|| ConvertError::at(at, "is a data: URL without a comma"))?;
    let head = head
        .strip_suffix(";base64")
        .ok_or_else(|| ConvertError::at(at, "must be base64 when it is a data: URL"))?;
    let media_type = head.split(';').next().unwrap_or_default();
    let media_type = if media_type.is_empty() { "text/plain" } else { media_type };
    let media_type = match media_type.to_ascii_lowercase() {
        // A common mistake, which only some providers tolerate.
        wrong if wrong == "image/jpg" => "image/jpeg".to_owned(),
        media_type => media_type,
    };
    Ok(Media::Inline { media_type, data: data.to_owned() })
}

/// The `data:` URL of base64 `data`.
pub(crate) fn data_url(media_type: &str, data: &str) -> String {
    format!("data:{media_type};base64,{data}")
}

/// Whether bytes of `media_type` are a text that can be read as it is.
pub(crate) fn is_text(media_type: &str) -> bool {
    media_type.starts_with("text/") || matches!(media_type, "application/json" | "application/xml")
}

/// The text in base64 `data`; `None` if it is not text.
pub(crate) fn text(data: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(data).ok()?).ok()
}

/// The name of a file, which the OpenAI formats want beside data.
pub(crate) fn file_name(file: &Upload) -> Option<&str> {
    file.name.as_deref().or(match &file.source {
        Media::Inline { media_type, .. } if media_type == "application/pdf" => Some("document.pdf"),
        Media::Inline { media_type, .. } if media_type.starts_with("text/") => Some("document.txt"),
        Media::Inline { .. } => Some("document"),
        Media::Url(_) | Media::Id(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Media, String> {
        from_url(url.to_owned(), &At::Key(&At::Root, "url")).map_err(|error| error.to_string())
    }

    #[test]
    fn urls_and_data_urls() {
        let inline =
            |media_type: &str, data: &str| Media::Inline { media_type: media_type.into(), data: data.into() };
        assert_eq!(read("https://a/b.png"), Ok(Media::Url("https://a/b.png".into())));
        assert_eq!(read("data:image/PNG;base64,AAAA"), Ok(inline("image/png", "AAAA")));
        assert_eq!(read("data:text/plain;charset=utf-8;base64,AAAA"), Ok(inline("text/plain", "AAAA")));
        assert_eq!(read("data:image/jpg;base64,AAAA"), Ok(inline("image/jpeg", "AAAA")));
        assert_eq!(read("data:;base64,"), Ok(inline("text/plain", "")));
        assert_eq!(read("data:image/png;base64"), Err("`url` is a data: URL without a comma".into()));
        assert_eq!(read("data:image/png,abc"), Err("`url` must be base64 when it is a data: URL".into()));
        assert_eq!(data_url("image/png", "AAAA"), "data:image/png;base64,AAAA");
    }
}
