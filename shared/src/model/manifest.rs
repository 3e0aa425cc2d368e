//! A model's tensors as an index into files, under names that do not depend on the file format.
//!
//! Keeps true: an opened manifest has exactly the tensors its configuration needs, each of the
//! right shape and inside its file. `gguf_model` and `hf` read the two formats; the loader reads
//! the bytes.

use super::header::shown;
use super::partition::{Costs, SplitError, shares_by_cost};
use super::roles::{expected, layer_shapes};
use super::{DType, Mixture, ModelConfig, Quantize, RankShare, Rope, RopeDivisors, RopeScaling};
use crate::limits;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use super::roles::TensorRole;

/// Where one tensor lies. `rows` x `columns`, row-major, each row a whole number of blocks; a
/// vector has one row.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorEntry {
    /// In the file.
    pub dtype: DType,
    /// In a rank's memory: the same, or what `Manifest::quantised` makes of it.
    pub packed: DType,
    pub rows: u64,
    pub columns: u64,
    /// Index into `Manifest::files`.
    pub file: usize,
    /// Absolute byte offset in that file.
    pub offset: u64,
    /// Bytes of the tensor, already checked to lie inside the file.
    pub bytes: u64,
}

impl TensorEntry {
    /// Bytes of `columns` columns of `rows` rows, as they are packed.
    pub fn packed_bytes(&self, rows: u64, columns: u64) -> u64 {
        self.packed.share_bytes(rows, columns).unwrap_or(u64::MAX)
    }
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
            Ok(_) => super::gguf_model::open(path),
        }
    }

    /// The same model, of which ranks quantise matrices of floats as they pack them. Blocks are counted from a
    /// tensor's first column, and ranks cut between them (`column_unit`): no split changes a block.
    pub fn quantised(mut self, quantize: Option<Quantize>) -> Self {
        for (role, tensor) in &mut self.tensors {
            tensor.packed = quantize.map_or(tensor.dtype, |q| q.packed(*role, tensor));
        }
        self
    }

    /// Bytes of weights that the holder of `share` packs: of those that it does not quantise, what it takes from
    /// the files. Norms are read by every rank of their stage; tied embeddings by the first and the last stage.
    /// Of a super-block that is cut, each holder counts its own columns only.
    pub fn share_bytes(&self, share: &RankShare) -> u64 {
        self.share_parts(share).map(|(_, bytes)| bytes).sum()
    }

    /// The same of each tensor, with how it is packed.
    pub fn share_parts<'a>(
        &'a self,
        share: &'a RankShare,
    ) -> impl Iterator<Item = (DType, u64)> + 'a {
        let parts = self.tensors.iter();
        parts.map(|(role, tensor)| (tensor.packed, self.part_bytes(*role, tensor, share)))
    }

    fn part_bytes(&self, role: TensorRole, tensor: &TensorEntry, share: &RankShare) -> u64 {
        use TensorRole::*;
        let head = u64::from(self.config.head_dim);
        let group = u64::from(self.config.group());
        let kv_heads = u64::from(share.kv_heads.len());
        let rows = |n: u64| tensor.packed_bytes(n, tensor.columns);
        let columns = |n: u64| tensor.packed_bytes(tensor.rows, n);
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
            RopeFactors | AttnNorm(_) | QueryNorm(_) | KeyNorm(_) | AttnPostNorm(_)
            | FfnNorm(_) | FfnPostNorm(_) => tensor.bytes,
            QueryBias(_) => columns(kv_heads * group * head),
            KeyBias(_) | ValueBias(_) => columns(kv_heads * head),
            Query(_) => rows(kv_heads * group * head),
            Key(_) | Value(_) => rows(kv_heads * head),
            AttnOutput(_) => columns(kv_heads * group * head),
            FfnGate(_) | FfnUp(_) => rows(share.ffn.len().into()),
            FfnDown(_) => columns(share.ffn.len().into()),
            Router(_) => tensor.bytes,
            ExpertGate(_, e) | ExpertUp(_, e) | ExpertDown(_, e) => {
                match self
                    .config
                    .experts_in(share.ffn)
                    .range()
                    .contains(&(e.0 as usize))
                {
                    true => rows(tensor.rows),
                    false => 0,
                }
            }
        }
    }

    /// Where the tensors that are split by columns (attention output and FFN down) may be cut, in
    /// columns: the unit of FFN splits.
    pub fn column_unit(&self) -> u32 {
        self.tensors
            .iter()
            .filter(|(role, _)| matches!(role, TensorRole::AttnOutput(_) | TensorRole::FfnDown(_)))
            .map(|(_, tensor)| tensor.packed.cut_elements() as u32)
            .max()
            .unwrap_or(1)
    }

    /// Bytes of all weights, in the files.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.bytes).sum()
    }

    /// [`super::partition::shares`] with stages balanced by what each tensor really weighs, which is what
    /// decoding waits for.
    pub fn shares(&self, weights: &[Vec<u64>]) -> Result<Vec<RankShare>, SplitError> {
        use TensorRole::*;
        let is_output = |role| match self.config.tied_embeddings {
            true => role == Embedding,
            false => role == Output,
        };
        let mut costs = Costs::default();
        for (role, tensor) in &self.tensors {
            let cost = match role {
                Query(0) | Key(0) | Value(0) | AttnOutput(0) => &mut costs.attention,
                FfnGate(0) | FfnUp(0) | FfnDown(0) | Router(0) => &mut costs.ffn,
                ExpertGate(0, _) | ExpertUp(0, _) | ExpertDown(0, _) => &mut costs.ffn,
                role if is_output(*role) => &mut costs.output,
                _ => continue,
            };
            *cost += tensor.packed_bytes(tensor.rows, tensor.columns);
        }
        shares_by_cost(&self.config, weights, self.column_unit(), costs)
    }
}

