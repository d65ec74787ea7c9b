//! A gateway to test with.

pub mod app;
pub mod database;
pub mod raw;
pub mod request;
pub mod scrape;

pub use app::TestApp;
