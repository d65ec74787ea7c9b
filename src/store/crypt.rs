//! Secrets at rest: XChaCha20-Poly1305 under one 256-bit key.
//!
//! A stored secret reads `v1.<key id>.<base64url(nonce ‖ ciphertext ‖ tag)>`. The nonce is 192 random bits, so it
//! never repeats (draft-irtf-cfrg-xchacha § 2.1). The associated data names table and column: a ciphertext copied into
//! another column does not decrypt there. The key id (32 bits of a hash of the key) tells which key a secret needs, so
//! that a wrong key is found at start-up and a rotation can be repeated.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sea_orm::sea_query::{Expr, ExprTrait, Query, SelectStatement};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};
use sha2::{Digest, Sha256};

use super::connect::Location;
use super::error::{StoreError, StoreResult};
use super::{begin_write, key_file};
use crate::domain::key::Secret;

const VERSION: &str = "v1";
const NONCE_BYTES: usize = 24;
/// Rows re-encrypted at a time by [`rotate`].
const ROTATE_PAGE: u64 = 500;

/// A column that holds secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    ApiKey,
    ProviderKey,
    ProviderProxy,
}

impl Column {
    const ALL: [Self; 3] = [Self::ApiKey, Self::ProviderKey, Self::ProviderProxy];

    const fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::ApiKey => ("api_keys", "key_encrypted"),
            Self::ProviderKey => ("providers", "api_key_encrypted"),
            Self::ProviderProxy => ("providers", "proxy_url_encrypted"),
        }
    }

    /// The table and column that a ciphertext is bound to.
    const fn associated_data(self) -> &'static [u8] {
        match self {
            Self::ApiKey => b"nexusgate:api_keys.key_encrypted",
            Self::ProviderKey => b"nexusgate:providers.api_key_encrypted",
            Self::ProviderProxy => b"nexusgate:providers.proxy_url_encrypted",
        }
    }
}

/// The 256-bit key that secrets are encrypted under.
#[derive(Clone, PartialEq, Eq)]
pub struct EncryptionKey([u8; 32]);

impl EncryptionKey {
    /// A new key from the system's random source.
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Reads 32 bytes from 64 hexadecimal digits, or from base64 (either alphabet, padding optional).
    ///
    /// # Errors
    /// [`StoreError::Secret`]; the text does not repeat the input.
    pub fn parse(text: &str) -> StoreResult<Self> {
        let text = text.trim();
        let bytes = if text.len() == 64 { from_hex(text) } else { from_base64(text) };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(|| {
            StoreError::Secret(
                "ENCRYPTION_KEY must be 32 bytes in base64 or hexadecimal, for example from `openssl rand -base64 32`"
                    .to_owned(),
            )
        })
    }

    /// The key in base64, as a key file holds it.
    pub(super) fn to_base64(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.0)
    }
}

impl fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionKey(***)")
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| {
            // `from_str_radix` takes a sign.
            let digits = std::str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit))?;
            u8::from_str_radix(digits, 16).ok()
        })
        .collect()
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    [alphabet::STANDARD, alphabet::URL_SAFE]
        .iter()
        .find_map(|alphabet| GeneralPurpose::new(alphabet, config).decode(text).ok())
}

/// Encrypts and decrypts secrets under one key.
pub struct Cipher {
    aead: XChaCha20Poly1305,
    key_id: String,
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

impl Cipher {
    pub fn new(key: &EncryptionKey) -> Self {
        let digest = Sha256::new().chain_update(b"nexusgate key id").chain_update(key.0).finalize();
        let key_id = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Self { aead: XChaCha20Poly1305::new(&key.0.into()), key_id }
    }

    /// Encrypts `secret` for `column`.
    ///
    /// # Errors
    /// [`StoreError::Secret`] when it is too long for the cipher (256 GiB).
    pub fn encrypt(&self, column: Column, secret: &Secret) -> StoreResult<String> {
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let payload = Payload { msg: secret.expose().as_bytes(), aad: column.associated_data() };
        let sealed = self
            .aead
            .encrypt(&XNonce::from(nonce), payload)
            .map_err(|_| StoreError::Secret("a secret could not be encrypted".to_owned()))?;
        let body = URL_SAFE_NO_PAD.encode([nonce.as_slice(), &sealed].concat());
        Ok(format!("{VERSION}.{}.{body}", self.key_id))
    }

