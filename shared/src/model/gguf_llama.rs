//! From a GGUF header to a manifest, for the `llama` architecture.
//!
//! Keeps true: a key or tensor that changes the arithmetic and that the model code does not
//! implement is refused by its name, never ignored.

use super::gguf::{Gguf, GgufTensor, Metadata, Value};
use super::header::shown;
use super::manifest::{self, Manifest, ManifestError, TensorEntry, TensorRole};
use super::{Architecture, ModelConfig, Rope, RopeStyle};
use std::collections::BTreeMap;
use std::path::Path;

const ROPE_THETA_DEFAULT: f64 = 10_000.0;

pub(super) fn open(path: &Path) -> Result<Manifest, ManifestError> {
    let gguf = Gguf::open(path)?;
    let config = config(&gguf)?;
    let mut tensors = BTreeMap::new();
    for tensor in &gguf.tensors {
        let Some(role) = role(&tensor.name) else {
            return Err(gguf.metadata.error(format!(
                "has the tensor {}, which this program does not know how to use",
                shown(&tensor.name)
            )));
        };
        let entry = entry(tensor).ok_or_else(|| {
            gguf.metadata.error(format!(
                "tensor {} has more than two dimensions",
                shown(&tensor.name)
            ))
        })?;
        if tensors.insert(role, entry).is_some() {
            return Err(gguf.metadata.error(format!(
                "has more than one tensor for the part of {}",
                shown(&tensor.name)
            )));
        }
    }
    manifest::check(&config, &tensors, name).map_err(|reason| gguf.metadata.error(reason))?;
    let title = gguf.metadata.string("general.name")?.map(str::to_owned);
    Ok(Manifest {
        config,
        files: vec![path.to_owned()],
        tensors,
        name: title,
    })
}

fn entry(tensor: &GgufTensor) -> Option<TensorEntry> {
    let (rows, columns) = match tensor.dims[..] {
        [columns] => (1, columns),
        [columns, rows] => (rows, columns),
        _ => return None,
    };
    Some(TensorEntry {
        dtype: tensor.dtype,
        rows,
        columns,
        file: 0,
        offset: tensor.offset,
        bytes: tensor.bytes,
    })
}

/// llama.cpp's name of a tensor.
pub(super) fn name(role: TensorRole) -> String {
    let layer = |n: u32, part: &str| format!("blk.{n}.{part}.weight");
    match role {
        TensorRole::Embedding => "token_embd.weight".into(),
        TensorRole::OutputNorm => "output_norm.weight".into(),
        TensorRole::Output => "output.weight".into(),
        TensorRole::AttnNorm(n) => layer(n, "attn_norm"),
        TensorRole::Query(n) => layer(n, "attn_q"),
        TensorRole::Key(n) => layer(n, "attn_k"),
        TensorRole::Value(n) => layer(n, "attn_v"),
        TensorRole::AttnOutput(n) => layer(n, "attn_output"),
        TensorRole::FfnNorm(n) => layer(n, "ffn_norm"),
        TensorRole::FfnGate(n) => layer(n, "ffn_gate"),
        TensorRole::FfnUp(n) => layer(n, "ffn_up"),
        TensorRole::FfnDown(n) => layer(n, "ffn_down"),
    }
}

