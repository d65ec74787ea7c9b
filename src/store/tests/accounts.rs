use std::collections::HashSet;
use std::time::Duration;

use chrono::{SubsecRound as _, Utc};

use super::{TestDb, on_each};
use crate::domain::key::{Limits, Secret};
use crate::domain::label::ModelType;
use crate::domain::model::Slo;
use crate::domain::provider::ProviderKind;
use crate::domain::usage::Price;
use crate::store::declared::{self, Applied, Declared, DeclaredModel};
use crate::store::keys::{self, ApiKeyChange, KeyFilter, NewApiKey, Upserted};
use crate::store::models::{self, ModelChange, ModelFilter, NewModel};
use crate::store::providers::{self, NewProvider, ProviderChange, StoredProvider};
use crate::store::{Source, StoreError};

fn provider(name: &str) -> NewProvider {
    NewProvider::new(name, ProviderKind::OpenAi, "https://api.example.com/v1", Source::Manual)
}

fn model(name: &str) -> NewModel {
    NewModel::new(name, ModelType::Chat, Source::Manual)
}

async fn create(t: &TestDb, name: &str) -> StoredProvider {
    providers::create(&t.db, &t.cipher, &provider(name)).await.unwrap()
}

fn is_duplicate<T: std::fmt::Debug>(result: Result<T, StoreError>, of: &str) {
    match result.unwrap_err() {
        StoreError::Duplicate { field } => assert_eq!(field, of),
        other => panic!("{other}"),
    }
}

fn is_invalid<T: std::fmt::Debug>(result: Result<T, StoreError>, of: &str) {
    match result.unwrap_err() {
        StoreError::Invalid { field, .. } => assert_eq!(field, of),
        other => panic!("{other}"),
    }
}

