//! A Hugging Face repository's safetensors model, file by file, by the hub's resolve URLs.

use super::cache::Entry;
use super::download::Download;
use super::spec::HubSpec;
use super::{Bounds, Report, SourceError};
use crate::limits;
use crate::model::hf::shards_of_index;
use std::fs;
use std::path::Path;

/// Files that a model may lack.
const OPTIONAL: [&str; 5] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

impl HubSpec {
    pub(super) fn url(&self, hub: &str, file: &str) -> String {
        format!("{hub}/{}/resolve/{}/{file}", self.repo, self.revision)
    }
}

/// Fetches everything the model needs into `entry/<name>`. Files already whole are not fetched
/// again; the caller records the folder once all are there.
pub(super) fn fetch_folder(
    spec: &HubSpec,
    hub: &str,
    entry: &Entry,
    name: &str,
    bounds: &Bounds,
    report: Report,
) -> Result<(), SourceError> {
    let folder = entry.folder.join(name);
    fs::create_dir_all(&folder).map_err(|e| SourceError::io("create", &folder, e))?;
    let fetch = |file: &str| fetch_file(&spec.url(hub, file), &folder, file, bounds, report);
    if let Err(error) = fetch("config.json") {
        return Err(match error {
            SourceError::NotFound(_) => SourceError::NotFound(format!(
                "{} has no config.json; for a repository of GGUF files name one: \
                 hf://{}/FILE.gguf",
                spec.repo, spec.repo
            )),
            other => other,
        });
    }
    for file in OPTIONAL {
        match fetch(file) {
            Ok(()) | Err(SourceError::NotFound(_)) => {}
            Err(other) => return Err(other),
        }
    }
    let index = "model.safetensors.index.json";
    match fetch(index) {
        Ok(()) => {
            let shards = shards_of_index(&folder.join(index))
                .map_err(|e| SourceError::Invalid(e.to_string()))?;
            shards.iter().try_for_each(|shard| fetch(shard))
        }
        Err(SourceError::NotFound(_)) => fetch("model.safetensors"),
        Err(other) => Err(other),
    }
}

fn fetch_file(
    url: &str,
    folder: &Path,
    file: &str,
    bounds: &Bounds,
    report: Report,
) -> Result<(), SourceError> {
    let target = folder.join(file);
    if target.exists() {
        return Ok(());
    }
    let part = folder.join(format!("{file}.part"));
    let download = Download {
        url,
        part: part.clone(),
        sha256: None,
        bytes: None,
        magic: b"",
    };
    download.run(bounds, report)?;
    let length = fs::metadata(&part).map_or(0, |m| m.len());
    if file.ends_with(".json") && length > limits::MODEL_JSON_BYTES_MAX {
        let _ = fs::remove_file(&part);
        return Err(SourceError::Invalid(format!(
            "{file} of that model is too large"
        )));
    }
    let sync = || -> std::io::Result<()> {
        fs::File::open(&part)?.sync_all()?;
        fs::rename(&part, &target)
    };
    sync().map_err(|e| SourceError::io("write", &target, e))
}
