//! Assertions on a scrape that read like sentences.

use nexusgate::demo::scrape::Scrape as Samples;

/// One reading of `/metrics`.
pub struct Scrape {
    pub text: String,
    samples: Samples,
}

impl Scrape {
    pub fn new(text: String) -> Self {
        Self { samples: Samples::parse(&text), text }
    }

    pub fn metric<'a>(&'a self, name: &'a str) -> Metric<'a> {
        Metric { scrape: self, name, labels: Vec::new() }
    }

    /// The number of samples.
    pub fn lines(&self) -> usize {
        self.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count()
    }
}

/// The samples of one name, narrowed by labels.
pub struct Metric<'a> {
    scrape: &'a Scrape,
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
}

impl<'a> Metric<'a> {
    pub fn label(mut self, name: &'a str, value: &'a str) -> Self {
        self.labels.push((name, value));
        self
    }

    /// The sum over all series that carry the labels.
    pub fn value(&self) -> f64 {
        self.scrape.samples.sum(self.name, &self.labels)
    }

    pub fn is(&self, expected: f64) -> bool {
        (self.value() - expected).abs() < 1e-9
    }

    /// Whether any sample of this name exists.
    pub fn exists(&self) -> bool {
        self.scrape.samples.has(self.name)
    }
}
