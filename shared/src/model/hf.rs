//! From a Hugging Face folder (config.json and safetensors, one file or shards) to a manifest.
//!
//! Keeps true: a setting that changes the arithmetic and that the model code does not implement is
//! refused by its name. Shards are plain names inside the folder, so no index can point elsewhere.

use super::header::shown;
use super::manifest::{self, Manifest, ManifestError, TensorEntry, TensorRole};
use super::{Architecture, ModelConfig, Rope, RopeStyle, safetensors};
use crate::limits;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// `LlamaConfig` of transformers, with its defaults.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    intermediate_size: u32,
    vocab_size: u32,
    max_position_embeddings: u32,
    rms_norm_eps: f32,
    rope_theta: Option<f32>,
    tie_word_embeddings: Option<bool>,
    hidden_act: Option<String>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    rope_interleaved: Option<bool>,
    partial_rotary_factor: Option<f32>,
    #[serde(default)]
    rope_scaling: Value,
    /// Where transformers 5 keeps theta and scaling.
    #[serde(default)]
    rope_parameters: Value,
    #[serde(default)]
    quantization_config: Value,
    #[serde(default)]
    sliding_window: Value,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn open(folder: &Path) -> Result<Manifest, ManifestError> {
    let config_path = folder.join("config.json");
    let config: Config = json(&config_path)?;
    let config = model_config(config).map_err(|reason| ManifestError::new(&config_path, reason))?;

    let (files, wanted) = files(folder)?;
    let mut tensors = BTreeMap::new();
    let mut found = BTreeSet::new();
    for (index, path) in files.iter().enumerate() {
        let fail = |reason: String| ManifestError::new(path, reason);
        for tensor in safetensors::open(path)? {
            if let Some(wanted) = &wanted {
                // Some shards hold copies the index does not point at.
                match wanted.get(&tensor.name) {
                    Some(file) if path.file_name().is_some_and(|f| f == file.as_str()) => {}
                    _ => continue,
                }
            }
            found.insert(tensor.name.clone());
            let role = match role(&tensor.name) {
                Some(TensorRole::Output) if config.tied_embeddings => continue,
                Some(role) => role,
                // Computed, not trained: old checkpoints carry it.
                None if tensor.name.ends_with("rotary_emb.inv_freq") => continue,
                None => {
                    return Err(fail(format!(
                        "has the tensor {}, which this program does not know how to use",
                        shown(&tensor.name)
                    )));
                }
            };
            let dtype = tensor.dtype.ok_or_else(|| {
                fail(format!(
                    "tensor {} is stored as {}, which is not supported; use F32, F16 or BF16",
                    shown(&tensor.name),
                    shown(&tensor.type_name)
                ))
            })?;
            let (rows, columns) = match tensor.shape[..] {
                [columns] => (1, columns),
                [rows, columns] => (rows, columns),
                _ => {
                    return Err(fail(format!(
                        "tensor {} has {} dimensions; 1 or 2 are possible",
                        shown(&tensor.name),
                        tensor.shape.len()
                    )));
                }
            };
            let entry = TensorEntry {
                dtype,
                rows,
                columns,
                file: index,
                offset: tensor.offset,
                bytes: tensor.bytes,
            };
            if tensors.insert(role, entry).is_some() {
                return Err(fail(format!(
                    "has the tensor {}, which another file of this model has too",
                    shown(&tensor.name)
                )));
            }
        }
    }
    if let Some(wanted) = &wanted
        && let Some((name, file)) = wanted.iter().find(|(name, _)| !found.contains(*name))
    {
        return Err(ManifestError::new(
            &folder.join(file),
            format!("lacks the tensor {} that the index promises", shown(name)),
        ));
    }
    manifest::check(&config, &tensors, name).map_err(|r| ManifestError::new(folder, r))?;
    let name = folder.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok(Manifest {
        config,
        files,
        tensors,
        name,
    })
}

type WeightMap = BTreeMap<String, String>;

