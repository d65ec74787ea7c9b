use std::fs;

use super::{TestDb, on_each};
use crate::domain::key::Secret;
use crate::domain::provider::ProviderKind;
use crate::store::crypt::{self, Cipher, EncryptionKey};
use crate::store::keys::{self, NewApiKey};
use crate::store::providers::{self, NewProvider};
use crate::store::{Source, StoreError};

const PROXY: &str = "http://user:proxy-password@proxy.example:3128";

async fn fill(t: &TestDb, cipher: &Cipher) -> Secret {
    let new = NewProvider {
        api_key: Some(Secret::new("upstream-credential")),
        proxy_url: Some(Secret::new(PROXY)),
        ..NewProvider::new("p", ProviderKind::OpenAi, "https://one.example/v1", Source::Manual)
    };
    providers::create(&t.db, cipher, &new).await.unwrap();
    keys::create(&t.db, cipher, &NewApiKey::new(Source::Manual)).await.unwrap().1
}

/// Every secret decrypts under this cipher.
async fn check(t: &TestDb, cipher: &Cipher, key: &Secret) {
    let stored = providers::find_by_name(&t.db, "p").await.unwrap();
    assert_eq!(stored.api_key(cipher).unwrap(), Some(Secret::new("upstream-credential")));
    assert_eq!(stored.proxy_url(cipher).unwrap(), Some(Secret::new(PROXY)));
    assert_eq!(keys::find_by_key(&t.db, key.expose()).await.unwrap().reveal(cipher).unwrap(), *key);
}

#[tokio::test]
async fn no_secret_stands_in_the_database_in_plain_text() {
    on_each(async |t| {
        let key = fill(t, &t.cipher).await;
        let bytes = if t.is_postgres() {
            let mut text = String::new();
            for table in ["api_keys", "providers"] {
                let sql = format!("SELECT string_agg({table}::text, ' ') FROM {table}");
                let statement = sea_orm::Statement::from_string(sea_orm::DbBackend::Postgres, sql);
                let row = sea_orm::ConnectionTrait::query_one_raw(&t.db, statement).await.unwrap().unwrap();
                text += &row.try_get_by_index::<String>(0).unwrap();
            }
            text.into_bytes()
        } else {
            let mut bytes = Vec::new();
            for file in fs::read_dir(t.folder.path()).unwrap() {
                bytes.extend(fs::read(file.unwrap().path()).unwrap());
            }
            bytes
        };
        let holds = |text: &str| memchr::memmem::find(&bytes, text.as_bytes()).is_some();
        assert!(holds("https://one.example/v1"), "the search finds what is plain");
        for secret in [key.expose(), &key.expose()[8..], "upstream-credential", "proxy-password", PROXY] {
            assert!(!holds(secret), "{secret}");
        }
        let stored = keys::find_by_key(&t.db, key.expose()).await.unwrap();
        assert!(!format!("{stored:?} {:?} {key:?}", t.cipher).contains(key.expose()));
    })
    .await;
}

#[tokio::test]
async fn rotation_changes_everything_or_nothing() {
    on_each(async |t| {
        let (old, new) = (Cipher::new(&EncryptionKey::random()), Cipher::new(&EncryptionKey::random()));
        let key = fill(t, &old).await;
        let stray = fill_key(t, &t.cipher).await;
        assert!(
            matches!(crypt::rotate(&t.db, &old, &new).await, Err(StoreError::Secret(_))),
            "one needs a third key"
        );
        check(t, &old, &key).await;
        let id = keys::find_by_key(&t.db, stray.expose()).await.unwrap().id;
        t.sql(&format!("DELETE FROM api_keys WHERE id = {id}")).await;

        assert_eq!(crypt::rotate(&t.db, &old, &new).await.unwrap(), 3);
        check(t, &new, &key).await;
        assert_eq!(crypt::rotate(&t.db, &old, &new).await.unwrap(), 0, "repeating it is harmless");
        check(t, &new, &key).await;
    })
    .await;
}

async fn fill_key(t: &TestDb, cipher: &Cipher) -> Secret {
    keys::create(&t.db, cipher, &NewApiKey::new(Source::Manual)).await.unwrap().1
}

#[tokio::test]
async fn a_wrong_or_missing_key_stops_the_start() {
    on_each(async |t| {
        let (right, wrong) = ("ab".repeat(32), "cd".repeat(32));
        let cipher = crypt::open(&t.db, &t.url, Some(&right)).await.unwrap();
        let key = fill(t, &cipher).await;
        let cipher = crypt::open(&t.db, &t.url, Some(&right)).await.unwrap();
        check(t, &cipher, &key).await;
        let error = crypt::open(&t.db, &t.url, Some(&wrong)).await.unwrap_err().to_string();
        assert!(error.starts_with("ENCRYPTION_KEY is not the key that the secrets in"), "{error}");
        let error = crypt::open(&t.db, &t.url, Some("nonsense")).await.unwrap_err().to_string();
        assert!(error.starts_with("ENCRYPTION_KEY must be 32 bytes"), "{error}");
        for unset in [None, Some(""), Some(" ")] {
            let error = crypt::open(&t.db, &t.url, unset).await.unwrap_err().to_string();
            if t.is_postgres() {
                assert!(error.starts_with("ENCRYPTION_KEY must be set with PostgreSQL"), "{error}");
            } else {
                assert!(error.contains("gate.db.key is missing, but api_keys holds secrets"), "{error}");
            }
            assert!(!error.contains('\n'));
        }
        assert!(!t.folder.path().join("gate.db.key").exists(), "no key file is made that would not fit");
    })
    .await;
}

#[tokio::test]
async fn an_embedded_database_keeps_its_key_beside_it() {
    on_each(async |t| {
        if t.is_postgres() {
            return;
        }
        let cipher = crypt::open(&t.db, &t.url, None).await.unwrap();
        let key = fill(t, &cipher).await;
        let path = t.folder.path().join("gate.db.key");
        let first = fs::read_to_string(&path).unwrap();
        check(t, &crypt::open(&t.db, &t.url, None).await.unwrap(), &key).await;

        assert_eq!(crypt::rotate_key_file(&t.db, &t.url).await.unwrap(), 3);
        let log = fs::metadata(t.folder.path().join("gate.db-wal")).unwrap();
        assert_eq!(log.len(), 0, "what was committed has been synced");
        assert_ne!(fs::read_to_string(&path).unwrap(), first);
        check(t, &crypt::open(&t.db, &t.url, None).await.unwrap(), &key).await;

        // Killed after the database had the new key, before the file was renamed.
        let current = fs::read_to_string(&path).unwrap();
        fs::rename(&path, t.folder.path().join("gate.db.key.new")).unwrap();
        fs::write(&path, &first).unwrap();
        check(t, &crypt::open(&t.db, &t.url, None).await.unwrap(), &key).await;
        assert_eq!(fs::read_to_string(&path).unwrap(), current);

        fs::write(&path, &first).unwrap();
        let error = crypt::open(&t.db, &t.url, None).await.unwrap_err().to_string();
        assert!(error.contains("gate.db.key does not hold the key"), "{error}");
    })
    .await;
}