fn role(name: &str) -> Option<TensorRole> {
    match name {
        "token_embd.weight" => return Some(TensorRole::Embedding),
        "output_norm.weight" => return Some(TensorRole::OutputNorm),
        "output.weight" => return Some(TensorRole::Output),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    let n: u32 = layer.parse().ok()?;
    Some(match part {
        "attn_norm.weight" => TensorRole::AttnNorm(n),
        "attn_q.weight" => TensorRole::Query(n),
        "attn_k.weight" => TensorRole::Key(n),
        "attn_v.weight" => TensorRole::Value(n),
        "attn_output.weight" => TensorRole::AttnOutput(n),
        "ffn_norm.weight" => TensorRole::FfnNorm(n),
        "ffn_gate.weight" => TensorRole::FfnGate(n),
        "ffn_up.weight" => TensorRole::FfnUp(n),
        "ffn_down.weight" => TensorRole::FfnDown(n),
        _ => return None,
    })
}

fn config(gguf: &Gguf) -> Result<ModelConfig, ManifestError> {
    let metadata = &gguf.metadata;
    match metadata.string("general.architecture")? {
        Some("llama") => {}
        Some(other) => {
            return Err(metadata.error(format!(
                "is a model of architecture {}; only `llama` is supported",
                shown(other)
            )));
        }
        None => return Err(metadata.error("does not say its `general.architecture`")),
    }
    for key in metadata.keys() {
        check_key(metadata, key)?;
    }
    let count = |key: &str| -> Result<Option<u32>, ManifestError> {
        match metadata.unsigned(key)? {
            None => Ok(None),
            Some(n) => u32::try_from(n)
                .map(Some)
                .map_err(|_| metadata.error(format!("`{key}` is {n}: absurd"))),
        }
    };
    let need = |key: &str| -> Result<u32, ManifestError> {
        count(key)?.ok_or_else(|| metadata.error(format!("lacks the metadata key `{key}`")))
    };
    let hidden = need("llama.embedding_length")?;
    let heads = need("llama.attention.head_count")?;
    if heads == 0 {
        return Err(metadata.error("`llama.attention.head_count` is 0"));
    }
    let kv_heads = count("llama.attention.head_count_kv")?.unwrap_or(heads);
    let head_dim = match count("llama.attention.key_length")? {
        Some(n) => n,
        None if hidden % heads == 0 => hidden / heads,
        None => {
            return Err(metadata.error(format!(
                "hidden size {hidden} does not divide by {heads} heads, and \
                 `llama.attention.key_length` is absent"
            )));
        }
    };
    if let Some(value) = count("llama.attention.value_length")?
        && value != head_dim
    {
        return Err(metadata.error(format!(
            "`llama.attention.value_length` is {value}, not the key length {head_dim}; that is not \
             supported"
        )));
    }
    let words = metadata.strings("tokenizer.ggml.tokens")?.map(<[_]>::len);
    let embedding = gguf.tensors.iter().find(|t| t.name == "token_embd.weight");
    let rows = embedding.and_then(|t| t.dims.get(1).copied()).unwrap_or(0);
    let vocab = match count("llama.vocab_size")? {
        Some(n) => n,
        None => u32::try_from(rows).unwrap_or(u32::MAX),
    };
    if let Some(words) = words
        && words as u64 > u64::from(vocab)
    {
        return Err(metadata.error(format!(
            "has {words} tokens in its vocabulary but embeddings for {vocab}"
        )));
    }
    let norm_eps = metadata
        .float("llama.attention.layer_norm_rms_epsilon")?
        .ok_or_else(|| {
            metadata.error("lacks the metadata key `llama.attention.layer_norm_rms_epsilon`")
        })?;
    let theta = metadata.float("llama.rope.freq_base")?;
    Ok(ModelConfig {
        architecture: Architecture::Llama,
        layers: need("llama.block_count")?,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn: need("llama.feed_forward_length")?,
        vocab,
        context: need("llama.context_length")?,
        rope: Rope {
            theta: theta.unwrap_or(ROPE_THETA_DEFAULT) as f32,
            dims: count("llama.rope.dimension_count")?.unwrap_or(head_dim),
            style: RopeStyle::Interleaved,
        },
        norm_eps: norm_eps as f32,
        tied_embeddings: !gguf.tensors.iter().any(|t| t.name == "output.weight"),
    })
}

/// Refuses architecture keys whose meaning the model code does not implement.
fn check_key(metadata: &Metadata, key: &str) -> Result<(), ManifestError> {
    const READ: [&str; 14] = [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        // Known to change nothing in a file whose tensors passed the checks.
        "tensor_data_layout",
        "attention.layer_norm_epsilon",
    ];
    let Some(rest) = key.strip_prefix("llama.") else {
        return Ok(());
    };
    if READ.contains(&rest) {
        return Ok(());
    }
    let value = metadata.get(key);
    let harmless = match (rest, value) {
        ("rope.scaling.type", Some(Value::String(s))) => s == "none",
        (r, Some(Value::Float(x))) if r.starts_with("rope.scal") || r.ends_with("scale") => {
            *x == 1.0
        }
        (r, Some(Value::Unsigned(n))) if r.starts_with("expert_") => *n == 0,
        ("rope.scaling.finetuned", Some(Value::Bool(b))) => !b,
        ("rope.scaling.original_context_length", Some(Value::Unsigned(n))) => {
            metadata.unsigned("llama.context_length")? == Some(*n)
        }
        ("attention.sliding_window", Some(Value::Unsigned(n))) => *n == 0,
        ("attention.causal", Some(Value::Bool(b))) => *b,
        ("use_parallel_residual", Some(Value::Bool(b))) => !b,
        _ => false,
    };
    if harmless {
        return Ok(());
    }
    let what = match value {
        Some(Value::String(s)) => format!("{} = {}", shown(key), shown(s)),
        Some(Value::Unsigned(n)) => format!("{} = {n}", shown(key)),
        Some(Value::Float(x)) => format!("{} = {x}", shown(key)),
        Some(Value::Bool(b)) => format!("{} = {b}", shown(key)),
        _ => shown(key),
    };
    Err(metadata.error(format!(
        "sets {what}, which this program does not implement; use a model without it"
    )))
}