    /// Decrypts a result of [`encrypt`](Self::encrypt) for the same column.
    ///
    /// # Errors
    /// [`StoreError::Secret`] when it was made under another key, for another column, by a newer version, or was
    /// tampered with.
    pub fn decrypt(&self, column: Column, stored: &str) -> StoreResult<Secret> {
        let (table, name) = column.place();
        let fail =
            |why: &str| StoreError::Secret(format!("a secret in {table}.{name} cannot be decrypted: {why}"));
        let mut parts = stored.splitn(3, '.');
        let (Some(version), Some(key_id), Some(body)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(fail("it is not encrypted"));
        };
        if version != VERSION {
            return Err(fail("it was written by a newer version of nexusgate"));
        }
        if key_id != self.key_id {
            return Err(fail("it was encrypted under another ENCRYPTION_KEY"));
        }
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| fail("it is damaged"))?;
        let (nonce, sealed) =
            bytes.split_first_chunk::<NONCE_BYTES>().ok_or_else(|| fail("it is damaged"))?;
        let payload = Payload { msg: sealed, aad: column.associated_data() };
        let opened = self
            .aead
            .decrypt(&XNonce::from(*nonce), payload)
            .map_err(|_| fail("it was changed, or belongs to another column"))?;
        String::from_utf8(opened).map(Secret::new).map_err(|_| fail("it is not text"))
    }

    /// Whether `stored` was encrypted under this key.
    fn made(&self, stored: &str) -> bool {
        stored.split('.').nth(1) == Some(self.key_id.as_str())
    }
}

/// The cipher for this database: under `encryption_key` (the setting `ENCRYPTION_KEY`; empty counts as unset), or else
/// under the key file beside a SQLite file, made now if the database holds no secrets yet. Checks that the database's
/// secrets were made under this key.
///
/// # Errors
/// [`StoreError::Secret`], one line that names what to set or restore.
pub async fn open(
    db: &DatabaseConnection,
    database_url: &str,
    encryption_key: Option<&str>,
) -> StoreResult<Cipher> {
    if let Some(text) = given(encryption_key) {
        let cipher = Cipher::new(&EncryptionKey::parse(text)?);
        return match foreign_secret(db, &cipher).await? {
            None => Ok(cipher),
            Some(column) => Err(wrong_key(column, "ENCRYPTION_KEY is not the key")),
        };
    }
    match Location::of(database_url)? {
        Location::SqliteMemory => Ok(Cipher::new(&EncryptionKey::random())),
        Location::SqliteFile(path) => open_with_key_file(db, &key_file::path_for(&path)).await,
        Location::Postgres => Err(key_is_missing()),
    }
}

/// Checks that `encryption_key` is valid, and set if it is required; opens no database.
///
/// # Errors
/// As [`open`].
pub fn check_key(database_url: &str, encryption_key: Option<&str>) -> StoreResult<()> {
    match given(encryption_key) {
        Some(text) => EncryptionKey::parse(text).map(drop),
        None if Location::of(database_url)? == Location::Postgres => Err(key_is_missing()),
        None => Ok(()),
    }
}

fn given(encryption_key: Option<&str>) -> Option<&str> {
    encryption_key.map(str::trim).filter(|text| !text.is_empty())
}

fn key_is_missing() -> StoreError {
    StoreError::Secret(
        "ENCRYPTION_KEY must be set with PostgreSQL: 32 bytes in base64 or hexadecimal, for example from \
         `openssl rand -base64 32`"
            .to_owned(),
    )
}

