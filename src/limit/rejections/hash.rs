//! The hashes in Redis: their names, their fields, and the scripts that change them.

use std::collections::HashMap;
use std::time::Duration;

use redis::{AsyncCommands, Script};

use crate::domain::label::{LabelValue, LimitType, RedisOp};
use crate::limit::link::{Failure, RedisLink};
use crate::limit::millis;

/// The reference system's one hash. Each of our instances appends its name.
const REFERENCE: &str = "nexusgate:metrics:rate_limit_rejections";

/// How long an instance's counts survive it. A replica that is stopped for a holiday or moved to another machine keeps its
/// counts; a pod that will never come again under this name is forgotten in a month. Refreshed by every write and by
/// [`HEARTBEAT`].
pub(super) const TIME_TO_LIVE: Duration = Duration::from_secs(30 * 24 * 3600);

/// How often an instance without rejections refreshes its counts.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(3600);

/// How long a process's last batch number is remembered: longer than any outage after which the batch is sent again.
const MARKER_TIME_TO_LIVE: Duration = Duration::from_secs(24 * 3600);

/// The timeout of one of these operations. No request waits for them, and a hash may be large; a dead Redis is noticed
/// sooner, by requests and probes.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often other instances may get in between while counts are being moved, before we leave the rest for the next start.
const ROUNDS: usize = 10;

/// The limit type and the comment that a count belongs to.
pub(super) type Series = (LimitType, LabelValue);

/// One series as stored in Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// In the hash.
    pub(super) count: u64,
    /// The part of `count` from before this series restarted at 0 (see [`super`]).
    pub(super) hidden: u64,
}

/// A change of one series in [`Hash::store`].
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) series: Series,
    pub(super) add: u64,
    /// The least value that the field must hold afterwards.
    pub(super) least: u64,
    pub(super) hidden: u64,
}

/// Which process changed a hash last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writer {
    Us,
    Another,
    /// No process yet, or Redis has forgotten.
    Unknown,
}

/// One instance's hash.
#[derive(Debug)]
pub(super) struct Hash {
    link: RedisLink,
    own: String,
    hidden: String,
    marker: String,
    writer: String,
    /// Names this process in `writer`.
    process: String,
    store: Script,
    rename: Script,
}

impl Hash {
    pub(super) fn new(link: RedisLink, instance: &str) -> Self {
        let own = format!("{REFERENCE}:{instance}");
        let process = uuid::Uuid::now_v7().to_string();
        Self {
            link,
            // The braces keep these keys on the server of the hash itself, in Redis Cluster.
            hidden: format!("{{{own}}}:hidden"),
            marker: format!("{{{own}}}:batch:{process}"),
            writer: format!("{{{own}}}:writer"),
            process,
            own,
            store: Script::new(include_str!("../lua/store.lua")),
            rename: Script::new(include_str!("../lua/rename.lua")),
        }
    }

    /// Reads this instance's counts, after claiming the counts that the reference system left and renaming every field
    /// to its label: comments that read alike as labels become one count.
    pub(super) async fn read(&self) -> Result<HashMap<Series, Stored>, Failure> {
        // The reference system knows no cluster, so it cannot have left anything in one.
        let reference = (!self.link.target().is_cluster()).then_some(REFERENCE);
        for _ in 0..ROUNDS {
            let own = self.fields(&self.own).await?;
            let left = match reference {
                Some(reference) => self.fields(reference).await?,
                None => Vec::new(),
            };
            let from_own = moves(&own, From::Ours);
            let from_left = moves(&left, From::Reference);
            if from_own.is_empty() && from_left.is_empty() {
                return Ok(sum(&own, &self.fields(&self.hidden).await?));
            }
            self.move_fields(&self.own, &from_own).await?;
            if let Some(reference) = reference {
                self.move_fields(reference, &from_left).await?;
            }
        }
        let own = self.fields(&self.own).await?;
        Ok(sum(&own, &self.fields(&self.hidden).await?))
    }

    /// Applies changes as batch `number`, once however often it is sent; number 0 adds nothing. Returns which process
    /// had written last.
    pub(super) async fn store(&self, number: u64, changes: &[Change]) -> Result<Writer, Failure> {
        let work = |mut connection| async move {
            let mut call = self.store.prepare_invoke();
            call.key(&self.own).key(&self.marker).key(&self.hidden).key(&self.writer);
            call.arg(number).arg(millis(TIME_TO_LIVE)).arg(millis(MARKER_TIME_TO_LIVE)).arg(&self.process);
            for change in changes {
                let (limit_type, comment) = &change.series;
                call.arg(field(*limit_type, comment)).arg(change.add).arg(change.least).arg(change.hidden);
            }
            call.invoke_async::<Option<String>>(&mut connection).await
        };
        let before = self.link.run(RedisOp::Rejections, PATIENCE, work).await?;
        Ok(match before {
            Some(process) if process == self.process => Writer::Us,
            Some(_) => Writer::Another,
            None => Writer::Unknown,
        })
    }

