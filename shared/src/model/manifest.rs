//! A model's tensors as an index into files, under names that do not depend on the file format.

use super::{DType, ModelConfig};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What a tensor is for. Both GGUF and safetensors names are mapped onto these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TensorRole {
    /// `[vocab, hidden]`
    Embedding,
    /// `[hidden]`
    OutputNorm,
    /// `[vocab, hidden]`; absent where embeddings are tied
    Output,
    /// `[hidden]`, of this layer
    AttnNorm(u32),
    /// `[heads * head_dim, hidden]`
    Query(u32),
    /// `[kv_heads * head_dim, hidden]`
    Key(u32),
    /// `[kv_heads * head_dim, hidden]`
    Value(u32),
    /// `[hidden, heads * head_dim]`
    AttnOutput(u32),
    /// `[hidden]`
    FfnNorm(u32),
    /// `[ffn, hidden]`
    FfnGate(u32),
    /// `[ffn, hidden]`
    FfnUp(u32),
    /// `[hidden, ffn]`
    FfnDown(u32),
}

/// Where one tensor lies. `rows` x `columns`, row-major, each row a whole number of blocks; a
/// vector has one row.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    pub dtype: DType,
    pub rows: u64,
    pub columns: u64,
    /// Index into `Manifest::files`.
    pub file: usize,
    /// Absolute byte offset in that file.
    pub offset: u64,
    /// Bytes of the tensor, already checked to lie inside the file.
    pub bytes: u64,
}

/// A model on disk, its headers read and checked, its weights not.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub config: ModelConfig,
    pub files: Vec<PathBuf>,
    pub tensors: BTreeMap<TensorRole, TensorEntry>,
    /// Human name from the file, if it has one.
    pub name: Option<String>,
}

/// Why a model's files were refused; the text names the file and the reason.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ManifestError {
    pub path: String,
    pub reason: String,
}

impl Manifest {
    /// Reads and checks the headers of a .gguf file or a Hugging Face folder.
    pub fn open(path: &std::path::Path) -> Result<Self, ManifestError> {
        Err(ManifestError {
            path: path.display().to_string(),
            reason: "not built yet".into(),
        })
    }

    /// Bytes of weights that the holder of `share` reads.
    pub fn share_bytes(&self, _share: &super::RankShare) -> u64 {
        0
    }

    /// The quantisation block of the tensors that are split by columns (attention output and FFN
    /// down), in columns: the unit of FFN splits.
    pub fn column_unit(&self) -> u32 {
        1
    }
}