/// Adds a file's tensor, which holds the rows of one role, or of several on top of each other.
/// `name` is the file's own, for errors.
pub(super) fn place(
    tensors: &mut BTreeMap<TensorRole, TensorEntry>,
    config: &ModelConfig,
    roles: &[TensorRole],
    entry: TensorEntry,
    name: &str,
) -> Result<(), String> {
    let layers = config.layers;
    if roles.iter().any(|r| r.layer().is_some_and(|n| n >= layers)) {
        let name = shown(name);
        return Err(format!(
            "has the tensor {name} but says it has {layers} layers"
        ));
    }
    let twice = || format!("has more than one tensor for the part of {}", shown(name));
    if let [role] = roles {
        return match tensors.insert(*role, entry) {
            None => Ok(()),
            Some(_) => Err(twice()),
        };
    }
    let layer = roles.first().and_then(|r| r.layer()).unwrap_or(0);
    let roles: BTreeSet<_> = roles.iter().collect();
    let shapes: Vec<_> = layer_shapes(config, layer)
        .into_iter()
        .filter(|(role, ..)| roles.contains(role))
        .collect();
    let wanted: u64 = shapes.iter().map(|(_, rows, _)| rows).sum();
    if wanted != entry.rows {
        return Err(format!(
            "tensor {} has {} rows, but the model's settings make it {wanted}",
            shown(name),
            entry.rows
        ));
    }
    let row_bytes = entry.bytes / entry.rows.max(1);
    let mut offset = entry.offset;
    for (role, rows, _) in shapes {
        let bytes = rows * row_bytes;
        let part = TensorEntry {
            rows,
            offset,
            bytes,
            ..entry.clone()
        };
        if tensors.insert(role, part).is_some() {
            return Err(twice());
        }
        offset += bytes;
    }
    Ok(())
}

