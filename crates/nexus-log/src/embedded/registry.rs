//! The registry of the contract: entries of the store's `meta` keyspace, changed by the one writer.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::codec;
use super::log::ask;
use super::request::Request;
use super::shared::Shared;
use super::store::failed;
use crate::contract::{Registry, Revision, StorageError};

/// The longest key, in bytes.
const KEY_BYTES_MAX: usize = 1024;
/// The largest value, in bytes.
const VALUE_BYTES_MAX: usize = 4 << 20;

/// The registry in a directory.
pub(crate) struct EmbeddedRegistry {
    shared: Arc<Shared>,
}

impl EmbeddedRegistry {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

fn split(value: &[u8]) -> Result<(Bytes, Revision), StorageError> {
    let revision = Revision(u64::from_be_bytes(codec::bytes(value, 0)?));
    Ok((Bytes::copy_from_slice(&value[8..]), revision))
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn get(&self, key: &str) -> Result<Option<(Bytes, Revision)>, StorageError> {
        let key = codec::registry_key(key);
        let get = move |_: &Shared, store: &super::store::Store| {
            store.meta.get(key).map_err(failed)?.map(|value| split(&value)).transpose()
        };
        self.shared.read(get).await
    }

    async fn put(&self, key: &str, value: Bytes, expected: Option<Revision>) -> Result<Revision, StorageError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || value.len() > VALUE_BYTES_MAX {
            return Err(StorageError::Invalid(format!(
                "a registry key has 1 to {KEY_BYTES_MAX} bytes and a value at most {VALUE_BYTES_MAX}"
            )));
        }
        let key = key.to_owned();
        ask(&self.shared, |answer| Request::Put { key, value, expected, answer }).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<(), StorageError> {
        let key = key.to_owned();
        ask(&self.shared, |answer| Request::Delete { key, expected, answer }).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Bytes, Revision)>, StorageError> {
        let prefix = codec::registry_key(prefix);
        let list = move |_: &Shared, store: &super::store::Store| {
            let entries = store.meta.prefix(prefix).map(|entry| {
                let (key, value) = entry.into_inner().map_err(failed)?;
                let key = String::from_utf8(key[1..].to_vec())
                    .map_err(|_| StorageError::Damaged("a registry key is no text".to_owned()))?;
                let (value, revision) = split(&value)?;
                Ok((key, value, revision))
            });
            entries.collect()
        };
        self.shared.read(list).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }
}
