//! Reading a scrape: the text exposition format of Prometheus, as far as the demo needs it.

/// The samples of one scrape.
#[derive(Debug, Clone, Default)]
pub struct Scrape {
    samples: Vec<Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

impl Scrape {
    /// Reads the exposition text; lines that are not samples are skipped.
    pub fn parse(text: &str) -> Self {
        Self { samples: text.lines().filter_map(parse_line).collect() }
    }

    /// Whether there is any sample of this name.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|sample| sample.name == name)
    }

    /// The sum of all samples of this name that carry these labels; 0 without any.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.sum_where(name, |label| labels.iter().all(|(key, value)| label(key) == Some(value)))
    }

    /// The sum of all samples of this name whose labels `include` takes; it is given a look-up by label name.
    pub fn sum_where<'a>(
        &'a self,
        name: &str,
        include: impl Fn(&dyn Fn(&str) -> Option<&'a str>) -> bool,
    ) -> f64 {
        let chosen = self.samples.iter().filter(|sample| sample.name == name);
        chosen
            .filter(|sample| include(&|key| sample.label(key)))
            .map(|sample| sample.value)
            .fold(0.0, |sum, value| sum + value)
    }

    /// The `share`-quantile of a histogram's samples since `earlier`, over all its series, interpolated within the bucket as
    /// PromQL's `histogram_quantile` does; `None` without new samples.
    pub fn quantile(&self, histogram: &str, share: f64, earlier: &Self) -> Option<f64> {
        let name = format!("{histogram}_bucket");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for (scrape, sign) in [(self, 1.0), (earlier, -1.0)] {
            for sample in scrape.samples.iter().filter(|sample| sample.name == name) {
                let Some(bound) = sample.label("le").and_then(|le| le.parse().ok()) else { continue };
                match buckets.iter_mut().find(|(known, _)| *known == bound) {
                    Some((_, count)) => *count += sign * sample.value,
                    None => buckets.push((bound, sign * sample.value)),
                }
            }
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let total = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
        let rank = share * total;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if count >= rank {
                // A value in the unbounded bucket is only known to be above the last bound.
                let inside = if count > below { (rank - below) / (count - below) } else { 1.0 };
                return Some(if bound.is_finite() { lower + (bound - lower) * inside } else { lower });
            }
            (lower, below) = (bound, count);
        }
        None
    }
}

fn parse_line(line: &str) -> Option<Sample> {
    let line = line.trim_start();
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let name_end = line.find(['{', ' ', '\t'])?;
    let (name, rest) = line.split_at(name_end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => parse_labels(rest)?,
        None => (Vec::new(), rest),
    };
    let value = match rest.split_whitespace().next()? {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        number => number.parse().ok()?,
    };
    Some(Sample { name: name.to_owned(), labels, value })
}

/// Reads `a="b",c="d"}` and returns the rest; values may escape a backslash, a quote and a line feed.
fn parse_labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut characters = value.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, other) => text.push(other),
            }
        };
        labels.push((name.to_owned(), text));
        rest = value.get(end + 1..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{key="a\"b\\c\n,}=é",code="200"} 3
requests_total{key="other",code="200"} 4 1700000000
requests_total{key="other",code="500"} 1.5e0
up 1
odd NaN
latency_bucket{le="0.1"} 10
latency_bucket{le="0.5"} 30
latency_bucket{le="+Inf"} 40
latency_count 40
"#;

    #[test]
    fn samples_are_summed_by_their_labels() {
        let scrape = Scrape::parse(TEXT);
        assert_eq!(scrape.sum("requests_total", &[]), 8.5);
        assert_eq!(scrape.sum("requests_total", &[("code", "200")]), 7.0);
        assert_eq!(scrape.sum("requests_total", &[("key", "a\"b\\c\n,}=é")]), 3.0);
        assert_eq!(scrape.sum_where("requests_total", |label| label("key") != Some("other")), 3.0);
        assert_eq!(scrape.sum("nothing", &[]), 0.0);
        assert!(scrape.has("up") && !scrape.has("requests"));
        assert!(scrape.sum("odd", &[]).is_nan());
    }

    #[test]
    fn quantiles_are_interpolated_and_can_be_of_a_period() {
        let scrape = Scrape::parse(TEXT);
        let none = Scrape::default();
        assert_eq!(scrape.quantile("latency", 0.125, &none), Some(0.05));
        assert_eq!(scrape.quantile("latency", 0.5, &none), Some(0.1 + 0.4 * 0.5));
        assert_eq!(
            scrape.quantile("latency", 0.99, &none),
            Some(0.5),
            "all that is known of the last bucket"
        );
        assert_eq!(scrape.quantile("latency", 0.5, &scrape), None, "nothing new");
        let earlier = Scrape::parse(
            "latency_bucket{le=\"0.1\"} 10\nlatency_bucket{le=\"0.5\"} 10\nlatency_bucket{le=\"+Inf\"} 10",
        );
        assert_eq!(scrape.quantile("latency", 0.5, &earlier), Some(0.1 + 0.4 * 0.75));
    }

    #[test]
    fn broken_lines_are_passed_over() {
        for line in ["x{a=\"b} 1", "x{a} 1", "x", "x{} ", "x{a=\"b\"} y", "{", "x{a=\"\\"] {
            assert!(!Scrape::parse(line).has("x"), "{line}");
        }
        assert_eq!(Scrape::parse("x{} 2").sum("x", &[]), 2.0);
    }
}
