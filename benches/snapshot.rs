//! The cost of finding a key among 10, 10 k and 1 M of them, and a model among 200: `cargo bench --bench snapshot`.
//!
//! All keys and models are looked up, in a random order, so that with a million none is cached from a recent look-up.
//! `hash_key` comes on top: its cost does not depend on the number of keys.

#![expect(clippy::expect_used, reason = "a bench that cannot be set up has nothing to measure")]

#[path = "support/say.rs"]
mod say;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use nexusgate::domain::key::hash_key;
use nexusgate::store::crypt::{Cipher, EncryptionKey};
use nexusgate::store::{Settings, Snapshot, SnapshotStore, connect, migrate};
use rand::seq::SliceRandom as _;
use say::say;
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

/// Rows in one insert: four variables each.
const PAGE: usize = 5_000;

fn key(number: usize) -> String {
    format!("sk-bench-{number:032}")
}

/// A database with this number of keys, and 200 models at four providers.
async fn filled(keys: usize) -> DatabaseConnection {
    let database = connect(&Settings::new("sqlite::memory:")).await.expect("a database");
    migrate::up(&database).await.expect("a schema");
    let now = "'2026-11-25T00:00:00+00:00'";
    for provider in 1..=4 {
        let sql = format!(
            "INSERT INTO providers (id, name, kind, base_url, source, created_at, updated_at)
             VALUES ({provider}, 'provider-{provider}', 'openai', 'http://127.0.0.1:9/v1', 'manual', {now}, {now})"
        );
        database.execute_unprepared(&sql).await.expect("a provider");
    }
    for model in 0..200 {
        let sql = format!(
            "INSERT INTO models (provider_id, system_name, model_type, weight, source, created_at, updated_at)
             VALUES ({}, 'model-{model}', 'chat', 1, 'manual', {now}, {now})",
            model % 4 + 1
        );
        database.execute_unprepared(&sql).await.expect("a model");
    }
    let numbers: Vec<usize> = (0..keys).collect();
    for page in numbers.chunks(PAGE) {
        let rows =
            vec![format!("(?, 'sealed', 'sk-bench', ?, 0, 'manual', {now}, {now})"); page.len()].join(", ");
        let sql = format!(
            "INSERT INTO api_keys (key_hash, key_encrypted, key_prefix, comment, revoked, source, created_at, updated_at)
             VALUES {rows}"
        );
        let values: Vec<sea_orm::Value> = page
            .iter()
            .flat_map(|number| {
                let hash: &[u8] = &hash_key(key(*number));
                [hash.to_vec().into(), format!("team-{}", number % 50).into()]
            })
            .collect();
        let insert = Statement::from_sql_and_values(DbBackend::Sqlite, sql, values);
        database.execute_raw(insert).await.expect("keys");
    }
    database
}

fn benches(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let cipher = Arc::new(Cipher::new(&EncryptionKey::random()));
    let mut group = criterion.benchmark_group("snapshot");
    group.sample_size(20).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for keys in [10, 10_000, 1_000_000] {
        let (store, took) = runtime.block_on(async {
            let database = filled(keys).await;
            let started = Instant::now();
            let snapshot = Snapshot::load(&database, &cipher).await.expect("a snapshot");
            let took = started.elapsed();
            assert_eq!(snapshot.keys().len(), keys);
            let store = SnapshotStore::new(cipher.clone());
            store.replace(snapshot);
            (store, took)
        });
        say(format_args!("{keys} keys: read from the database in {took:?}"));
        // As a request does: the snapshot is taken, the key looked up and held, the model looked up.
        let mut given: Vec<_> = (0..keys).map(|number| hash_key(key(number))).collect();
        given.shuffle(&mut rand::rng());
        let mut next = given.iter().cycle();
        group.bench_function(format!("find_key/{keys}"), |b| {
            b.iter(|| {
                let hash = next.next().expect("no end");
                store.load_full().find_key(black_box(hash)).cloned().expect("a known key")
            });
        });
        let mut models: Vec<_> = (0..200).map(|number| format!("model-{number}")).collect();
        models.shuffle(&mut rand::rng());
        let mut next = models.iter().cycle();
        group.bench_function(format!("resolve/{keys}"), |b| {
            b.iter(|| {
                let model = next.next().expect("no end");
                store.load_full().resolve(black_box(model)).map(<[_]>::len).expect("a known model")
            });
        });
    }
    let given = key(7);
    group.bench_function("hash_key", |b| b.iter(|| hash_key(black_box(&given))));
    group.finish();
}

criterion_group!(group, benches);
criterion_main!(group);
