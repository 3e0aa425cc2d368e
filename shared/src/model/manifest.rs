//! A model's tensors as an index into files, under names that do not depend on the file format.
//!
//! Keeps true: an opened manifest has exactly the tensors its configuration needs, each of the
//! right shape and inside its file. `gguf_llama` and `hf` read the two formats; the loader reads
//! the bytes.

use super::partition::{Costs, SplitError, shares_by_cost};
use super::{DType, ModelConfig, RankShare};
use crate::limits;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

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

impl ManifestError {
    pub fn new(path: &Path, reason: impl Into<String>) -> Self {
        Self {
            path: path.display().to_string(),
            reason: reason.into(),
        }
    }
}

impl Manifest {
    /// Reads and checks the headers of a .gguf file or a Hugging Face folder.
    pub fn open(path: &Path) -> Result<Self, ManifestError> {
        match std::fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(ManifestError::new(
                path,
                "there is no such file or folder; check the path",
            )),
            Err(e) => Err(ManifestError::new(path, format!("cannot be read: {e}"))),
            Ok(meta) if meta.is_dir() => super::hf::open(path),
            Ok(_) => super::gguf_llama::open(path),
        }
    }

    /// Bytes of weights that the holder of `share` takes from the files. Norms are read by every
    /// rank of their stage; tied embeddings by the first and the last stage. Of a super-block that
    /// is cut, each holder counts its own columns only.
    pub fn share_bytes(&self, share: &RankShare) -> u64 {
        self.share_parts(share).map(|(_, bytes)| bytes).sum()
    }

    /// The same of each tensor, with how it is stored.
    pub fn share_parts<'a>(
        &'a self,
        share: &'a RankShare,
    ) -> impl Iterator<Item = (DType, u64)> + 'a {
        let parts = self.tensors.iter();
        parts.map(|(role, tensor)| (tensor.dtype, self.part_bytes(*role, tensor, share)))
    }

    fn part_bytes(&self, role: TensorRole, tensor: &TensorEntry, share: &RankShare) -> u64 {
        use TensorRole::*;
        let head = u64::from(self.config.head_dim);
        let group = u64::from(self.config.group());
        let kv_heads = u64::from(share.kv_heads.len());
        // The header was checked: rows are whole blocks.
        let rows = |n: u64| tensor.bytes / tensor.rows.max(1) * n;
        let columns = |n: u64| tensor.dtype.share_bytes(tensor.rows, n).unwrap_or(0);
        if let Some(layer) = role.layer()
            && !share.layers.range().contains(&(layer as usize))
        {
            return 0;
        }
        let output_stage = share.is_last_stage();
        match role {
            Embedding
                if share.is_first_stage() || (self.config.tied_embeddings && output_stage) =>
            {
                rows(share.vocab.len().into())
            }
            Output if output_stage => rows(share.vocab.len().into()),
            OutputNorm if output_stage => tensor.bytes,
            Embedding | Output | OutputNorm => 0,
            AttnNorm(_) | FfnNorm(_) => tensor.bytes,
            Query(_) => rows(kv_heads * group * head),
            Key(_) | Value(_) => rows(kv_heads * head),
            AttnOutput(_) => columns(kv_heads * group * head),
            FfnGate(_) | FfnUp(_) => rows(share.ffn.len().into()),
            FfnDown(_) => columns(share.ffn.len().into()),
        }
    }

    /// Where the tensors that are split by columns (attention output and FFN down) may be cut, in
    /// columns: the unit of FFN splits.
    pub fn column_unit(&self) -> u32 {
        self.tensors
            .iter()
            .filter(|(role, _)| matches!(role, TensorRole::AttnOutput(_) | TensorRole::FfnDown(_)))
            .map(|(_, tensor)| tensor.dtype.cut_elements() as u32)
            .max()
            .unwrap_or(1)
    }

    /// Bytes of all weights.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes).sum()
    }

    /// [`super::partition::shares`] with stages balanced by what each tensor really weighs in the
    /// files, which is what decoding waits for.
    pub fn shares(&self, weights: &[Vec<u64>]) -> Result<Vec<RankShare>, SplitError> {
        let of = |roles: &[TensorRole]| -> u64 {
            let tensors = roles.iter().filter_map(|r| self.tensors.get(r));
            tensors.map(|t| t.bytes).sum()
        };
        use TensorRole::*;
        let output = if self.config.tied_embeddings {
            Embedding
        } else {
            Output
        };
        let costs = Costs {
            attention: of(&[Query(0), Key(0), Value(0), AttnOutput(0)]),
            ffn: of(&[FfnGate(0), FfnUp(0), FfnDown(0)]),
            output: of(&[output]),
        };
        shares_by_cost(&self.config, weights, self.column_unit(), costs)
    }
}

