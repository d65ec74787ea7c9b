//! The generator's tally.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::demo::provider::Tokens;
use crate::domain::label::RejectReason;

use super::histogram::Histogram;
use super::plan::Kind;

/// How a request ended, as its client saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// The whole answer came.
    Completed,
    /// An error instead of the answer, or an answer that broke off.
    Failed,
    /// The client left, as it meant to.
    Left,
    /// The gateway refused the request before it reached a model.
    Rejected(RejectReason),
    /// No HTTP answer at all, though the client waited.
    NoAnswer,
}

impl Ending {
    /// In words, for the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Left => "left",
            Self::Rejected(reason) => reason.as_str(),
            Self::NoAnswer => "no answer",
        }
    }
}

/// One finished request.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub kind: Kind,
    pub ending: Ending,
    /// HTTP status, when there was one.
    pub status: Option<u16>,
    /// From the due time (not the time of sending: waiting for a busy generator counts) to the last byte.
    pub latency: Duration,
    /// From the due time to the first content of a stream.
    pub first_content: Option<Duration>,
    /// The usage that the answer reported, if any.
    pub tokens: Option<Tokens>,
}

/// Sums over all requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    endings: BTreeMap<(Kind, Ending), u64>,
    /// Completed requests.
    pub latency: Histogram,
    /// Completed streams.
    pub first_content: Histogram,
    /// Tokens that completed answers reported to the clients: fewer than the providers reported, because a stream
    /// reports usage only when asked to.
    pub tokens: Tokens,
}

impl Tally {
    pub fn add(&mut self, seen: &Seen) {
        *self.endings.entry((seen.kind, seen.ending)).or_default() += 1;
        if seen.ending == Ending::Completed {
            self.latency.record(seen.latency);
            if let Some(first) = seen.first_content {
                self.first_content.record(first);
            }
            self.tokens += seen.tokens.unwrap_or_default();
        }
    }

    /// All requests sent.
    pub fn sent(&self) -> u64 {
        self.endings.values().sum()
    }

    /// Requests that ended like this, of the kinds that `include` takes.
    pub fn ended(&self, ending: Ending, include: impl Fn(Kind) -> bool) -> u64 {
        self.endings
            .iter()
            .filter(|((kind, end), _)| *end == ending && include(*kind))
            .map(|(_, count)| count)
            .sum()
    }

    /// Counts by kind and ending.
    pub fn endings(&self) -> impl Iterator<Item = (Kind, Ending, u64)> + '_ {
        self.endings.iter().map(|((kind, ending), count)| (*kind, *ending, *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_completed_requests_have_a_latency() {
        let mut tally = Tally::default();
        let seen = |kind, ending, status| Seen {
            kind,
            ending,
            status,
            latency: Duration::from_millis(10),
            first_content: Some(Duration::from_millis(5)),
            tokens: Some(Tokens { prompt: 3, ..Tokens::default() }),
        };
        tally.add(&seen(Kind::Chat, Ending::Completed, Some(200)));
        tally.add(&seen(Kind::Stream, Ending::Completed, Some(200)));
        tally.add(&seen(Kind::Chat, Ending::Failed, Some(502)));
        tally.add(&seen(Kind::Embedding, Ending::NoAnswer, None));
        let limited = Ending::Rejected(RejectReason::RateLimited);
        tally.add(&seen(Kind::SmallTokenLimit, limited, Some(429)));

        assert_eq!(tally.sent(), 5);
        assert_eq!(tally.latency.count(), 2);
        assert_eq!(tally.tokens.prompt, 6);
        assert_eq!(tally.ended(Ending::Completed, |kind| kind == Kind::Chat), 1);
        assert_eq!(tally.ended(limited, |_| true), 1);
        assert_eq!(tally.endings().count(), 5);
    }
}