async fn open_with_key_file(db: &DatabaseConnection, path: &Path) -> StoreResult<Cipher> {
    let Some(key) = key_file::read(path)? else {
        if let Some(column) = any_secret(db).await? {
            let (table, _) = column.place();
            return Err(StoreError::Secret(format!(
                "the key file {} is missing, but {table} holds secrets encrypted under it; restore the file or set \
                 ENCRYPTION_KEY",
                path.display()
            )));
        }
        return Ok(Cipher::new(&key_file::create(path)?));
    };
    let cipher = Cipher::new(&key);
    let Some(column) = foreign_secret(db, &cipher).await? else { return Ok(cipher) };
    // A rotation that was cut off between the database's commit and the renaming of the file.
    if let Some(next) = key_file::read(&key_file::next(path))? {
        let cipher = Cipher::new(&next);
        if foreign_secret(db, &cipher).await?.is_none() {
            key_file::promote(path)?;
            return Ok(cipher);
        }
    }
    Err(wrong_key(column, &format!("the key file {} does not hold the key", path.display())))
}

fn wrong_key(column: Column, what: &str) -> StoreError {
    let (table, _) = column.place();
    StoreError::Secret(format!("{what} that the secrets in {table} were encrypted under"))
}

/// A column that holds a secret under another key.
async fn foreign_secret(db: &DatabaseConnection, cipher: &Cipher) -> StoreResult<Option<Column>> {
    let ours = format!("{VERSION}.{}.%", cipher.key_id);
    for column in Column::ALL {
        let (_, name) = column.place();
        let query = secrets(column).and_where(Expr::col(name).not_like(ours.clone())).limit(1).to_owned();
        if db.query_one(&query).await?.is_some() {
            return Ok(Some(column));
        }
    }
    Ok(None)
}

async fn any_secret(db: &DatabaseConnection) -> StoreResult<Option<Column>> {
    for column in Column::ALL {
        if db.query_one(secrets(column).limit(1)).await?.is_some() {
            return Ok(Some(column));
        }
    }
    Ok(None)
}

/// `SELECT id, <column> … WHERE <column> IS NOT NULL`
fn secrets(column: Column) -> SelectStatement {
    let (table, name) = column.place();
    Query::select().column("id").column(name).from(table).and_where(Expr::col(name).is_not_null()).to_owned()
}

/// Re-encrypts every secret from `old` to `new`, all or none, and returns how many it changed. Secrets already under
/// `new` are left alone, so repeating it is harmless. Writers wait meanwhile; a running gateway keeps the old key and
/// must be restarted with the new one.
///
/// # Errors
/// [`StoreError::Secret`] when a secret is neither under `old` nor under `new`: nothing is changed then.
pub async fn rotate(db: &DatabaseConnection, old: &Cipher, new: &Cipher) -> StoreResult<u64> {
    let transaction = begin_write(db).await?;
    if transaction.get_database_backend() == DbBackend::Postgres {
        transaction
            .execute_unprepared(
                "LOCK TABLE api_keys, providers IN SHARE ROW EXCLUSIVE MODE; SET LOCAL statement_timeout = 0",
            )
            .await?;
    }
    let mut changed = 0;
    for column in Column::ALL {
        let (table, name) = column.place();
        let mut last = i64::MIN;
        loop {
            let page = secrets(column)
                .and_where(Expr::col("id").gt(last))
                .order_by("id", sea_orm::Order::Asc)
                .limit(ROTATE_PAGE)
                .to_owned();
            let rows = transaction.query_all(&page).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let stored: String = row.try_get("", name)?;
                last = row.try_get("", "id")?;
                if new.made(&stored) {
                    continue;
                }
                let sealed = new.encrypt(column, &old.decrypt(column, &stored)?)?;
                let update = Query::update()
                    .table(table)
                    .value(name, sealed)
                    .and_where(Expr::col("id").eq(last))
                    .to_owned();
                transaction.execute(&update).await?;
                changed += 1;
            }
        }
    }
    transaction.commit().await?;
    if db.get_database_backend() == DbBackend::Sqlite {
        make_durable(db).await?;
    }
    Ok(changed)
}

