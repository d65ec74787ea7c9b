//! A connection that can be made slow.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// Forwards bytes to a port of this machine, with a configurable delay.
pub struct SlowProxy {
    pub port: u16,
    delay_ms: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl SlowProxy {
    pub async fn to(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let delay_ms = Arc::new(AtomicU64::new(0));
        let delay = Arc::clone(&delay_ms);
        let task = tokio::spawn(async move {
            let mut copies = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                while copies.try_join_next().is_some() {}
                // A client that connects to a server that is down is disconnected, as by the server's own machine.
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)).await else { continue };
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                copies.spawn(copy(near_read, far_write, Arc::clone(&delay)));
                copies.spawn(copy(far_read, near_write, Arc::default()));
            }
        });
        Self { port, delay_ms, _task: AbortOnDropHandle::new(task) }
    }

    /// The extra delay of everything on its way to the server.
    pub fn delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).expect("a short delay");
        self.delay_ms.store(millis, Ordering::SeqCst);
    }
}

async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay_ms: Arc<AtomicU64>) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let delay = delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