/// The weight files, and which tensor the index says is in which.
fn files(folder: &Path) -> Result<(Vec<PathBuf>, Option<WeightMap>), ManifestError> {
    let index_path = folder.join("model.safetensors.index.json");
    let single = folder.join("model.safetensors");
    if !index_path.exists() {
        return if single.exists() {
            Ok((vec![single], None))
        } else {
            Err(ManifestError::new(
                folder,
                "has neither model.safetensors nor model.safetensors.index.json; fetch the model's \
                 safetensors files into it",
            ))
        };
    }
    let index: Index = json(&index_path)?;
    let names: BTreeSet<&String> = index.weight_map.values().collect();
    let fail = |reason: String| ManifestError::new(&index_path, reason);
    if names.is_empty() || names.len() > limits::SAFETENSORS_SHARDS_MAX {
        return Err(fail(format!("names {} files", names.len())));
    }
    for name in &names {
        if !is_plain_name(name) {
            return Err(fail(format!(
                "names the file {}, which is not a plain file name",
                shown(name)
            )));
        }
    }
    let files = names.iter().map(|name| folder.join(name)).collect();
    Ok((files, Some(index.weight_map)))
}

/// A name that stays inside its folder on every system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let odd = |c: char| matches!(c, '/' | '\\' | ':') || c.is_control();
    !name.is_empty() && !name.starts_with('.') && name.len() <= 255 && !name.contains(odd)
}

