//! Upstreams: URLs, credentials, sending, and the meaning of failures.
//!
//! * [`endpoint`](mod@endpoint): the URL of an operation, for each kind of provider.
//! * [`destination`]: the parts of a URL that every request to it needs.
//! * [`headers`]: which of the client's headers go along, and the provider's credentials.
//! * [`client`]: the shared HTTP client, directly or through a proxy.
//! * [`trust`]: the trusted certificate authorities.
//! * [`classify`]: labels of outcomes, and whether a retry may help.

pub mod classify;
pub mod client;
pub mod destination;
pub mod endpoint;
pub mod headers;
mod http1;
mod pool;
mod proxy;
mod trust;

pub use classify::{is_retriable, outcome_of_status};
pub use client::{SendError, UpstreamClient};
pub use destination::Destination;
pub use endpoint::{Endpoints, Operation, endpoint};
pub use headers::UpstreamHeaders;
pub use pool::{BodyError, UpstreamBody, UpstreamRequest};
pub use trust::{InvalidCaFile, Trust};