/// Replaces the key file beside a SQLite database by a new random key and re-encrypts everything. If it is interrupted
/// at any point, the next [`open`] finds a key that fits.
///
/// # Errors
/// As [`rotate`]; [`StoreError::Secret`] when there is no key file.
pub async fn rotate_key_file(db: &DatabaseConnection, database_url: &str) -> StoreResult<u64> {
    let path: PathBuf = match Location::of(database_url)? {
        Location::SqliteFile(file) => key_file::path_for(&file),
        _ => return Err(StoreError::Secret("this database has no key file; set ENCRYPTION_KEY".to_owned())),
    };
    // Also finishes an earlier rotation that was cut off.
    let old = open_with_key_file(db, &path).await?;
    let new = key_file::prepare_next(&path)?;
    let changed = rotate(db, &old, &Cipher::new(&new)).await?;
    key_file::promote(&path)?;
    Ok(changed)
}

/// Syncs what was committed. Connections leave that to later (`synchronous = NORMAL`), but a power cut must not bring back
/// rows under a key that is gone.
async fn make_durable(db: &DatabaseConnection) -> StoreResult<()> {
    let checkpoint =
        Statement::from_string(db.get_database_backend(), "PRAGMA wal_checkpoint(TRUNCATE)".to_owned());
    let busy = match db.query_one_raw(checkpoint).await? {
        Some(row) => row.try_get_by_index::<i64>(0)? != 0,
        None => true,
    };
    if busy {
        let text = "another process uses the database: stop it and repeat the rotation, which has not ended";
        return Err(StoreError::Open(text.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher() -> Cipher {
        Cipher::new(&EncryptionKey::random())
    }

    #[test]
    fn what_is_encrypted_can_be_decrypted() {
        let cipher = cipher();
        for text in ["", "sk-1", "é\0日本", &"x".repeat(10_000)] {
            let stored = cipher.encrypt(Column::ApiKey, &Secret::new(text)).unwrap();
            assert!(stored.starts_with("v1.") && (text.is_empty() || !stored.contains(text)));
            assert_eq!(cipher.decrypt(Column::ApiKey, &stored).unwrap().expose(), text);
        }
        let secret = Secret::new("twice");
        let twice = [(); 2].map(|()| cipher.encrypt(Column::ApiKey, &secret).unwrap());
        assert_ne!(twice[0], twice[1], "each has its own nonce");
    }

    #[test]
    fn a_ciphertext_is_bound_to_its_key_and_column() {
        let ours = cipher();
        let stored = ours.encrypt(Column::ProviderKey, &Secret::new("sk-upstream")).unwrap();
        let refused =
            |cipher: &Cipher, column, stored: &str| cipher.decrypt(column, stored).unwrap_err().to_string();
        assert!(refused(&ours, Column::ApiKey, &stored).contains("another column"));
        assert!(refused(&cipher(), Column::ProviderKey, &stored).contains("another ENCRYPTION_KEY"));
        assert!(
            refused(&ours, Column::ProviderKey, &stored.replacen("v1", "v2", 1)).contains("newer version")
        );
        assert!(refused(&ours, Column::ProviderKey, "sk-plaintext").contains("not encrypted"));
        let mut tampered = stored.clone().into_bytes();
        let middle = tampered.len() - 10;
        tampered[middle] = if tampered[middle] == b'A' { b'B' } else { b'A' };
        assert!(
            refused(&ours, Column::ProviderKey, std::str::from_utf8(&tampered).unwrap()).contains("changed")
        );
        for cut in 0..stored.len() {
            assert!(ours.decrypt(Column::ProviderKey, &stored[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn keys_are_read_in_every_usual_spelling() {
        let key = EncryptionKey([0xfb; 32]);
        let standard = key.to_base64();
        let url_safe = standard.replace('+', "-").replace('/', "_");
        assert_ne!(standard, url_safe);
        for text in [
            &standard,
            &url_safe,
            standard.trim_end_matches('='),
            &"fb".repeat(32),
            &"FB".repeat(32),
            &format!(" {standard}\n"),
        ] {
            assert_eq!(EncryptionKey::parse(text).unwrap(), key, "{text}");
        }
        for text in ["short", &"zz".repeat(32), &"é".repeat(32), &"fb".repeat(31), &"fb".repeat(33)] {
            let error = EncryptionKey::parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("ENCRYPTION_KEY must be 32 bytes")
                    && !error.contains(text)
                    && !error.contains('\n')
            );
        }
        assert_eq!(format!("{key:?}"), "EncryptionKey(***)");
    }
}