/// Checks the tensors against a configuration that was checked. `name` gives a role's name in the file, for
/// errors.
pub(super) fn check(
    config: &ModelConfig,
    tensors: &BTreeMap<TensorRole, TensorEntry>,
    name: impl Fn(TensorRole) -> String,
) -> Result<(), String> {
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
    if known == tensors.len() {
        return Ok(());
    }
    Err("has tensors its settings do not account for".into())
}

/// Checks a configuration on its own: first of all, so that nothing is reckoned with absurd counts.
pub(super) fn check_config(config: &ModelConfig) -> Result<(), String> {
    let c = config;
    if let Some(mixture) = c.mixture {
        check_mixture(mixture, c.layers)?;
    }
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
    check_rope(c.rope, c.head_dim)?;
    if let Some(window) = &c.window {
        check_rope(window.rope, c.head_dim)?;
        if window.tokens == 0 || window.layers.len() != c.layers as usize {
            return Err(format!(
                "has a window of {} tokens, given for {} of {} layers",
                window.tokens,
                window.layers.len(),
                c.layers
            ));
        }
        // One table of frequencies is divided, so there must be one.
        if c.rope_divisors != RopeDivisors::None && window.rope != c.rope {
            return Err("has RoPE divisors and two kinds of RoPE, which is not supported".into());
        }
    }
    for (what, n) in [
        ("embedding scale", Some(c.embedding_scale)),
        ("attention scale", Some(c.attention_scale)),
        ("cap of attention scores", c.score_cap),
        ("cap of logits", c.logit_cap),
    ] {
        if n.is_some_and(|n| !(n.is_finite() && n > 0.0)) {
            return Err(format!("has the {what} {}", n.unwrap_or_default()));
        }
    }
    if !(c.norm_eps.is_finite() && c.norm_eps >= 0.0) {
        return Err(format!("has the norm epsilon {}", c.norm_eps));
    }
    Ok(())
}

fn check_mixture(mixture: Mixture, layers: u32) -> Result<(), String> {
    let Mixture { experts, used, .. } = mixture;
    let most = limits::MODEL_EXPERTS_MAX.min(limits::MODEL_EXPERTS_TOTAL_MAX / layers.max(1));
    if experts == 0 || experts > most {
        return Err(format!(
            "says each of its {layers} layers has {experts} experts; 1 to {most} is possible"
        ));
    }
    if used == 0 || used > experts {
        return Err(format!(
            "says each token uses {used} of {experts} experts; 1 to {experts} is possible"
        ));
    }
    Ok(())
}

fn check_rope(rope: Rope, head_dim: u32) -> Result<(), String> {
    if rope.dims == 0 || rope.dims > head_dim || !rope.dims.is_multiple_of(2) {
        return Err(format!(
            "rotates {} of {head_dim} dimensions of a head; an even number of them is possible",
            rope.dims
        ));
    }
    if !(rope.theta.is_finite() && rope.theta > 0.0) {
        return Err(format!("has the RoPE base {}", rope.theta));
    }
    let (numbers, context) = match rope.scaling {
        RopeScaling::None => (vec![], 1),
        RopeScaling::Linear { factor } => (vec![factor], 1),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let between = high_freq_factor - low_freq_factor;
            let numbers = vec![factor, low_freq_factor, high_freq_factor, between];
            (numbers, original_context)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_context,
            attention_factor,
        } => {
            if rope.theta <= 1.0 {
                return Err(format!("has the RoPE base {} and YaRN", rope.theta));
            }
            let numbers = vec![factor, beta_fast, beta_slow, attention_factor];
            (numbers, original_context)
        }
        RopeScaling::LongRope {
            original_context,
            attention_factor,
        } => (vec![attention_factor], original_context),
    };
    if context == 0 || numbers.iter().any(|n| !(n.is_finite() && *n > 0.0)) {
        return Err(format!(
            "has a RoPE scaling that makes no sense: {:?}",
            rope.scaling
        ));
    }
    Ok(())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
