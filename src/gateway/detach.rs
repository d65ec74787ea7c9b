//! Work that goes on when the client has left.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::Gateway;
use super::scope::RequestScope;

/// Runs a request. When the client leaves, hyper drops the handler, and with it this; the request then goes on by itself
/// for a while (`DRAIN_ON_DISCONNECT`), because the provider charges for it all the same and its usage must be known.
pub(super) struct Attached<F: Future + Send + 'static>
where
    F::Output: Send,
{
    future: Option<Pin<Box<F>>>,
    scope: Arc<RequestScope>,
    gateway: Gateway,
}

impl<F: Future + Send + 'static> Attached<F>
where
    F::Output: Send,
{
    /// Runs what `begin` returns, built directly in its box: building it on the stack would copy several kilobytes,
    /// hardly any of them used yet.
    pub(super) fn new(begin: impl FnOnce() -> F, scope: Arc<RequestScope>, gateway: Gateway) -> Self {
        let future = Box::write(Box::new_uninit(), begin());
        Self { future: Some(Box::into_pin(future)), scope, gateway }
    }
}

impl<F: Future + Send + 'static> Future for Attached<F>
where
    F::Output: Send,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let output = std::task::ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(output)
    }
}

impl<F: Future + Send + 'static> Drop for Attached<F>
where
    F::Output: Send,
{
    fn drop(&mut self) {
        let Some(future) = self.future.take() else { return };
        // At the end of a shutdown it is the gateway that leaves, not the client.
        if std::thread::panicking() || self.gateway.abandoned().is_cancelled() {
            return;
        }
        let left = self.scope.client_left();
        if self.gateway.is_patient() {
            let gateway = self.gateway.clone();
            self.gateway.tracker().spawn(async move {
                tokio::select! {
                    biased;
                    // An answer is dropped at once: the client that would read it has left.
                    answer = future => drop(answer),
                    () = gateway.patience(left) => {}
                }
            });
        }
    }
}
