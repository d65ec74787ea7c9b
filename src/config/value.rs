//! The values of settings: one type for each kind.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::key::Secret;

/// A type that a setting's text is read into.
pub trait Setting: Sized {
    /// The accepted values, as the end of the sentence "expected …".
    const TAKES: &'static str;
    /// Its text must not be printed.
    const SECRET: bool = false;

    /// The value of `text`, if it is valid.
    fn parse(text: &str) -> Option<Self>;

    /// The value when there is neither text nor default.
    fn missing() -> Option<Self> {
        None
    }
}

impl<T: Setting> Setting for Option<T> {
    const TAKES: &'static str = T::TAKES;
    const SECRET: bool = T::SECRET;

    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(Some)
    }

    fn missing() -> Option<Self> {
        Some(None)
    }
}

impl Setting for u16 {
    const TAKES: &'static str = "a port number, 0 to 65535";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

/// A maximum number of connections.
#[derive(Debug, Clone, Copy)]
pub struct Connections(pub u32);

impl Setting for Connections {
    const TAKES: &'static str = "a whole number, 1 to 10000";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| (1..=10_000).contains(number)).map(Self)
    }
}

impl Setting for usize {
    const TAKES: &'static str = "a whole number above 0";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| *number > 0)
    }
}

impl Setting for f64 {
    const TAKES: &'static str = "a number from 0.01 to 1000";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().filter(|number| (0.01..=1000.0).contains(number))
    }
}

impl Setting for String {
    const TAKES: &'static str = "text of at most 128 visible ASCII characters";

    fn parse(text: &str) -> Option<Self> {
        let fits = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        fits.then(|| text.to_owned())
    }
}

impl Setting for PathBuf {
    const TAKES: &'static str = "a path";

    fn parse(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl Setting for IpAddr {
    const TAKES: &'static str = "an IP address";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Setting for SocketAddr {
    const TAKES: &'static str = "an address and port, like 127.0.0.1:9464";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Setting for Secret {
    const TAKES: &'static str = "text";
    const SECRET: bool = true;

    fn parse(text: &str) -> Option<Self> {
        Some(Self::new(text))
    }
}

/// Zero is allowed: it switches something off.
impl Setting for Duration {
    const TAKES: &'static str = "a duration of at most 100 years, like 30s, 5m or 0s";

    fn parse(text: &str) -> Option<Self> {
        humantime::parse_duration(text).ok().filter(|duration| *duration <= LONGEST)
    }
}

/// The longest duration that a setting may have, so that adding one to a point in time never overflows.
const LONGEST: Duration = Duration::from_secs(100 * 31_557_600);

/// A duration above zero, of at least a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl Setting for Span {
    const TAKES: &'static str = "a duration from 1ms to 100 years, like 500ms, 30s or 5m";

    fn parse(text: &str) -> Option<Self> {
        let duration = Duration::parse(text)?;
        (duration >= Duration::from_millis(1)).then_some(Self(duration))
    }
}

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(usize);

impl ByteSize {
    pub fn bytes(self) -> usize {
        self.0
    }
}

impl Setting for ByteSize {
    const TAKES: &'static str = "a size above 0, like 500000, 64KiB, 32MiB or 1GiB";

    fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: usize = text[..digits].parse().ok()?;
        let unit: usize = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "kib" | "k" => 1 << 10,
            "mb" => 1_000_000,
            "mib" | "m" => 1 << 20,
            "gb" => 1_000_000_000,
            "gib" | "g" => 1 << 30,
            _ => return None,
        };
        number.checked_mul(unit).filter(|bytes| *bytes > 0).map(Self)
    }
}

/// Bounds that replace those of the latency histograms.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyBuckets(pub Vec<f64>);

impl Setting for LatencyBuckets {
    const TAKES: &'static str = "finite, positive, ascending numbers of seconds, separated by commas";

    fn parse(text: &str) -> Option<Self> {
        let bounds: Vec<f64> = text.split(',').map(|part| part.trim().parse().ok()).collect::<Option<_>>()?;
        let fit = bounds.iter().all(|bound: &f64| bound.is_finite() && *bound > 0.0)
            && bounds.is_sorted_by(|a, b| a < b);
        fit.then_some(Self(bounds))
    }
}

/// Origins that browsers may call from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    Any,
    List(Vec<String>),
}

impl Setting for Origins {
    const TAKES: &'static str = "origins like https://app.example, separated by commas, or *";

    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let origins: Vec<String> =
            text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        // Compared with what a browser sends, letter by letter: lower case, and no port where it is the scheme's own.
        let valid = origins.iter().all(|origin| {
            url::Url::parse(origin).is_ok_and(|url| {
                matches!(url.scheme(), "http" | "https") && url.origin().ascii_serialization() == *origin
            })
        });
        valid.then_some(Self::List(origins))
    }
}

/// Whether the request log keeps bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogPayloads {
    Full,
    Metadata,
}

impl Setting for LogPayloads {
    const TAKES: &'static str = "`full` or `metadata`";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "full" => Some(Self::Full),
            "metadata" => Some(Self::Metadata),
            _ => None,
        }
    }
}

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Setting for LogFormat {
    const TAKES: &'static str = "`text` or `json`";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}
