//! Tests of the whole module, with real `redis-server` processes.

mod chaos;
mod coordination;
mod memory;
mod redis;
mod rejections;
mod server;
mod targets;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Observer;
use crate::domain::key::Limits;
use crate::domain::label::{LabelValue, LimitType, RedisOp};

/// The longest a test waits for a condition. Generous: the machine may be busy with builds.
const PATIENCE: Duration = Duration::from_secs(20);

fn limits(rpm: impl Into<Option<u32>>, tpm: impl Into<Option<u32>>) -> Limits {
    Limits { rpm: rpm.into(), tpm: tpm.into() }
}

fn burst(minutes: f64) -> super::Burst {
    super::Burst::new(minutes).unwrap()
}

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Records the calls of an [`Observer`].
#[derive(Default, Clone)]
struct Witness {
    exposed: Arc<Mutex<HashMap<(LimitType, String), u64>>>,
    errors: Arc<Mutex<HashMap<RedisOp, u64>>>,
    outages: Arc<AtomicU64>,
    recoveries: Arc<AtomicU64>,
    name_shared: Arc<AtomicBool>,
}

impl Witness {
    fn observer(&self) -> Observer {
        let (exposed, errors) = (Arc::clone(&self.exposed), Arc::clone(&self.errors));
        let (outages, recoveries) = (Arc::clone(&self.outages), Arc::clone(&self.recoveries));
        let name_shared = Arc::clone(&self.name_shared);
        Observer {
            instance_shared: Arc::new(move || name_shared.store(true, Ordering::SeqCst)),
            rejections_exposed: Arc::new(move |limit_type, comment: &LabelValue, count| {
                *exposed.lock().entry((limit_type, comment.to_string())).or_default() += count;
            }),
            redis_up: Arc::new(move |up| {
                let counter = if up { &recoveries } else { &outages };
                counter.fetch_add(1, Ordering::SeqCst);
            }),
            redis_error: Arc::new(move |op| *errors.lock().entry(op).or_default() += 1),
            ..Observer::default()
        }
    }

    fn exposed(&self, limit_type: LimitType, comment: &str) -> u64 {
        self.exposed.lock().get(&(limit_type, comment.to_owned())).copied().unwrap_or_default()
    }

    fn all_exposed(&self) -> u64 {
        self.exposed.lock().values().sum()
    }

    /// Failures other than those of reconnecting.
    fn failures(&self) -> u64 {
        self.errors.lock().iter().filter(|(op, _)| **op != RedisOp::Connect).map(|(_, count)| count).sum()
    }

    /// Not counting the initial report that the link is not up yet.
    fn outages(&self) -> u64 {
        self.outages.load(Ordering::SeqCst).saturating_sub(1)
    }

    fn name_shared(&self) -> bool {
        self.name_shared.load(Ordering::SeqCst)
    }

    fn recoveries(&self) -> u64 {
        self.recoveries.load(Ordering::SeqCst)
    }
}
