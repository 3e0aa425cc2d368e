//! What a model on disk is, for people.

use crate::model::{Manifest, ManifestError, ModelConfig};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A model's description.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    pub name: Option<String>,
    pub config: ModelConfig,
    pub files: Vec<PathBuf>,
    pub tensors: usize,
    /// Weights in all.
    pub parameters: u64,
    pub bytes: u64,
    /// Bytes stored as each type.
    pub bytes_by_type: BTreeMap<String, u64>,
    /// The largest tensor- and pipeline-parallel degrees it can be split into.
    pub tensor_parallel_max: u16,
    pub pipeline_parallel_max: u16,
}

/// Reads the headers of a .gguf file or a Hugging Face folder.
pub fn inspect(path: &Path) -> Result<Inspection, ManifestError> {
    let manifest = Manifest::open(path)?;
    let mut bytes_by_type = BTreeMap::new();
    for tensor in manifest.tensors.values() {
        *bytes_by_type
            .entry(format!("{:?}", tensor.dtype))
            .or_insert(0) += tensor.bytes;
    }
    let unit = manifest.column_unit();
    let (tensor_parallel_max, pipeline_parallel_max) =
        crate::model::partition::largest_split(&manifest.config, unit);
    Ok(Inspection {
        tensors: manifest.tensors.len(),
        parameters: manifest.tensors.values().map(|t| t.rows * t.columns).sum(),
        bytes: manifest.total_bytes(),
        bytes_by_type,
        tensor_parallel_max,
        pipeline_parallel_max,
        name: manifest.name,
        config: manifest.config,
        files: manifest.files,
    })
}