    async fn fields(&self, key: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Failure> {
        let work = |mut connection: crate::limit::target::Connection| async move {
            connection.hgetall::<_, Vec<(Vec<u8>, Vec<u8>)>>(key).await
        };
        self.link.run(RedisOp::Rejections, PATIENCE, work).await
    }

    async fn move_fields(&self, from: &str, moves: &[(Vec<u8>, String)]) -> Result<(), Failure> {
        if moves.is_empty() {
            return Ok(());
        }
        let work = |mut connection| async move {
            let mut call = self.rename.prepare_invoke();
            call.key(from).key(&self.own).arg(millis(TIME_TO_LIVE));
            for (from, to) in moves {
                call.arg(from).arg(to);
            }
            call.invoke_async::<()>(&mut connection).await
        };
        self.link.run(RedisOp::Rejections, PATIENCE, work).await
    }
}

/// Our field: the type comes first, since a comment may contain colons.
pub(super) fn field(limit_type: LimitType, comment: &LabelValue) -> String {
    format!("{limit_type}:{comment}")
}

/// The hash that a field was found in, and thus its most likely form.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    /// Our own: `rpm:a:b`, or else `a:b:rpm`.
    Ours,
    /// The reference system's: `a:b:rpm`, or else `rpm:a:b`.
    Reference,
}

impl From {
    fn parse(self, field: &str) -> Option<Series> {
        match self {
            Self::Ours => type_first(field).or_else(|| type_last(field)),
            Self::Reference => type_last(field).or_else(|| type_first(field)),
        }
    }
}

fn type_first(field: &str) -> Option<Series> {
    let (limit_type, comment) = field.split_once(':')?;
    Some((LimitType::parse(limit_type)?, LabelValue::new(comment)))
}

fn type_last(field: &str) -> Option<Series> {
    let (comment, limit_type) = field.rsplit_once(':')?;
    Some((LimitType::parse(limit_type)?, LabelValue::new(comment)))
}

/// The fields to move to the name of their series: all of the reference's, and ours that have another name. Fields that
/// are not counts are left alone.
fn moves(fields: &[(Vec<u8>, Vec<u8>)], from: From) -> Vec<(Vec<u8>, String)> {
    let mut moves = Vec::new();
    for (name, count) in fields {
        let text = String::from_utf8_lossy(name);
        match (from.parse(&text), whole(count)) {
            (Some((limit_type, comment)), Some(_)) => {
                let wanted = field(limit_type, &comment);
                if from == From::Reference || wanted.as_bytes() != name.as_slice() {
                    moves.push((name.clone(), wanted));
                }
            }
            _ => tracing::warn!(field = %text, "not a rejection count, left as it is"),
        }
    }
    moves
}

fn sum(own: &[(Vec<u8>, Vec<u8>)], hidden: &[(Vec<u8>, Vec<u8>)]) -> HashMap<Series, Stored> {
    let mut stored: HashMap<Series, Stored> = HashMap::new();
    let series = |name: &[u8]| From::Ours.parse(&String::from_utf8_lossy(name));
    for (name, count) in own {
        if let (Some(series), Some(count)) = (series(name), whole(count)) {
            let entry = stored.entry(series).or_default();
            entry.count = entry.count.saturating_add(count);
        }
    }
    for (name, count) in hidden {
        if let (Some(series), Some(count)) = (series(name), whole(count))
            && let Some(entry) = stored.get_mut(&series)
        {
            entry.hidden = count.min(entry.count);
        }
    }
    stored
}

fn whole(count: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(count).ok()?;
    // Redis counts in signed integers.
    text.parse::<u64>().ok().filter(|&count| i64::try_from(count).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_both_forms() {
        let rpm = |comment: &str| Some((LimitType::Rpm, LabelValue::new(comment)));
        assert_eq!(From::Ours.parse("rpm:team:a"), rpm("team:a"));
        assert_eq!(From::Reference.parse("team:a:rpm"), rpm("team:a"));
        assert_eq!(From::Ours.parse("team:a:rpm"), rpm("team:a"));
        assert_eq!(From::Reference.parse("rpm:team:a"), rpm("team:a"));
        assert_eq!(From::Ours.parse("rpm:"), rpm("unknown"));
        assert_eq!(From::Reference.parse(":rpm"), rpm("unknown"));
        // A comment may look like a type; each form is then read by its own rule.
        assert_eq!(From::Reference.parse("tpm:rpm"), rpm("tpm"));
        assert_eq!(From::Ours.parse("rpm:tpm"), rpm("tpm"));
        assert_eq!(From::Ours.parse("team"), None);
    }
}
