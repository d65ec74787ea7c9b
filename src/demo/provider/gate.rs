//! A gate that scripted answers wait at, so that a test decides when they go on.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// Closed at first. Clones are the same gate.
///
/// A test holds an answer at the gate, waits until the request has [`reached`](Self::reached) it, looks at the world in
/// that state, and [`open`](Self::open)s it: no guesswork with sleeps.
#[derive(Clone)]
pub struct Gate {
    shared: Arc<Shared>,
}

struct Shared {
    open: watch::Sender<bool>,
    arrivals: watch::Sender<usize>,
}

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self { shared: Arc::new(Shared { open: watch::Sender::new(false), arrivals: watch::Sender::new(0) }) }
    }

    /// Lets everyone through, now and later.
    pub fn open(&self) {
        self.shared.open.send_replace(true);
    }

    /// Waits until at least `count` answers have arrived at this gate since it was made.
    pub async fn reached(&self, count: usize) {
        // The sender lives in `self`, so the channel cannot close while we wait.
        let _ = self.shared.arrivals.subscribe().wait_for(|arrived| *arrived >= count).await;
    }

    /// Announces an arrival and waits until the gate is open.
    pub(super) async fn pass(self) {
        self.shared.arrivals.send_modify(|arrived| *arrived += 1);
        let _ = self.shared.open.subscribe().wait_for(|open| *open).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open", &*self.shared.open.borrow()).finish()
    }
}
