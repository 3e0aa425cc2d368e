//! Tokenisers and templates of the served models, loaded once, off the async runtime.
//!
//! Keeps true: one load per model at a time, a failed load is tried again by the next request, and
//! no more than `limits::TEXTS_MAX` are kept.

use super::error::ApiError;
use super::text::ModelText;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use trireme_shared::limits;
use trireme_shared::plan::ModelRef;
use trireme_shared::source::{Cancel, ResolveOptions, resolve};

/// What makes two deployments share a text: their files, not their names.
type Key = (String, Option<String>);
type Loading = Shared<BoxFuture<'static, Result<Arc<ModelText>, Arc<str>>>>;

struct Entry {
    loading: Loading,
    /// Of `Texts::uses`, when last asked for.
    used: u64,
}

#[derive(Default)]
struct Entries {
    by_model: BTreeMap<Key, Entry>,
    uses: u64,
}

/// The cache. Cheap to clone.
#[derive(Clone)]
pub struct Texts {
    cache_dir: Option<PathBuf>,
    entries: Arc<Mutex<Entries>>,
    /// Ends the fetches that loads may need.
    cancel: Cancel,
}

impl Texts {
    pub fn new(cache_dir: Option<PathBuf>) -> Self {
        Self {
            cache_dir,
            entries: Arc::default(),
            cancel: Cancel::default(),
        }
    }

    /// The text of `model`; waits for its load up to `limits::TEXT_LOAD_WAIT`.
    pub async fn get(&self, model: &ModelRef) -> Result<Arc<ModelText>, ApiError> {
        let key = (model.source.clone(), model.sha256.clone());
        let loading = self.loading(&key);
        match tokio::time::timeout(limits::TEXT_LOAD_WAIT, loading).await {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(reason)) => {
                self.lock().by_model.remove(&key);
                Err(ApiError::internal(format!(
                    "the tokeniser of model '{}' cannot be loaded: {reason}",
                    model.name
                )))
            }
            Err(_) => Err(ApiError::unavailable(
                "model_loading",
                format!("model '{}' is still being loaded.", model.name),
                5,
            )),
        }
    }

    /// Begins to load `model`'s text without waiting for it.
    pub fn warm(&self, model: &ModelRef) {
        drop(self.loading(&(model.source.clone(), model.sha256.clone())));
    }

    /// Gives up what is still being fetched: the gateway closes.
    pub fn close(&self) {
        self.cancel.cancel();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loading(&self, key: &Key) -> Loading {
        let mut entries = self.lock();
        entries.uses += 1;
        let now = entries.uses;
        if let Some(entry) = entries.by_model.get_mut(key) {
            entry.used = now;
            return entry.loading.clone();
        }
        if entries.by_model.len() >= limits::TEXTS_MAX {
            let oldest = entries.by_model.iter().min_by_key(|(_, e)| e.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                entries.by_model.remove(&oldest);
            }
        }
        let options = ResolveOptions {
            cache_dir: self.cache_dir.clone(),
            sha256: key.1.clone(),
            cancel: self.cancel.clone(),
            ..ResolveOptions::default()
        };
        let source = key.0.clone();
        // The task runs whether or not anyone waits for it.
        let task = tokio::task::spawn_blocking(move || load(&source, &options));
        let loading = async move {
            match task.await {
                Ok(result) => result.map_err(Arc::from),
                Err(error) => Err(Arc::from(format!("loading it broke off: {error}"))),
            }
        }
        .boxed()
        .shared();
        entries.by_model.insert(
            key.clone(),
            Entry {
                loading: loading.clone(),
                used: now,
            },
        );
        loading
    }
}

fn load(source: &str, options: &ResolveOptions) -> Result<Arc<ModelText>, String> {
    let model = resolve(source, options, &|_| ()).map_err(|error| error.to_string())?;
    ModelText::load(&model.path)
        .map(Arc::new)
        .map_err(|error| error.to_string())
}
