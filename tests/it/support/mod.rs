//! A gateway to test with.

pub mod app;
pub mod database;
pub mod raw;
pub mod request;
pub mod scrape;

pub use app::TestApp;

/// A program that is ended with the test, however that ends.
pub struct Started(pub std::process::Child);

impl std::ops::Deref for Started {
    type Target = std::process::Child;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl std::ops::DerefMut for Started {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // One that has ended by itself cannot be ended again, and need not.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
