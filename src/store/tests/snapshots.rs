use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;

use super::on_each;
use crate::domain::key::{Limits, hash_key};
use crate::domain::label::ModelType;
use crate::domain::provider::ProviderKind;
use crate::store::keys::{self, NewApiKey};
use crate::store::models::{self, NewModel};
use crate::store::providers::{self, NewProvider};
use crate::store::{ActiveCounts, Cipher, Snapshot, SnapshotStore, Source, counts};

#[tokio::test]
async fn a_snapshot_holds_what_the_request_path_needs() {
    on_each(async |t| {
        let store = SnapshotStore::new(t.cipher.clone());
        assert!(store.load().find_key(&hash_key("sk-any")).is_none());
        let p1 = NewProvider::new("one", ProviderKind::OpenAi, "https://one.example/v1", Source::Manual);
        let p1 = providers::create(&t.db, &t.cipher, &p1).await.unwrap();
        let p2 = NewProvider::new("two", ProviderKind::Anthropic, "https://two.example", Source::Manual);
        let p2 = providers::create(&t.db, &t.cipher, &p2).await.unwrap();
        for (provider, name, kind, weight) in [
            (p1.id, "m", ModelType::Chat, 3),
            (p2.id, "m", ModelType::Chat, 1),
            (p1.id, "e", ModelType::Embedding, 1),
        ] {
            let remote_id = (provider == p2.id).then(|| "remote-m".to_owned());
            let new = NewModel { weight, remote_id, ..NewModel::new(name, kind, Source::Manual) };
            models::create(&t.db, provider, &new).await.unwrap();
        }
        let gone = models::create(&t.db, p2.id, &NewModel::new("gone", ModelType::Chat, Source::Manual))
            .await
            .unwrap();
        models::delete(&t.db, gone.id).await.unwrap();
        let new = NewApiKey {
            comment: Some("team".to_owned()),
            limits: Limits { rpm: Some(60), tpm: None },
            allowed_models: Some(vec!["m".to_owned()]),
            ..NewApiKey::new(Source::Manual)
        };
        let (living, living_secret) = keys::create(&t.db, &t.cipher, &new).await.unwrap();
        let (_, expired) =
            keys::create(&t.db, &t.cipher, &NewApiKey { expires_at: Some(Utc::now()), ..new.clone() })
                .await
                .unwrap();
        let nameless = NewApiKey { comment: None, ..new.clone() };
        let (revoked_key, revoked) = keys::create(&t.db, &t.cipher, &nameless).await.unwrap();
        keys::revoke(&t.db, revoked_key.id).await.unwrap();
        let (deleted_key, deleted) = keys::create(&t.db, &t.cipher, &new).await.unwrap();
        keys::delete(&t.db, deleted_key.id).await.unwrap();

        let snapshot = store.refresh(&t.db).await.unwrap();
        assert!(snapshot.problems().is_empty());
        let find = |secret: &crate::domain::key::Secret| snapshot.find_key(&hash_key(secret.expose()));
        let key = find(&living_secret).unwrap();
        assert_eq!((key.id, key.comment.as_str(), key.limits), (living.id, "team", new.limits));
        assert!(key.may_use("m") && !key.may_use("e") && !key.revoked && !key.is_expired(Utc::now()));
        assert!(find(&expired).unwrap().is_expired(Utc::now()));
        assert!(find(&revoked).unwrap().revoked);
        assert_eq!(find(&revoked).unwrap().comment.as_str(), "unknown");
        assert!(find(&deleted).is_none());
        let shared = [key.comment.as_str().as_ptr(), find(&expired).unwrap().comment.as_str().as_ptr()];
        assert_eq!(shared[0], shared[1], "equal comments share their text");

        let targets = snapshot.resolve("m").unwrap();
        let seen: Vec<_> =
            targets.iter().map(|t| (t.provider.name.as_str(), t.remote_id.as_str(), t.weight)).collect();
        assert_eq!(seen, [("one", "m", 3), ("two", "remote-m", 1)]);
        assert!(snapshot.resolve("gone").is_none() && snapshot.resolve("M").is_none());
        assert_eq!(snapshot.models().len(), 2);

        let active = ActiveCounts { keys: 1, providers: 2, chat_models: 2, embedding_models: 1 };
        assert_eq!(counts(&t.db).await.unwrap(), active);
        assert_eq!(snapshot.active_counts(Utc::now()), active);

        // A request in flight keeps the snapshot it began with.
        providers::delete(&t.db, p2.id).await.unwrap();
        let later = store.refresh(&t.db).await.unwrap();
        assert_eq!(later.resolve("m").unwrap().len(), 1);
        assert_eq!(snapshot.resolve("m").unwrap().len(), 2);
        assert_eq!(counts(&t.db).await.unwrap(), later.active_counts(Utc::now()));
        // A model created while its provider is being deleted is as unusable as one created before.
        t.sql("UPDATE models SET deleted_at = NULL").await;
        let left = store.refresh(&t.db).await.unwrap();
        assert_eq!(counts(&t.db).await.unwrap(), left.active_counts(Utc::now()));
    })
    .await;
}

