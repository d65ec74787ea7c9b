pub mod provider;
pub mod scrape;
pub mod traffic;