/// Shard names an index text points at, for the fetcher.
pub(crate) fn shards_of_index(path: &Path) -> Result<Vec<String>, ManifestError> {
    let index: Index = json(path)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    if names.len() > limits::SAFETENSORS_SHARDS_MAX || !names.iter().all(|n| is_plain_name(n)) {
        return Err(ManifestError::new(
            path,
            "is not a sensible index of shards",
        ));
    }
    Ok(names.into_iter().collect())
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<T, ManifestError> {
    let fail = |reason: String| ManifestError::new(path, reason);
    let file = File::open(path).map_err(|e| fail(format!("cannot be opened: {e}")))?;
    let mut text = Vec::new();
    file.take(limits::MODEL_JSON_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(|e| fail(format!("cannot be read: {e}")))?;
    if text.len() as u64 > limits::MODEL_JSON_BYTES_MAX {
        return Err(fail("is too large".into()));
    }
    serde_json::from_slice(&text).map_err(|e| fail(format!("is not what it should be: {e}")))
}

fn model_config(config: Config) -> Result<ModelConfig, String> {
    let is_llama = match config.architectures.first() {
        Some(name) => name == "LlamaForCausalLM",
        None => config.model_type.as_deref() == Some("llama"),
    };
    if !is_llama {
        let name = config.architectures.first().or(config.model_type.as_ref());
        return Err(format!(
            "is a model of architecture {}; only `LlamaForCausalLM` is supported",
            name.map_or("(none given)".into(), |n| shown(n))
        ));
    }
    let refused = |setting: String| {
        Err(format!(
            "sets {setting}, which this program does not implement; use a model without it"
        ))
    };
    for (name, set) in [
        ("attention_bias", config.attention_bias == Some(true)),
        ("mlp_bias", config.mlp_bias == Some(true)),
        ("rope_interleaved", config.rope_interleaved == Some(true)),
        ("quantization_config", !config.quantization_config.is_null()),
        ("sliding_window", !config.sliding_window.is_null()),
    ] {
        if set {
            return refused(format!("`{name}`"));
        }
    }
    if let Some(act) = config.hidden_act.as_deref().filter(|a| *a != "silu") {
        return refused(format!("`hidden_act` to {}", shown(act)));
    }
    if let Some(factor) = config.partial_rotary_factor.filter(|f| *f != 1.0) {
        return refused(format!("`partial_rotary_factor` to {factor}"));
    }
    for (name, rope) in [
        ("rope_scaling", &config.rope_scaling),
        ("rope_parameters", &config.rope_parameters),
    ] {
        if rope.is_null() {
            continue;
        }
        match rope.get("rope_type").or_else(|| rope.get("type")) {
            Some(Value::String(kind)) if kind == "default" => {}
            Some(Value::String(kind)) => {
                return refused(format!("`{name}` of type {}", shown(kind)));
            }
            None if rope.get("factor").is_none() => {}
            _ => return refused(format!("`{name}`")),
        }
    }
    if config.num_attention_heads == 0 {
        return Err("says `num_attention_heads` is 0".into());
    }
    let head_dim = match config.head_dim {
        Some(n) => n,
        None if config
            .hidden_size
            .is_multiple_of(config.num_attention_heads) =>
        {
            config.hidden_size / config.num_attention_heads
        }
        None => return Err("has a hidden size its heads do not divide, and no `head_dim`".into()),
    };
    let theta = config
        .rope_parameters
        .get("rope_theta")
        .and_then(Value::as_f64);
    let theta = config.rope_theta.or(theta.map(|t| t as f32));
    Ok(ModelConfig {
        architecture: Architecture::Llama,
        layers: config.num_hidden_layers,
        hidden: config.hidden_size,
        heads: config.num_attention_heads,
        kv_heads: config
            .num_key_value_heads
            .unwrap_or(config.num_attention_heads),
        head_dim,
        ffn: config.intermediate_size,
        vocab: config.vocab_size,
        context: config.max_position_embeddings,
        rope: Rope {
            theta: theta.unwrap_or(10_000.0),
            dims: head_dim,
            style: RopeStyle::Halves,
        },
        norm_eps: config.rms_norm_eps,
        tied_embeddings: config.tie_word_embeddings.unwrap_or(false),
    })
}

/// transformers' name of a tensor.
pub(super) fn name(role: TensorRole) -> String {
    let layer = |n: u32, part: &str| format!("model.layers.{n}.{part}.weight");
    match role {
        TensorRole::Embedding => "model.embed_tokens.weight".into(),
        TensorRole::OutputNorm => "model.norm.weight".into(),
        TensorRole::Output => "lm_head.weight".into(),
        TensorRole::AttnNorm(n) => layer(n, "input_layernorm"),
        TensorRole::Query(n) => layer(n, "self_attn.q_proj"),
        TensorRole::Key(n) => layer(n, "self_attn.k_proj"),
        TensorRole::Value(n) => layer(n, "self_attn.v_proj"),
        TensorRole::AttnOutput(n) => layer(n, "self_attn.o_proj"),
        TensorRole::FfnNorm(n) => layer(n, "post_attention_layernorm"),
        TensorRole::FfnGate(n) => layer(n, "mlp.gate_proj"),
        TensorRole::FfnUp(n) => layer(n, "mlp.up_proj"),
        TensorRole::FfnDown(n) => layer(n, "mlp.down_proj"),
    }
}

fn role(name: &str) -> Option<TensorRole> {
    match name {
        "model.embed_tokens.weight" => return Some(TensorRole::Embedding),
        "model.norm.weight" => return Some(TensorRole::OutputNorm),
        "lm_head.weight" => return Some(TensorRole::Output),
        _ => {}
    }
    let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let n: u32 = layer.parse().ok()?;
    Some(match part {
        "input_layernorm.weight" => TensorRole::AttnNorm(n),
        "self_attn.q_proj.weight" => TensorRole::Query(n),
        "self_attn.k_proj.weight" => TensorRole::Key(n),
        "self_attn.v_proj.weight" => TensorRole::Value(n),
        "self_attn.o_proj.weight" => TensorRole::AttnOutput(n),
        "post_attention_layernorm.weight" => TensorRole::FfnNorm(n),
        "mlp.gate_proj.weight" => TensorRole::FfnGate(n),
        "mlp.up_proj.weight" => TensorRole::FfnUp(n),
        "mlp.down_proj.weight" => TensorRole::FfnDown(n),
        _ => return None,
    })
}