#[tokio::test]
async fn a_failed_reading_is_owed_until_one_succeeds() {
    on_each(async |t| {
        let store = SnapshotStore::new(t.cipher.clone());
        store.refresh(&t.db).await.unwrap();
        assert!(!store.is_behind());
        t.sql("ALTER TABLE providers RENAME TO elsewhere").await;
        store.refresh(&t.db).await.unwrap_err();
        assert!(store.is_behind());
        t.sql("ALTER TABLE elsewhere RENAME TO providers").await;
        store.refresh(&t.db).await.unwrap();
        assert!(!store.is_behind());
    })
    .await;
}

#[tokio::test]
async fn an_unusable_entry_is_named_and_the_others_serve() {
    on_each(async |t| {
        for name in ["good", "bad-url", "bad-kind"] {
            let new = NewProvider::new(name, ProviderKind::OpenAi, "https://one.example/v1", Source::Manual);
            let made = providers::create(&t.db, &t.cipher, &new).await.unwrap();
            models::create(&t.db, made.id, &NewModel::new("m", ModelType::Chat, Source::Manual))
                .await
                .unwrap();
        }
        let other = Cipher::new(&crate::store::crypt::EncryptionKey::random());
        let new = NewProvider {
            api_key: Some(crate::domain::key::Secret::new("x")),
            ..NewProvider::new("bad-key", ProviderKind::OpenAi, "https://one.example/v1", Source::Manual)
        };
        providers::create(&t.db, &other, &new).await.unwrap();
        t.sql("UPDATE providers SET base_url = 'nonsense' WHERE name = 'bad-url'").await;
        t.sql("UPDATE providers SET kind = 'telepathy' WHERE name = 'bad-kind'").await;
        let snapshot = Snapshot::load(&t.db, &t.cipher).await.unwrap();
        assert_eq!(snapshot.problems().len(), 3, "{:?}", snapshot.problems());
        assert!(snapshot.problems().iter().all(|problem| problem.starts_with("provider \"bad-")));
        assert_eq!(snapshot.resolve("m").unwrap().len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_keys_load_without_holding_up_the_runtime() {
    on_each(async |t| {
        let series = if t.is_postgres() {
            "SELECT n FROM generate_series(1, 100000) AS n"
        } else {
            "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 100000) SELECT n FROM s"
        };
        let hash = if t.is_postgres() { "sha256(n::text::bytea)" } else { "randomblob(32)" };
        let now = if t.is_postgres() { "now()" } else { "'2026-01-01T00:00:00+00:00'" };
        t.sql(&format!(
            "INSERT INTO api_keys (key_hash, key_encrypted, key_prefix, comment, revoked, source, created_at, updated_at)
             SELECT {hash}, 'v1.x.y', 'sk-', 'team ' || (n % 12), false, 'manual', {now}, {now} FROM ({series}) AS s"
        ))
        .await;
        let store = Arc::new(SnapshotStore::new(t.cipher.clone()));
        // A heartbeat on the same runtime: its longest pause is the time that other tasks would have waited.
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let heartbeat = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            let mut last = Instant::now();
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                tokio::time::sleep(Duration::from_millis(1)).await;
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            longest
        });
        let started = Instant::now();
        let snapshot = store.refresh(&t.db).await.unwrap();
        let took = started.elapsed();
        stop.send(()).unwrap();
        let longest = heartbeat.await.unwrap();
        assert_eq!(snapshot.keys().len(), 100_000);
        let texts: std::collections::HashSet<_> = snapshot.keys().map(|key| key.comment.as_str().as_ptr()).collect();
        assert_eq!(texts.len(), 12, "comments are shared");
        // Generous: an unoptimised build on a busy machine.
        assert!(longest < Duration::from_secs(2) && took < Duration::from_secs(60), "{longest:?} of {took:?}");
    })
    .await;
}