#[test]
fn generated_keys_are_long_random_and_url_safe() {
    let keys: HashSet<String> = (0..1000).map(|_| keys::generate().expose().to_owned()).collect();
    assert_eq!(keys.len(), 1000);
    for key in keys {
        let random = key.strip_prefix("sk-").unwrap();
        assert_eq!(random.len(), 32);
        assert!(random.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{key}");
    }
}

#[tokio::test]
async fn a_key_is_kept_as_it_was_made() {
    on_each(async |t| {
        let new = NewApiKey {
            comment: Some("team:\"a\\b\"\n,{}=é".to_owned()),
            limits: Limits { rpm: Some(60), tpm: Some(u32::MAX) },
            expires_at: Some(Utc::now()),
            allowed_models: Some(vec!["gpt-4o".to_owned(), "é".to_owned()]),
            external_id: Some("k8s/a/b".to_owned()),
            ..NewApiKey::new(Source::Manual)
        };
        let (made, secret) = keys::create(&t.db, &t.cipher, &new).await.unwrap();
        assert_eq!(made.comment, new.comment);
        assert_eq!(made.limits, new.limits);
        assert_eq!(made.expires_at, new.expires_at.map(|at| at.trunc_subsecs(6)));
        assert_eq!(made.allowed_models, new.allowed_models);
        assert_eq!(made.external_id, new.external_id);
        assert!(secret.expose().starts_with(&made.prefix) && made.prefix.len() == 7 && !made.revoked);
        assert_eq!(made.reveal(&t.cipher).unwrap(), secret);
        assert_eq!(keys::get(&t.db, made.id).await.unwrap(), made);
        assert_eq!(keys::find(&t.db, secret.expose()).await.unwrap(), made);
        assert_eq!(keys::find(&t.db, &made.id.to_string()).await.unwrap(), made);
        assert_eq!(keys::find_by_external_id(&t.db, "k8s/a/b").await.unwrap(), made);
        assert!(matches!(keys::find(&t.db, "sk-other").await, Err(StoreError::NotFound)));
        assert!(matches!(keys::get(&t.db, made.id + 1).await, Err(StoreError::NotFound)));
    })
    .await;
}

#[tokio::test]
async fn keys_are_listed_changed_revoked_and_deleted() {
    on_each(async |t| {
        let mut ids = Vec::new();
        for source in [Source::Manual, Source::Operator, Source::Manual] {
            ids.push(keys::create(&t.db, &t.cipher, &NewApiKey::new(source)).await.unwrap().0.id);
        }
        let listed = async |filter: KeyFilter| -> Vec<i64> {
            keys::list(&t.db, &filter).await.unwrap().iter().map(|key| key.id).collect()
        };
        let change = ApiKeyChange {
            comment: Some(Some("new".to_owned())),
            rpm: Some(Some(7)),
            allowed_models: Some(Some(vec!["m".to_owned()])),
            ..ApiKeyChange::default()
        };
        let changed = keys::update(&t.db, ids[0], change).await.unwrap();
        assert_eq!(
            (changed.comment.as_deref(), changed.limits.rpm, changed.limits.tpm),
            (Some("new"), Some(7), None)
        );
        let cleared = ApiKeyChange { rpm: Some(None), allowed_models: Some(None), ..ApiKeyChange::default() };
        let cleared = keys::update(&t.db, ids[0], cleared).await.unwrap();
        assert_eq!((cleared.limits.rpm, cleared.allowed_models), (None, None));
        assert_eq!(cleared.comment.as_deref(), Some("new"));

        assert!(keys::revoke(&t.db, ids[0]).await.unwrap().revoked);
        assert_eq!(listed(KeyFilter::default()).await, ids[1..]);
        assert_eq!(listed(KeyFilter { include_revoked: true, ..KeyFilter::default() }).await, ids);
        assert_eq!(
            listed(KeyFilter { source: Some(Source::Operator), ..KeyFilter::default() }).await,
            ids[1..2]
        );
        let page = KeyFilter { include_revoked: true, offset: 1, limit: Some(1), ..KeyFilter::default() };
        assert_eq!(listed(page).await, ids[1..2]);

        keys::delete(&t.db, ids[1]).await.unwrap();
        assert!(matches!(keys::delete(&t.db, ids[1]).await, Err(StoreError::NotFound)));
        assert!(matches!(keys::revoke(&t.db, ids[1]).await, Err(StoreError::NotFound)));
        assert_eq!(
            listed(KeyFilter { include_revoked: true, ..KeyFilter::default() }).await,
            [ids[0], ids[2]]
        );

        let (early, late) = (Utc::now() - Duration::from_secs(60), Utc::now());
        keys::mark_seen(&t.db, &ids, late).await.unwrap();
        keys::mark_seen(&t.db, &ids, early).await.unwrap();
        assert_eq!(keys::get(&t.db, ids[2]).await.unwrap().last_seen_at, Some(late.trunc_subsecs(6)));
    })
    .await;
}

#[tokio::test]
async fn what_must_be_unique_is() {
    on_each(async |t| {
        let key = NewApiKey {
            key: Some(Secret::new("sk-chosen-by-the-administrator")),
            external_id: Some("x".to_owned()),
            ..NewApiKey::new(Source::Manual)
        };
        keys::create(&t.db, &t.cipher, &key).await.unwrap();
        is_duplicate(
            keys::create(&t.db, &t.cipher, &NewApiKey { external_id: None, ..key.clone() }).await,
            "key",
        );
        is_duplicate(keys::create(&t.db, &t.cipher, &NewApiKey { key: None, ..key }).await, "external_id");

        let (a, b) = (create(t, "a").await, create(t, "b").await);
        is_duplicate(providers::create(&t.db, &t.cipher, &provider("a")).await, "name");
        let rename = ProviderChange { name: Some("a".to_owned()), ..ProviderChange::default() };
        is_duplicate(providers::update(&t.db, &t.cipher, b.id, rename).await, "name");

        let first = models::create(&t.db, a.id, &model("m")).await.unwrap();
        models::create(&t.db, b.id, &model("m")).await.unwrap();
        is_duplicate(models::create(&t.db, a.id, &model("m")).await, "system_name");
        let other = models::create(&t.db, a.id, &model("n")).await.unwrap();
        let rename = ModelChange { system_name: Some("m".to_owned()), ..ModelChange::default() };
        is_duplicate(models::update(&t.db, other.id, rename).await, "system_name");

        // A deletion frees the name, twice.
        for _ in 0..2 {
            let id = models::list(&t.db, &ModelFilter { provider_id: Some(a.id), ..ModelFilter::default() })
                .await
                .unwrap()[0]
                .id;
            models::delete(&t.db, id).await.unwrap();
            models::create(&t.db, a.id, &model("m")).await.unwrap();
        }
        assert!(matches!(models::get(&t.db, first.id).await, Err(StoreError::NotFound)));
        providers::delete(&t.db, a.id).await.unwrap();
        assert!(matches!(providers::delete(&t.db, a.id).await, Err(StoreError::NotFound)));
        let again = create(t, "a").await;
        assert_ne!(again.id, a.id);
        is_invalid(models::create(&t.db, a.id, &model("m")).await, "provider_id");
        is_invalid(models::create(&t.db, 999_999, &model("m")).await, "provider_id");
        let left = models::list(&t.db, &ModelFilter::default()).await.unwrap();
        assert!(left.iter().all(|model| model.provider_id == b.id), "a provider takes its models with it");
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_stored_or_shown_is_refused_by_name() {
    on_each(async |t| {
        let key = NewApiKey::new(Source::Manual);
        for (new, field) in [
            (NewApiKey { key: Some(Secret::new("short")), ..key.clone() }, "key"),
            (NewApiKey { key: Some(Secret::new("sk-with spaces in between")), ..key.clone() }, "key"),
            (NewApiKey { comment: Some("a\0b".to_owned()), ..key.clone() }, "comment"),
            (NewApiKey { external_id: Some(String::new()), ..key.clone() }, "external_id"),
            (NewApiKey { allowed_models: Some(vec!["a\0b".to_owned()]), ..key.clone() }, "allowed_models"),
        ] {
            is_invalid(keys::create(&t.db, &t.cipher, &new).await, field);
        }
        for name in ["", " ", "a\\b", "a\nb", " a", &"x".repeat(129)] {
            is_invalid(providers::create(&t.db, &t.cipher, &provider(name)).await, "name");
        }
        for url in ["", "example.com", "ftp://example.com", "http://", "http://exa mple.com"] {
            let new = NewProvider { base_url: url.to_owned(), ..provider("p") };
            is_invalid(providers::create(&t.db, &t.cipher, &new).await, "base_url");
        }
        let new = NewProvider { proxy_url: Some(Secret::new("proxy:3128")), ..provider("p") };
        is_invalid(providers::create(&t.db, &t.cipher, &new).await, "proxy_url");
        let p = create(t, "p").await;
        let new = NewModel { price: Price { input: Some(-1.0), ..Price::default() }, ..model("m") };
        is_invalid(models::create(&t.db, p.id, &new).await, "input_price");
        let new = NewModel { price: Price { output: Some(f64::NAN), ..Price::default() }, ..model("m") };
        is_invalid(models::create(&t.db, p.id, &new).await, "output_price");
        is_invalid(models::create(&t.db, p.id, &model("a\0")).await, "system_name");
    })
    .await;
}

#[tokio::test]
async fn providers_and_models_are_kept_and_changed() {
    on_each(async |t| {
        let new = NewProvider {
            api_key: Some(Secret::new("upstream-secret")),
            api_version: Some("2024-10-21".to_owned()),
            proxy_url: Some(Secret::new("http://u:p@proxy:3128")),
            proxy_enabled: true,
            ask_stream_usage: false,
            max_concurrency: Some(3),
            kind: ProviderKind::Azure,
            ..provider("azure")
        };
        let made = providers::create(&t.db, &t.cipher, &new).await.unwrap();
        assert_eq!(providers::find_by_name(&t.db, "azure").await.unwrap(), made);
        let domain = made.to_domain(&t.cipher).unwrap();
        assert_eq!(domain.kind, ProviderKind::Azure);
        assert_eq!(domain.api_key, new.api_key);
        assert_eq!(domain.proxy.as_ref().and_then(|proxy| proxy.0.password()), Some("p"));
        assert_eq!((domain.ask_stream_usage, domain.max_concurrency), (false, Some(3)));
        let change = ProviderChange {
            api_key: Some(None),
            proxy_enabled: Some(false),
            base_url: Some("http://localhost:1".to_owned()),
            ..ProviderChange::default()
        };
        let changed = providers::update(&t.db, &t.cipher, made.id, change).await.unwrap();
        let domain = changed.to_domain(&t.cipher).unwrap();
        assert_eq!(
            (domain.api_key, domain.proxy, domain.base_url.as_str()),
            (None, None, "http://localhost:1/")
        );
        assert_eq!(changed.proxy_url(&t.cipher).unwrap(), new.proxy_url, "kept for when it is enabled again");

        let new = NewModel {
            remote_id: Some("gpt-4o-2024".to_owned()),
            context_length: Some(128_000),
            price: Price {
                input: Some(2.5),
                output: Some(10.0),
                cached_input: Some(0.25),
                cache_write: Some(3.125),
            },
            weight: 3,
            slo: Slo { ttft: Some(Duration::from_micros(1_500_500)), tpot: Some(Duration::from_millis(40)) },
            ..model("gpt-4o")
        };
        let made_model = models::create(&t.db, made.id, &new).await.unwrap();
        assert_eq!(models::get(&t.db, made_model.id).await.unwrap(), made_model);
        assert_eq!((made_model.price, made_model.slo, made_model.weight), (new.price, new.slo, 3));
        let change = ModelChange {
            output_price: Some(None),
            cache_write_price: Some(None),
            model_type: Some(ModelType::Embedding),
            ..ModelChange::default()
        };
        let changed = models::update(&t.db, made_model.id, change).await.unwrap();
        assert_eq!(changed.price, Price { output: None, cache_write: None, ..new.price });
        assert_eq!(changed.model_type, "embedding");
        assert!(matches!(models::update(&t.db, 0, ModelChange::default()).await, Err(StoreError::NotFound)));

        let second = create(t, "second").await;
        let other = models::create(&t.db, second.id, &model("gpt-4o")).await.unwrap();
        models::create(&t.db, second.id, &model("a-model")).await.unwrap();
        let weights = [(other.id, 9), (made_model.id, 0)];
        let weighted = models::set_weights(&t.db, "gpt-4o", &weights).await.unwrap();
        assert_eq!(weighted.iter().map(|model| model.weight).collect::<Vec<_>>(), [0, 9]);
        let wrong = models::set_weights(&t.db, "a-model", &weights).await;
        assert!(matches!(wrong, Err(StoreError::NotFound)));
        assert_eq!(models::system_names(&t.db, None).await.unwrap(), ["a-model", "gpt-4o"]);
        assert_eq!(models::system_names(&t.db, Some(ModelType::Embedding)).await.unwrap(), ["gpt-4o"]);
    })
    .await;
}

/// As when it was created while its provider was being deleted.
#[tokio::test]
async fn a_model_without_a_provider_is_in_no_list() {
    on_each(async |t| {
        let provider = create(t, "alpha").await;
        models::create(&t.db, provider.id, &model("ghost")).await.unwrap();
        t.sql("UPDATE providers SET deleted_at = created_at").await;
        assert!(models::list(&t.db, &ModelFilter::default()).await.unwrap().is_empty());
        assert!(models::system_names(&t.db, None).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_ask_for_an_external_id_all_get_one_key() {
    on_each(async |t| {
        let ask = |new: NewApiKey, change: ApiKeyChange| {
            let (db, cipher) = (t.db.clone(), t.cipher.clone());
            tokio::spawn(async move {
                keys::upsert_by_external_id(&db, &cipher, "k8s/ns/app", &new, &change).await.unwrap()
            })
        };
        let new = NewApiKey { comment: Some("first".to_owned()), ..NewApiKey::new(Source::Operator) };
        let mut made = None;
        for turn in [Upserted::Created, Upserted::Reactivated] {
            let asked: Vec<_> = (0..32).map(|_| ask(new.clone(), ApiKeyChange::default())).collect();
            let mut did = Vec::new();
            for answer in asked {
                let (key, secret, upserted) = answer.await.unwrap();
                assert_eq!(made.get_or_insert((key.id, secret.clone())), &(key.id, secret));
                assert!(!key.revoked);
                did.push(upserted);
            }
            assert_eq!(did.iter().filter(|upserted| **upserted == turn).count(), 1, "{did:?}");
            assert_eq!(did.iter().filter(|upserted| **upserted == Upserted::Existing).count(), 31);
            assert_eq!(t.number("SELECT count(*) FROM api_keys").await, 1);
            keys::revoke(&t.db, made.as_ref().unwrap().0).await.unwrap();
        }
        let (id, secret) = made.unwrap();
        keys::delete(&t.db, id).await.unwrap();
        let limits = Limits { rpm: Some(5), tpm: None };
        let change = ApiKeyChange { rpm: Some(Some(5)), ..ApiKeyChange::default() };
        let (key, again, upserted) = ask(new.clone(), change).await.unwrap();
        assert_eq!((key.id, upserted, &again), (id, Upserted::Reactivated, &secret));
        assert_eq!((key.limits, key.comment.as_deref()), (limits, Some("first")));

        let past = ApiKeyChange { expires_at: Some(Some(Utc::now())), ..ApiKeyChange::default() };
        keys::update(&t.db, id, past).await.unwrap();
        let (key, again, upserted) = ask(new, ApiKeyChange::default()).await.unwrap();
        assert_eq!((key.id, upserted, &again), (id, Upserted::Reactivated, &secret));
        assert_eq!((key.expires_at, key.limits), (None, limits), "an expiry that has passed is gone");
    })
    .await;
}

/// An administrator may take the external id from a key after the operator's call has found it.
#[tokio::test]
async fn a_key_that_has_lost_its_external_id_does_not_come_back() {
    on_each(async |t| {
        let (new, change) = (NewApiKey::new(Source::Operator), ApiKeyChange::default());
        let (found, ..) = keys::upsert_by_external_id(&t.db, &t.cipher, "app", &new, &change).await.unwrap();
        let released =
            ApiKeyChange { revoked: Some(true), external_id: Some(None), ..ApiKeyChange::default() };
        keys::update(&t.db, found.id, released).await.unwrap();
        assert!(!keys::reactivate(&t.db, found.id, "app", change).await.unwrap());
        assert!(keys::get(&t.db, found.id).await.unwrap().revoked);
    })
    .await;
}

fn file() -> Declared {
    Declared {
        providers: vec![
            NewProvider {
                api_key: Some(Secret::new("upstream")),
                proxy_url: Some(Secret::new("http://u:p@proxy:1")),
                ..provider("main")
            },
            provider("spare"),
        ],
        models: ["main", "spare"]
            .map(|name| DeclaredModel {
                provider: name.to_owned(),
                model: NewModel {
                    price: Price { input: Some(0.1 + 0.2), ..Price::default() },
                    slo: Slo { ttft: Some(Duration::from_nanos(1_234_567)), tpot: None },
                    ..model("m")
                },
            })
            .into(),
        api_keys: vec![NewApiKey {
            key: Some(Secret::new("sk-declared-in-the-file")),
            comment: Some("app".to_owned()),
            allowed_models: Some(vec!["m".to_owned()]),
            expires_at: Some(Utc::now() + Duration::from_secs(3600)),
            ..NewApiKey::new(Source::Manual)
        }],
    }
}

#[tokio::test]
async fn a_file_applied_twice_changes_nothing_and_a_changed_value_is_updated_in_place() {
    on_each(async |t| {
        let mut file = file();
        let first = declared::apply(&t.db, &t.cipher, &file).await.unwrap();
        assert_eq!(first, Applied { created: 5, ..Applied::default() });
        let before = providers::list(&t.db).await.unwrap();
        let again = declared::apply(&t.db, &t.cipher, &file).await.unwrap();
        assert_eq!(again, Applied { unchanged: 5, ..Applied::default() });
        assert_eq!(providers::list(&t.db).await.unwrap(), before, "not even re-encrypted");

        file.providers[0].api_key = Some(Secret::new("rotated"));
        file.models[1].model.weight = 5;
        file.api_keys[0].limits.rpm = Some(10);
        let third = declared::apply(&t.db, &t.cipher, &file).await.unwrap();
        assert_eq!(third, Applied { updated: 3, unchanged: 2, ..Applied::default() });
        let main = providers::find_by_name(&t.db, "main").await.unwrap();
        assert_eq!(main.id, before[0].id);
        assert_eq!(main.source, "config");
        assert_eq!(main.api_key(&t.cipher).unwrap(), Some(Secret::new("rotated")));
        let key = keys::find_by_key(&t.db, "sk-declared-in-the-file").await.unwrap();
        assert_eq!(key.limits.rpm, Some(10));

        keys::revoke(&t.db, key.id).await.unwrap();
        let fourth = declared::apply(&t.db, &t.cipher, &file).await.unwrap();
        assert_eq!(fourth.revoked_keys, ["sk-decl"], "a revoked key stays revoked");
        assert!(keys::get(&t.db, key.id).await.unwrap().revoked);
    })
    .await;
}

/// A system that manages a key by an external id finds the key under that id, though a file declares the key too.
#[tokio::test]
async fn a_file_takes_no_external_id_away() {
    on_each(async |t| {
        let file = file();
        let managed = NewApiKey {
            key: file.api_keys[0].key.clone(),
            external_id: Some("k8s/a/b".to_owned()),
            ..NewApiKey::new(Source::Operator)
        };
        let (made, _) = keys::create(&t.db, &t.cipher, &managed).await.unwrap();
        assert_eq!(declared::apply(&t.db, &t.cipher, &file).await.unwrap().updated, 1);
        let found = keys::find_by_external_id(&t.db, "k8s/a/b").await.unwrap();
        assert_eq!((found.id, found.comment.as_deref()), (made.id, Some("app")));
        assert_eq!(found.source, made.source);
        assert_eq!(declared::apply(&t.db, &t.cipher, &file).await.unwrap().unchanged, 5);
    })
    .await;
}

#[tokio::test]
async fn a_file_is_applied_whole_or_not_at_all() {
    on_each(async |t| {
        let mut wrong = file();
        wrong.models[1].provider = "missing".to_owned();
        let error = declared::apply(&t.db, &t.cipher, &wrong).await.unwrap_err().to_string();
        assert_eq!(error, "provider: no such provider (in model \"m\" of provider \"missing\")");
        assert!(providers::list(&t.db).await.unwrap().is_empty());
        let mut nothing = file();
        nothing.api_keys[0].limits.tpm = Some(0);
        is_invalid(declared::apply(&t.db, &t.cipher, &nothing).await, "tpm_limit");
        let mut nothing = file();
        nothing.providers[0].max_concurrency = Some(0);
        is_invalid(declared::apply(&t.db, &t.cipher, &nothing).await, "max_concurrency");
        let mut twice = file();
        twice.providers.push(provider("main"));
        is_invalid(declared::apply(&t.db, &t.cipher, &twice).await, "name");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_apply_one_file_at_once_agree() {
    on_each(async |t| {
        let file = file();
        let applying: Vec<_> = (0..8)
            .map(|_| {
                let (db, cipher, file) = (t.db.clone(), t.cipher.clone(), file.clone());
                tokio::spawn(async move { declared::apply(&db, &cipher, &file).await.unwrap() })
            })
            .collect();
        let mut created = 0;
        for applied in applying {
            created += applied.await.unwrap().created;
        }
        assert_eq!(created, 5);
        let key = keys::find_by_key(&t.db, "sk-declared-in-the-file").await.unwrap();
        assert_eq!(key.prefix, "sk-decl");
    })
    .await;
}