impl TensorRole {
    /// The layer a role belongs to, if it is of one.
    pub fn layer(self) -> Option<u32> {
        use TensorRole::*;
        match self {
            Embedding | OutputNorm | Output => None,
            AttnNorm(n) | Query(n) | Key(n) | Value(n) | AttnOutput(n) | FfnNorm(n)
            | FfnGate(n) | FfnUp(n) | FfnDown(n) => Some(n),
        }
    }
}

/// Every tensor a model of this configuration has, with its rows and columns.
pub(super) fn expected(config: &ModelConfig) -> impl Iterator<Item = (TensorRole, u64, u64)> {
    use TensorRole::*;
    let hidden = u64::from(config.hidden);
    let (vocab, ffn) = (u64::from(config.vocab), u64::from(config.ffn));
    let queries = u64::from(config.heads) * u64::from(config.head_dim);
    let keys = u64::from(config.kv_heads) * u64::from(config.head_dim);
    let output = (!config.tied_embeddings).then_some((Output, vocab, hidden));
    let layers = (0..config.layers).flat_map(move |n| {
        [
            (AttnNorm(n), 1, hidden),
            (Query(n), queries, hidden),
            (Key(n), keys, hidden),
            (Value(n), keys, hidden),
            (AttnOutput(n), hidden, queries),
            (FfnNorm(n), 1, hidden),
            (FfnGate(n), ffn, hidden),
            (FfnUp(n), ffn, hidden),
            (FfnDown(n), hidden, ffn),
        ]
    });
    [(Embedding, vocab, hidden), (OutputNorm, 1, hidden)]
        .into_iter()
        .chain(output)
        .chain(layers)
}

/// Checks a configuration, and the tensors against it. `name` gives a role's name in the file, for
/// errors.
pub(super) fn check(
    config: &ModelConfig,
    tensors: &BTreeMap<TensorRole, TensorEntry>,
    name: impl Fn(TensorRole) -> String,
) -> Result<(), String> {
    check_config(config)?;
    let mut known = 0;
    for (role, rows, columns) in expected(config) {
        let tensor = tensors
            .get(&role)
            .ok_or_else(|| format!("lacks the tensor `{}`", name(role)))?;
        known += 1;
        if (tensor.rows, tensor.columns) != (rows, columns) {
            return Err(format!(
                "tensor `{}` is {} x {}, but the model's settings make it {rows} x {columns}",
                name(role),
                tensor.rows,
                tensor.columns
            ));
        }
    }
    if known != tensors.len() {
        let layers = config.layers;
        let extra = tensors
            .keys()
            .find(|r| r.layer().is_some_and(|n| n >= layers));
        return Err(match extra {
            Some(role) => format!(
                "has the tensor `{}` but says it has {layers} layers",
                name(*role)
            ),
            None => "has tensors its settings do not account for".into(),
        });
    }
    Ok(())
}

fn check_config(config: &ModelConfig) -> Result<(), String> {
    let c = config;
    for (what, n, max) in [
        ("layers", c.layers, limits::MODEL_LAYERS_MAX),
        ("hidden size", c.hidden, limits::MODEL_WIDTH_MAX),
        ("heads", c.heads, limits::MODEL_HEADS_MAX),
        ("KV heads", c.kv_heads, limits::MODEL_HEADS_MAX),
        ("head size", c.head_dim, limits::MODEL_HEADS_MAX),
        ("FFN size", c.ffn, limits::MODEL_WIDTH_MAX),
        ("vocabulary", c.vocab, limits::MODEL_VOCAB_MAX),
        ("context", c.context, limits::MODEL_CONTEXT_MAX),
    ] {
        if n == 0 || n > max {
            return Err(format!("says its {what} is {n}; 1 to {max} is possible"));
        }
    }
    if !c.heads.is_multiple_of(c.kv_heads) {
        return Err(format!(
            "has {} heads, which {} KV heads cannot share equally",
            c.heads, c.kv_heads
        ));
    }
    if c.rope.dims != c.head_dim || !c.head_dim.is_multiple_of(2) {
        return Err(format!(
            "rotates {} of {} dimensions of a head; only all of an even number is supported",
            c.rope.dims, c.head_dim
        ));
    }
    if !(c.rope.theta.is_finite() && c.rope.theta > 0.0) {
        return Err(format!("has the RoPE base {}", c.rope.theta));
    }
    if !(c.norm_eps.is_finite() && c.norm_eps >= 0.0) {
        return Err(format!("has the norm epsilon {}", c.norm_eps));
    }
    Ok(())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
