//! A real Prometheus that scrapes the replicas every second.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

use super::eventually;
use super::gateway::Replica;
use super::process::{Process, free_port};

/// A running Prometheus; each replica is an `instance` under its own name.
pub struct Prometheus {
    process: Process,
    port: u16,
    http: reqwest::Client,
    _folder: TempDir,
}

/// The stored samples of one series: time in seconds, and value.
pub type Samples = Vec<(f64, f64)>;

impl Prometheus {
    pub async fn of(replicas: &[Replica]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let targets: String = (replicas.iter())
            .map(|replica| {
                format!(
                    "      - targets: [\"127.0.0.1:{}\"]\n        labels: {{ instance: \"{}\" }}\n",
                    replica.port, replica.name
                )
            })
            .collect();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s }}\nscrape_configs:\n  - job_name: nexusgate\n    static_configs:\n{targets}"
        );
        let path = folder.path().join("prometheus.yml");
        std::fs::write(&path, config).expect("the settings file");
        let port = free_port();
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", path.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::spawn(&mut command, &folder.path().join("log"));
        let mut prometheus = Self { process, port, http: reqwest::Client::new(), _folder: folder };
        prometheus.sees(replicas.len()).await;
        prometheus
    }

    async fn sees(&mut self, up: usize) {
        eventually("Prometheus scrapes every replica", async || {
            assert!(self.process.is_running(), "Prometheus ended:\n{}", self.process.output());
            self.value("count(up == 1)").await == Some(up as f64)
        })
        .await;
    }

    async fn query(&self, query: &str, at: Option<f64>) -> Option<Vec<Value>> {
        let url = format!("http://127.0.0.1:{}/api/v1/query", self.port);
        let mut parameters = vec![("query", query.to_owned())];
        parameters.extend(at.map(|at| ("time", format!("{at:.3}"))));
        let url = reqwest::Url::parse_with_params(&url, &parameters).expect("a URL");
        let mut answer: Value = self.http.get(url).send().await.ok()?.json().await.ok()?;
        match answer["data"]["result"].take() {
            Value::Array(result) => Some(result),
            _ => None,
        }
    }

    /// The one value of an expression now.
    pub async fn value(&self, query: &str) -> Option<f64> {
        self.value_at(query, None).await
    }

    /// The one value of an expression at a time.
    pub async fn value_at(&self, query: &str, at: Option<f64>) -> Option<f64> {
        let result = self.query(query, at).await?;
        result.first()?["value"][1].as_str()?.parse().ok()
    }

    /// Every stored sample of a selector, by the labels of its series.
    pub async fn samples(&self, selector: &str) -> BTreeMap<String, Samples> {
        let result = self.query(&format!("{selector}[1h]"), None).await.expect("an answer");
        let samples = |series: &Value| {
            let values = series["values"].as_array().expect("samples").iter();
            values
                .map(|pair| {
                    let value = pair[1].as_str().and_then(|text| text.parse().ok());
                    (pair[0].as_f64().expect("a time"), value.expect("a value"))
                })
                .collect()
        };
        result.iter().map(|series| (series["metric"].to_string(), samples(series))).collect()
    }
}

/// A counter's growth over its samples: a fall is a reset, after which it grew from 0.
pub fn growth(samples: &[(f64, f64)]) -> f64 {
    samples.windows(2).map(|pair| if pair[1].1 < pair[0].1 { pair[1].1 } else { pair[1].1 - pair[0].1 }).sum()
}
